"""One network trained into a folder: the Lightning trainer, its settings and callbacks."""

import logging
import random
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from rdcd import provenance
from rdcd.data.disc import Benchmark
from rdcd.data.manifest import Manifest
from rdcd.data.views import Augment, Pictures
from rdcd.errors import UserError, check_number
from rdcd.evaluation.extract import default_device
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student, parameter_count
from rdcd.models.weights import read_checkpoint, save_student
from rdcd.training import collectives
from rdcd.training.checkpoints import AtomicCheckpointIO, check_resumable, latest_sound
from rdcd.training.clock import Clock
from rdcd.training.console import BadFiles, Console
from rdcd.training.datamodule import DataModule, DataSettings
from rdcd.training.interruption import LastCheckpoint, Stopped
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.nonfinite import described
from rdcd.training.objectives import RDCD
from rdcd.training.summary import Closing
from rdcd.training.sync import SyncNorms
from rdcd.training.witness import Witness

LICENCE = "of the training pictures and the teacher's weights"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainerSettings:
    """Length and numerics of a run.

    Args:
        epochs: passes over the training pictures.
        optimization: learning rate and its like.
        validate_every: epochs between validations; 0: none.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints, beside those at the ends of epochs; 0: those alone.
        precision: `32-true`, or `bf16-mixed` or `16-mixed` for the networks; losses and norms are fp32 always.
        compile: networks through `torch.compile`, in place; a teacher that is TorchScript stays as it is.
        accumulate: parts that the student computes a batch in, for want of memory; the losses see it whole.
        accelerator: Lightning's, `auto`, `cpu` or `gpu`.
        channels_last: memory format; None: on, but off for FastViT on a CPU, whose backward crashes torch there.
        threads: torch's compute threads on a CPU; None: half the cores, loader workers have the others.
        devices: processes on each machine, as torchrun starts them, one a GPU.
        nodes: machines.
        sync_batchnorm: BatchNorm statistics over the GPUs of all processes; without GPUs each has its own.
        shuffle_bn: the key encoder's batch is shuffled over processes (docs/method.md §1), so that its BatchNorm sees
            keys beside other pictures than the student's sees queries; None: where BatchNorm does not span processes.
    """

    epochs: int = 100
    optimization: Optimization = field(default_factory=Optimization)
    validate_every: int = 5
    log_every: int = 10
    checkpoint_every: int = 1000
    precision: str = "32-true"
    compile: bool = False
    accumulate: int = 1
    accelerator: str = "auto"
    channels_last: bool | None = None
    threads: int | None = None
    devices: int = 1
    nodes: int = 1
    sync_batchnorm: bool = True
    shuffle_bn: bool | None = None

    def __post_init__(self) -> None:
        check_number("trainer.devices", self.devices, 1)
        check_number("trainer.nodes", self.nodes, 1)
        check_number("trainer.epochs", self.epochs, 1)
        check_number("trainer.validate_every", self.validate_every, 0)
        check_number("trainer.log_every", self.log_every, 1)
        check_number("trainer.checkpoint_every", self.checkpoint_every, 0)
        check_number("trainer.accumulate", self.accumulate, 1)
        if self.precision not in PRECISIONS:
            raise UserError(f"trainer.precision={self.precision}: expected one of {', '.join(PRECISIONS)}")
        if self.channels_last not in (None, True, False):
            raise UserError(f"trainer.channels_last={self.channels_last}: expected true or false, or null for where it "
                            f"is safe")
        if self.shuffle_bn not in (None, True, False):
            raise UserError(f"trainer.shuffle_bn={self.shuffle_bn}: expected true or false, or null for where "
                            f"trainer.sync_batchnorm is off or without GPUs")
        check_number("trainer.threads", self.threads, 1, null="half the cores")


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""

    folder: Path
    seed: int
    root: Path
    pictures: Manifest
    benchmark: Benchmark | None
    augment: Augment
    protocol: Protocol
    logger: dict[str, Callable[..., Logger]]
    resume: bool
    replay: Path | None = None


def fit(run: Run, folder: Path, student: Student, objective: torch.nn.Module, settings: TrainerSettings,
         data: DataSettings, *, label: str, size: int, card: dict) -> Path:
    """Train one network into `folder`; return its weights file. With `run.replay`, compute that step alone."""
    modules = DataModule(run.pictures, run.augment, settings=data, protocol=run.protocol,
                         benchmark=run.benchmark if settings.validate_every else None, validation_size=size,
                         seed=run.seed)
    steps = modules.sampler().steps
    print(f"{label}: {student.architecture['trunk']}, {parameter_count(student) / 1e6:.2f} M parameters, "
          f"{student.dim}-d; {len(run.pictures)} pictures, {settings.epochs} epochs of {steps} steps of "
          f"{data.batch_size}, {data.size} px", flush=True)
    about = {"label": label, "epochs": settings.epochs, "steps": settings.epochs * steps, "batch_size": data.batch_size,
             "view_size": data.size, "pictures": len(run.pictures), "lr": settings.optimization.lr, "seed": run.seed,
             "objective": type(objective).__name__}
    card = {"architecture": student.architecture, "training": about | card, "licence": LICENCE,
            "preprocessing": {"resize": run.protocol.resize or "square", "size": size}}
    module = CopyDetection(student=student, objective=objective, optimization=settings.optimization,
                           epochs=settings.epochs, steps_per_epoch=steps, global_batch=data.batch_size, card=card,
                           benchmark=modules.benchmark, protocol=run.protocol,
                           channels_last=_channels_last(settings, student), accumulate=settings.accumulate,
                           shuffle_seed=run.seed if shuffles(settings) else None)
    module.clock = Clock(device_of(settings))
    if settings.compile:
        module.compile_networks()
    if run.replay is not None:
        print(f"{label}: {described(run.replay, module=module)}")
        return folder / "student.safetensors"
    checkpoints, path, resize = folder / "checkpoints", folder / "student.safetensors", run.protocol.resize or "square"

    def save(path: Path) -> None:
        save_student(path, student, size=size, resize=resize,
                     card={k: v for k, v in card.items() if k in ("training", "licence")}
                     | {"provenance": provenance.provenance(seed=run.seed, protocol=run.protocol.name,
                                                            device=device_of(settings))})

    witness = Witness(path, save=save, pictures=Pictures(run.pictures, size=size))
    callbacks = [witness, Console(label, global_batch=data.batch_size),
                 BadFiles(folder, max_bad_share=data.max_bad_share, epoch=len(modules.sampler()),
                          rank=collectives.rank())]
    if modules.benchmark is not None:
        monitor = "val/uAP_SN" if any(run.protocol.score_norms) else "val/uAP"
        callbacks.append(ModelCheckpoint(checkpoints, filename="best", monitor=monitor, mode="max",
                                         enable_version_counter=False))
    callbacks += [LastCheckpoint(checkpoints, every=settings.checkpoint_every, run=run.folder),
                  Closing(label, global_batch=data.batch_size, folder=folder, seed=run.seed,
                          device=device_of(settings))]
    lightning = make_trainer(settings, objective, folder=folder, steps=steps, callbacks=callbacks,
                             logger=[make(save_dir=folder / "logs") for make in run.logger.values()])
    checkpoint = collectives.first_does(lambda: latest_sound(checkpoints)) if run.resume else None
    if checkpoint:
        check_resumable(read_checkpoint(checkpoint), module, path=checkpoint)
        print(f"{label}: continuing from {checkpoint}", flush=True)
    for logger in lightning.loggers:
        logger.log_hyperparams(provenance.run_config() or about)
    try:
        lightning.fit(module, datamodule=modules, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    except SIGTERMException:  # before the first step
        raise Stopped(signal.SIGTERM, step=lightning.global_step, run=run.folder) from None
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        if collectives.left_alone(error):
            raise collectives.LeftAlone(error) from None
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]  # of pages
        raise UserError(f"trainer.compile=true: torch could not compile the networks ({reason}); on a CPU it needs a "
                        f"C++ compiler such as g++: install one, or set false; TORCH_LOGS=+inductor says "
                        f"all") from error
    collectives.first_does(witness.write)
    return path


def make_trainer(settings: TrainerSettings, objective: torch.nn.Module, *, folder: Path, steps: int,
                 callbacks: list[pl.Callback], logger: list[Logger]) -> pl.Trainer:
    """Return the Lightning trainer of a run.

    Args:
        objective: what it is to train.
        folder: where the run leaves its files.
        steps: of an epoch.

    Raises:
        UserError: an accelerator that is not there.
    """
    _quiet()
    precision = {"precision": settings.precision}
    environment = TorchElasticEnvironment() if collectives.world_size() > 1 else LightningEnvironment()
    plugins: list = [AtomicCheckpointIO(), environment]  # named, as Lightning would guess it, from SLURM's for one
    if settings.precision == "16-mixed":  # by itself, Lightning would take bf16 on a CPU
        precision, plugins = {}, [*plugins, MixedPrecision("16-mixed", device_of(settings))]
    if spans_processes(settings):
        plugins.append(SyncNorms())
    try:
        trainer = pl.Trainer(
            plugins=plugins, max_epochs=settings.epochs, default_root_dir=folder, **precision,
            accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.nodes,
            strategy=_strategy(objective), gradient_clip_val=settings.optimization.clip, logger=logger,
            callbacks=callbacks, log_every_n_steps=min(settings.log_every, steps),
            check_val_every_n_epoch=settings.validate_every or 1, num_sanity_val_steps=0, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False)
    except (ValueError, MisconfigurationException) as error:  # Lightning's refusals name the choices
        raise UserError(f"trainer.accelerator={settings.accelerator}: {error}") from error
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # `LastCheckpoint` does it without waiting
    return trainer


def _strategy(objective: torch.nn.Module) -> str | DDPStrategy:
    """Return Lightning's strategy: with several processes, queues and statistics stay each one's own, equal copies."""
    if collectives.world_size() == 1:
        return "auto"
    idle = isinstance(objective, RDCD) and not objective.contrastive_weight  # nothing reaches the projector
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=idle)


def _channels_last(settings: TrainerSettings, student: Student) -> bool:
    if settings.channels_last is not None:
        return settings.channels_last
    return not (device_of(settings) == "cpu" and student.architecture["trunk"].startswith("fastvit"))


def spans_processes(settings: TrainerSettings) -> bool:
    """Whether BatchNorm takes its statistics over all processes."""
    return settings.sync_batchnorm and device_of(settings) == "cuda"


def shuffles(settings: TrainerSettings) -> bool:
    """Whether the key encoder's batch is shuffled over processes, if there are several."""
    return not spans_processes(settings) if settings.shuffle_bn is None else settings.shuffle_bn


def device_of(settings: TrainerSettings) -> str:
    """Return `cpu` or `cuda`, whichever a run with these settings computes on."""
    return "cpu" if settings.accelerator == "cpu" else default_device()


def _quiet() -> None:
    """Silence what Lightning says to everyone: advertisements, absent accelerators, its own deprecations."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
