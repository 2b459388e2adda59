"""The Lightning module: validation against extraction, checkpoints, and losses that go wrong."""

import hashlib

import pytest
import pytorch_lightning as pl
import torch

from rdcd.augment.recipes import simclr
from rdcd.data.disc import open_benchmark
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract_descriptors
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.score import score_descriptors
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.models.weights import load_student
from rdcd.training.datamodule import DataModule, DataSettings
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD

SIZE = 32


def make(root, *, protocol=None, channels_last=False, device=None):
    """Return (module, data) of a tiny RDCD run on the benchmark at `root`."""
    protocol = protocol or Protocol()
    settings = DataSettings(root=str(root), size=SIZE, batch_size=8, workers=0)
    _, pictures, benchmark = settings.open(protocol)
    data = DataModule(pictures, simclr(SIZE, device=device), settings=settings, protocol=protocol, benchmark=benchmark,
                      validation_size=SIZE, seed=0)
    torch.manual_seed(0)
    guide = Teacher(Student(trunk="test_resnet", dim=None, kd_dim=12))
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=12)
    objective = RDCD(student, guide, queue_size=20)
    card = {"architecture": student.architecture, "preprocessing": {"size": SIZE}, "training": {"lr": 0.5}}
    module = CopyDetection(student=student, objective=objective, epochs=2, steps_per_epoch=3, global_batch=8,
                           card=card, optimization=Optimization(lr=0.5, warmup_epochs=1.0),
                           benchmark=benchmark, protocol=protocol, channels_last=channels_last)
    return module, data


def trainer(folder, *, epochs=1, callbacks=()):
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, default_root_dir=folder,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      num_sanity_val_steps=0, use_distributed_sampler=False, log_every_n_steps=1,
                      callbacks=list(callbacks))


def extracted(student, root):
    benchmark = open_benchmark(root)
    roles = (benchmark.queries, benchmark.references, benchmark.background)
    return [extract_descriptors(student, role, size=SIZE, workers=0)[0] for role in roles], benchmark.pairs


def expected_metrics(student, root, **options):
    descriptors, pairs = extracted(student, root)
    return [row.metrics for row in score_descriptors(*descriptors, pairs, **options)]


@pytest.mark.parametrize("name, value", [("algorithm", "lamb"), ("lr", "abc"), ("lr", -1.0),
                                         ("momentum", None), ("weight_decay", float("nan")),
                                         ("warmup_epochs", -1), ("clip", -0.1)])
def test_recipe_out_of_range_is_said(name, value):
    with pytest.raises(UserError, match=f"optimization.{name}="):
        Optimization(**{name: value})


@pytest.mark.parametrize("channels_last", [False, True])
def test_validation_is_extract_and_score(benchmark_root, tmp_path, channels_last, monkeypatch):
    """Descriptors are those of extraction but for rounding, on which the order of near ties, and so µAP, hangs: the
    metrics are those of the descriptors that validation had."""
    module, data = make(benchmark_root, channels_last=channels_last)
    scored = []

    def score(*descriptors, **options):
        scored.append(descriptors)
        return score_descriptors(*descriptors, **options)

    monkeypatch.setattr("rdcd.evaluation.score.score_descriptors", score)
    found = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    (*roles, pairs), = scored
    whole, expected_pairs = extracted(module.student, benchmark_root)
    assert pairs == expected_pairs
    for role, expected in zip(roles, whole, strict=True):
        assert role.names.tolist() == expected.names.tolist()
        assert role.vectors == pytest.approx(expected.vectors, abs=1e-6)
    plain, normalized = (row.metrics for row in score_descriptors(*roles, pairs))
    assert found == pytest.approx({"val/uAP": plain.uAP, "val/recall_at_p90": plain.recall_at_p90,
                                   "val/uAP_SN": normalized.uAP,
                                   "val/recall_at_p90_SN": normalized.recall_at_p90})


def test_validation_after_training_is_of_the_trained_weights_in_eval_mode(benchmark_root, tmp_path):
    module, data = make(benchmark_root)
    before = expected_metrics(make(benchmark_root)[0].student, benchmark_root)[1]
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    after = expected_metrics(module.student, benchmark_root)[1]
    assert run.callback_metrics["val/uAP_SN"].item() == pytest.approx(after.uAP)
    assert before != after


def test_validation_follows_the_protocol_and_reports_its_first_normalization(benchmark_root, tmp_path):
    norms, options = ["1.0[0,2]", None, "0.5[1,4]"], {"candidates": "global", "k": 3}
    module, data = make(benchmark_root, protocol=Protocol(score_norms=norms, **options))
    found = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    expected = expected_metrics(module.student, benchmark_root, score_norms=norms, **options)
    assert found["val/uAP_SN"] == pytest.approx(expected[0].uAP)
    assert found["val/uAP"] == pytest.approx(expected[1].uAP)


def test_unreadable_pictures_count_as_missing(damaged, tmp_path):
    root, _ = damaged("references", number=0)
    whole, pairs = extracted(make(root)[0].student, root)
    missing = whole[1].missing.tolist()
    query, reference = next((q, r) for q, r in pairs if r not in missing)
    (damaged_query,) = (root / "images" / "dev_queries").glob(f"{query}.*")
    damaged_query.write_text("no picture")
    module, data = make(root)
    found = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    descriptors, _ = extracted(module.student, root)
    assert [d.missing.tolist() for d in descriptors] == [[query], missing, []]
    rows = score_descriptors(*descriptors, pairs)
    assert found["val/uAP"] == pytest.approx(rows[0].metrics.uAP)
    assert found["val/uAP_SN"] == pytest.approx(rows[1].metrics.uAP)
    # the pair of a query that could not be read is missed, so not every pair can be found
    assert found["val/uAP"] <= 1 - 1 / len(pairs)


def test_loss_that_is_not_finite_stops_with_its_terms(benchmark_root, tmp_path):
    module, data = make(benchmark_root)
    with torch.no_grad():
        module.student.projector.weight.fill_(float("nan"))
    with pytest.raises(UserError) as said:
        trainer(tmp_path).fit(module, datamodule=data)
    for part in ("not finite at step 0", "contrastive nan", "relational 0", "trainer.optimization.lr",
                 "now 0.5", "trainer.optimization.warmup_epochs"):
        assert part in str(said.value)


@pytest.fixture(scope="module")
def trained(benchmark_root, tmp_path_factory):
    """A run of one epoch, three steps of eight pictures: (module, its checkpoint)."""
    folder = tmp_path_factory.mktemp("trained")
    module, data = make(benchmark_root)
    run = trainer(folder)
    run.fit(module, datamodule=data)
    run.save_checkpoint(folder / "last.ckpt")
    return module, folder / "last.ckpt"


def test_checkpoint_holds_the_run_and_its_card(trained):
    module, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["card"] == module.card | {"training": module.card["training"] | {"steps_done": 3}}
    state = checkpoint["state_dict"]
    assert {".".join(key.split(".")[:2]) for key in state if key.startswith("objective.")} == {
        "objective.key_encoder", "objective.student_queue", "objective.teacher_queue"}
    assert {key.split(".")[0] for key in state} == {"student", "objective"}
    for queue, dim in (("student_queue", 6), ("teacher_queue", 12)):
        assert state[f"objective.{queue}.features"].shape == (20, dim)
        assert state[f"objective.{queue}.pointer"] == 24 % 20 and state[f"objective.{queue}.filled"] == 20
    student, card = load_student(path)
    trained_state = module.student.state_dict()
    assert all(torch.equal(value, trained_state[key]) for key, value in student.state_dict().items())
    assert card["architecture"] == module.student.architecture


def test_checkpoint_holds_nothing_of_the_teacher(trained):
    module, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key and "teacher_queue" not in key]

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                yield from tensors(item)

    def hashed(values):
        return {hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest() for v in values
                if v.unique().numel() > 2}  # BN starts as zeros and ones everywhere

    kept, teacher = list(tensors(checkpoint)), module.objective.teacher.state_dict()
    assert len(hashed(teacher.values())) > 10 and not hashed(kept) & hashed(teacher.values())
    convolution = max((v for v in teacher.values()), key=torch.numel)
    assert convolution.shape not in {v.shape for v in kept}
    optimizer = checkpoint["optimizer_states"][0]
    stepped = [number for group in optimizer["param_groups"] for number in group["params"]]
    assert len(optimizer["state"]) == len(stepped) == len(list(module.student.parameters()))


def test_teacher_is_as_before_the_run(trained, digest, benchmark_root):
    module, _ = trained
    assert digest(module.objective.teacher) == digest(make(benchmark_root)[0].objective.teacher)


def test_learning_rate_follows_the_steps_of_the_run(benchmark_root, tmp_path):
    module, data = make(benchmark_root)
    rates = []

    class Note(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer(tmp_path, epochs=2, callbacks=[Note()]).fit(module, datamodule=data)
    peak = 0.5 * 8 / 256
    assert rates == pytest.approx([0, peak / 3, 2 * peak / 3, peak, 0.75 * peak, 0.25 * peak])


def test_edits_left_to_the_device_are_done_before_the_networks_see_views(benchmark_root, tmp_path):
    seen = {}

    class Spy(pl.Callback):
        def __init__(self, name):
            self.name = name

        def on_train_batch_start(self, trainer, module, batch, number):
            self.left = {name: value.clone() for name, value in batch.items() if name.endswith("_edits")}

        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            assert set(batch) == {"query", "key", "index", "bad"}
            seen.setdefault(self.name, []).append((batch["query"].float(), self.left))

    for device in (None, "cpu"):
        module, data = make(benchmark_root, device=device)
        trainer(tmp_path / str(device), callbacks=[Spy(device)]).fit(module, datamodule=data)
    for (workers, none), (ours, left) in zip(seen[None], seen["cpu"], strict=True):
        assert not none and left["query_edits"].any()
        assert (workers - ours).abs().mean() < 2


def test_edits_on_a_gpu_that_is_not_there_are_refused(benchmark_root):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="augment.device=cuda and no GPU"):
        make(benchmark_root, device="cuda")
