"""What must not learn does not: teacher and momentum encoder in a run of two processes."""

import hashlib
import os

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.plugins.environments import TorchElasticEnvironment

from rdcd.augment.recipes import simclr
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training.datamodule import DataModule, DataSettings
from rdcd.training.fit import _strategy
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD

SIZE, STEPS, MOMENTUM = 32, 6, 0.9


def digest(value):
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()


def hashes(module):
    """Hash of every parameter and buffer, those outside the state dict included."""
    return {name: digest(value) for name, value in [*module.named_parameters(), *module.named_buffers()]}


def make(root, train_mode):
    """Return (module, data) of a tiny RDCD run on the benchmark at `root`, without validation."""
    settings = DataSettings(root=str(root), size=SIZE, batch_size=8, workers=0)
    _, pictures, _ = settings.open(Protocol())
    data = DataModule(pictures, simclr(SIZE), settings=settings, protocol=Protocol(), benchmark=None,
                      validation_size=SIZE, seed=0)
    torch.manual_seed(0)
    teacher = Teacher(Student(trunk="test_resnet", dim=None, kd_dim=12))
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=12)
    objective = RDCD(student, teacher, queue_size=20, momentum=MOMENTUM, teacher_train_mode=train_mode)
    return CopyDetection(student=student, objective=objective, epochs=2, steps_per_epoch=3, global_batch=8, card={},
                         optimization=Optimization(lr=2.0, weight_decay=0.1, warmup_epochs=0.0)), data


class Look(pl.Callback):
    """Notes at every step how the momentum encoder moved, and who takes gradients."""

    def __init__(self):
        self.errors, self.moves, self.gradients, self.modes = [], [], [], []

    def on_train_start(self, trainer, module):
        parallel, frozen = trainer.strategy.model, (module.objective.key_encoder, module.objective.teacher)
        self.names = {id(p): name for name, p in module.named_parameters()} | {
            id(p): f"teacher.{name}" for name, p in module.objective.teacher.named_parameters()}
        self.optimized = [self.names[id(p)] for group in trainer.optimizers[0].param_groups for p in group["params"]]
        self.reduced = [self.names[id(p)] for p in parallel._build_params_for_reducer()[0]]
        self.learning = [name for name, p in module.named_parameters() if p.requires_grad]
        self.bytes = parallel._get_ddp_logging_data()["total_parameter_size_bytes"]
        self.frozen = [p for network in frozen for p in network.parameters()]

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        self.online = [p.detach().clone() for p in module.student.parameters()]
        self.keys = [p.clone() for p in module.objective.key_encoder.parameters()]

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients += [p.grad is not None for p in self.frozen]
        self.modes.append(module.objective.teacher.network.training)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        """Compare with m·θ_K + (1 − m)·θ of float64, θ before the step, in ulps of the larger one."""
        errors, moves = [], []
        for key, online, now in zip(self.keys, self.online, module.objective.key_encoder.parameters(), strict=True):
            expected = MOMENTUM * key.double() + (1 - MOMENTUM) * online.double()
            ulp = 2.0**-23 * torch.maximum(key.abs(), online.abs()).double().clamp(min=2.0**-126)
            errors.append(float(((now.double() - expected).abs() / ulp).max()))
            moves.append(float((now - key).abs().max()))
        self.errors.append(max(errors))
        self.moves.append(max(moves))
        self.gradients += [p.grad is not None for p in self.frozen]


def worker(rank, root, folder, train_mode):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module, data = make(root, train_mode)
    look, before = Look(), hashes(module.objective.teacher)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy=_strategy(module.objective),
                         plugins=[TorchElasticEnvironment()], callbacks=[look], logger=False,
                         default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
                         log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(f"{folder}/run.ckpt")
    noted = {name: getattr(look, name) for name in ("errors", "moves", "gradients", "modes", "optimized", "reduced",
                                                    "learning", "bytes")}
    torch.save(noted | {"before": before, "after": hashes(module.objective.teacher),
                        "keys": [digest(p) for p in module.objective.key_encoder.parameters()],
                        "student": [(name, p.numel()) for name, p in module.student.named_parameters()]},
               f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[False, True], ids=["eval", "train mode"])
def run(request, benchmark_root, tmp_path_factory):
    """(whether the teacher was in train mode, what each process noted, the checkpoint)."""
    folder = tmp_path_factory.mktemp("frozen")
    start = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(worker, args=(str(benchmark_root), str(folder), request.param), nprocs=2, start_method=start)
    return (request.param, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)],
            torch.load(folder / "run.ckpt", weights_only=True))


def test_teacher_is_to_the_bit_what_it_was(run):
    """Statistics of BatchNorm too, unless the option of the published behaviour lets those drift."""
    train_mode, ranks, _ = run
    statistics = {name for name in ranks[0]["before"] if name.endswith(("_mean", "_var", "num_batches_tracked"))}
    assert statistics and statistics < set(ranks[0]["before"])
    for noted in ranks:
        changed = {name for name, value in noted["before"].items() if noted["after"][name] != value}
        assert changed == (statistics if train_mode else set())
        assert noted["modes"] == [train_mode] * STEPS


def test_only_the_student_learns(run):
    """The optimizer and the buckets of gradients hold its parameters, and nothing of teacher and momentum encoder."""
    for noted in run[1]:
        names = [f"student.{name}" for name, _ in noted["student"]]
        assert noted["optimized"] == noted["reduced"] == noted["learning"] == names
        assert noted["bytes"] == 4 * sum(count for _, count in noted["student"])
        assert not any(noted["gradients"])


def test_checkpoint_has_nothing_of_the_teacher(run):
    _, ranks, checkpoint = run
    state = checkpoint["state_dict"]
    parts = {".".join(key.split(".")[:2 if key.startswith("objective") else 1]) for key in state}
    assert parts == {"student", "objective.key_encoder", "objective.student_queue", "objective.teacher_queue"}
    weights = {ranks[0]["before"][name] for name in ("network.trunk.conv1.0.weight", "network.fc.weight")}
    assert not weights & {digest(value) for value in state.values()}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(ranks[0]["student"])


def test_momentum_encoder_moves_by_its_rule_alone(run):
    """Each step to an ulp of the larger of θ_K and θ; the two processes hold the same."""
    _, ranks, _ = run
    for noted in ranks:
        assert len(noted["errors"]) == STEPS and max(noted["errors"]) <= 1
        assert noted["moves"][0] == 0 and min(noted["moves"][1:]) > 1e-4  # it starts as a copy
    assert ranks[0]["keys"] == ranks[1]["keys"]
