"""From settings to a run folder: the teacher, the student, the table and the page (`rdcd train`)."""

import logging
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rdcd import provenance
from rdcd.data.disc import Benchmark
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import share_cores
from rdcd.data.views import Augment, EpochSampler
from rdcd.errors import UserError, check_number
from rdcd.evaluation.evaluate import RUNS, evaluate_run, find_run
from rdcd.evaluation.extract import default_device
from rdcd.evaluation.protocols import Protocol
from rdcd.files import check_output, sha256, write_json, write_text
from rdcd.models.student import Student, parameter_count
from rdcd.models.teacher import Teacher
from rdcd.models.weights import extend_card, load_student, read_checkpoint, save_student
from rdcd.training.checkpoints import AtomicCheckpointIO, check_resumable
from rdcd.training.console import Console, Ledger
from rdcd.training.datamodule import DataModule, DataSettings
from rdcd.training.module import CopyDetection, Optimization

LICENCE = "of the training pictures and the teacher's weights"
__all__ = ["TrainerSettings", "TeacherFile", "TrainedHere", "find_run", "train"]


@dataclass(frozen=True)
class TrainerSettings:
    """Length and numerics of a run.

    Args:
        epochs: passes over the training pictures.
        optimization: learning rate and its like.
        validate_every: epochs between validations; 0: none.
        log_every: steps between log lines.
        precision: Lightning's, `32-true`, `bf16-mixed` or `16-mixed`.
        accelerator: Lightning's, `auto`, `cpu` or `gpu`.
        channels_last: memory format; None: on, but off for FastViT on a CPU, whose backward crashes torch there.
        threads: torch's compute threads on a CPU; None: half the cores, loader workers have the others.
    """

    epochs: int = 100
    optimization: Optimization = field(default_factory=Optimization)
    validate_every: int = 5
    log_every: int = 10
    precision: str = "32-true"
    accelerator: str = "auto"
    channels_last: bool | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_number("trainer.epochs", self.epochs, 1)
        check_number("trainer.validate_every", self.validate_every, 0)
        check_number("trainer.log_every", self.log_every, 1)
        check_number("trainer.threads", self.threads, 1, null="half the cores")


@dataclass(frozen=True)
class TeacherFile:
    """A teacher whose weights are on disk: the `student.safetensors` of an earlier run, with its card."""

    path: str

    def weights(self) -> Path:
        """Return the weights file; a run folder stands for its student."""
        path = Path(self.path)
        return path / "student.safetensors" if path.is_dir() else path


@dataclass(frozen=True)
class TrainedHere:
    """A teacher that is trained first, on the same pictures, into `RUN/teacher`.

    Args:
        student: makes the network (a teacher is a student without projector).
        loss: makes its objective from (network, None).
        trainer: its recipe.
        batch_size: pictures a step on one device.
    """

    student: Callable[[], Student]
    loss: Callable[..., torch.nn.Module]
    trainer: TrainerSettings
    batch_size: int = 256


def no_teacher() -> None:
    """Return None: the choice `teacher=none` of the command line."""


@dataclass(frozen=True)
class _Run:
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


def train(*, student: partial, loss: Callable[..., torch.nn.Module], data: DataSettings, augment: Augment,
          protocol: Protocol, trainer: TrainerSettings, teacher: TeacherFile | TrainedHere | None = None,
          logger: dict[str, Callable[..., Logger]] | None = None, seed: int = 0, name: str = "run",
          run_dir: str | None = None, resume: str | None = None, baselines: list[str] | None = None) -> Path:
    """Train a student and measure it; return the run folder.

    Args:
        student: makes the network, `functools.partial(Student, …)`; `kd_dim=None` follows the teacher.
        loss: makes the objective from (student, teacher).
        data: pictures and batches.
        augment: recipe of the training views.
        protocol: how validation and the closing table measure.
        trainer: length and numerics.
        teacher: where the teacher comes from; None for objectives without one.
        logger: name → callable that makes a Lightning logger from `save_dir`.
        seed: of weights, order and views.
        name: ends the run folder's name.
        run_dir: the run folder; None: a new one under `runs/`.
        resume: a run folder (`latest` for the newest) to continue from its last checkpoint.
        baselines: further rows of the table, such as `thumbnail`.

    Raises:
        UserError: settings that cannot work, each said.
    """
    check_number("seed", seed, 0, 2**32 - 1)
    started = time.monotonic()
    share_cores(_device(trainer), threads=trainer.threads)
    folder = find_run(resume) if resume else _new_folder(run_dir, name)
    root, pictures, benchmark = data.open(protocol)
    folder.mkdir(parents=True, exist_ok=True)
    config = provenance.run_config()
    if config:
        _keep_config(folder / "config.yaml", config)
    print(f"run folder: {folder}", flush=True)
    if benchmark is None:
        print(f"{root} is a folder of pictures without queries and ground truth: no validation, no table")
    run = _Run(folder, seed, root, pictures, benchmark, augment, protocol, logger or {}, bool(resume))

    models: dict[str, str] = {}
    guide, guide_path = None, None
    if isinstance(teacher, TrainedHere):  # what is wrong with the second stage shows before the first
        rehearsal = Teacher(_make_student(teacher.student, None))
        loss(_make_student(student, rehearsal), rehearsal)
        EpochSampler(len(pictures), batch_size=data.batch_size)
    if teacher is not None:
        guide_path = teacher.weights() if isinstance(teacher, TeacherFile) else _train_teacher(run, teacher, data)
        network, _ = load_student(guide_path)
        guide = Teacher(network)
    _seed(seed)
    made = _make_student(student, guide)
    size = protocol.size or data.test_size or data.size
    untrained = save_student(folder / "untrained.safetensors", made, size=size, resize=protocol.resize or "square",
                             card={"training": {"seed": seed, "steps": 0}, "licence": LICENCE,
                                   "provenance": provenance.provenance(seed=seed, device=_device(trainer))})
    objective = loss(made, guide)
    weights = _fit(run, folder, made, objective, trainer, data, label="student", size=size,
                   card={"teacher_sha256": sha256(guide_path) if guide_path else None})
    models["student"] = weights.name
    if guide_path:
        inside = guide_path.resolve().is_relative_to(folder.resolve())
        models["teacher"] = str(guide_path.resolve().relative_to(folder.resolve()) if inside else guide_path.resolve())
    models["student untrained"] = untrained.name
    models |= {baseline: baseline for baseline in baselines or []}
    write_json(folder / "run.json", {"models": models, "data_root": str(root.resolve()), "seed": seed, "name": name})
    if benchmark is not None:
        rows = evaluate_run(folder, out=folder, benchmark=benchmark, protocol=protocol, workers=data.worker_count,
                            device=_device(trainer))
        extend_card(weights, thresholds=[
            {"codec": row["codec"], "score_norm": row["score_norm"], "precision": 0.9, "recall": row["recall_at_p90"],
             "threshold": row["threshold_at_p90"], "benchmark": str(root), "protocol": protocol.name}
            for row in rows if row["model"] == "student"])
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"done in {minutes} min {seconds} s: {folder}")
    return folder


def _keep_config(path: Path, config: dict) -> None:
    """Write the configuration; of a resumed run, only where it changed, so that the next resume knows."""
    if path.is_file():
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = config | {key: saved.get(key) for key in ("resume", "run_dir")}
        if config == saved:
            return
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _train_teacher(run: _Run, teacher: TrainedHere, data: DataSettings) -> Path:
    folder = run.folder / "teacher"
    weights = folder / "student.safetensors"
    if run.resume and weights.is_file() and weights.with_suffix(".json").is_file():
        return weights
    _seed(run.seed)
    network = _make_student(teacher.student, None)
    settings = DataSettings(**(vars(data) | {"batch_size": teacher.batch_size}))
    return _fit(run, folder, network, teacher.loss(network, None), teacher.trainer, settings, label="teacher",
                size=run.protocol.size or data.test_size or data.size, card={})


def _make_student(student: partial, guide: Teacher | None) -> Student:
    words = dict(student.keywords)
    if words.get("kd_dim") is None:
        words["kd_dim"] = guide.dim if guide else 512
    return student.func(*student.args, **words)


def _fit(run: _Run, folder: Path, student: Student, objective: torch.nn.Module, settings: TrainerSettings,
         data: DataSettings, *, label: str, size: int, card: dict) -> Path:
    """Train one network into `folder`; return its weights file."""
    modules = DataModule(run.pictures, run.augment, settings=data, protocol=run.protocol,
                         benchmark=run.benchmark if settings.validate_every else None, validation_size=size,
                         seed=run.seed)
    steps = len(modules.train_dataloader())
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
                           channels_last=_channels_last(settings, student))
    last = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False,
                           save_on_train_epoch_end=True)  # else only where validation ran
    callbacks = [Console(label, global_batch=data.batch_size), Ledger(folder / "bad_files.csv")]
    if modules.benchmark is not None:
        monitor = "val/uAP_SN" if any(run.protocol.score_norms) else "val/uAP"
        callbacks.append(ModelCheckpoint(folder / "checkpoints", filename="best", monitor=monitor, mode="max",
                                         enable_version_counter=False))
    callbacks.append(last)  # after the best, whose score it keeps
    _quiet()
    try:
        lightning = pl.Trainer(
            plugins=[AtomicCheckpointIO()], max_epochs=settings.epochs,
            accelerator=settings.accelerator, devices=1, precision=settings.precision,
            gradient_clip_val=settings.optimization.clip,
            logger=[make(save_dir=folder / "logs") for make in run.logger.values()], callbacks=callbacks,
            log_every_n_steps=min(settings.log_every, steps), check_val_every_n_epoch=settings.validate_every or 1,
            num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False)
    except (ValueError, MisconfigurationException) as error:  # Lightning's refusals name the choices
        raise UserError(f"trainer.precision={settings.precision}, trainer.accelerator={settings.accelerator}: "
                        f"{error}") from error
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if resuming := run.resume and checkpoint.is_file():
        check_resumable(read_checkpoint(checkpoint), module, path=checkpoint)
        print(f"{label}: continuing from {checkpoint}")
    try:
        lightning.fit(module, datamodule=modules, ckpt_path=str(checkpoint) if resuming else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    return save_student(folder / "student.safetensors", student, size=size, resize=run.protocol.resize or "square",
                        card={k: v for k, v in card.items() if k in ("training", "licence")}
                        | {"provenance": provenance.provenance(seed=run.seed, protocol=run.protocol.name,
                                                      device=_device(settings))})


def _channels_last(settings: TrainerSettings, student: Student) -> bool:
    if settings.channels_last is not None:
        return settings.channels_last
    return not (_device(settings) == "cpu" and student.architecture["trunk"].startswith("fastvit"))


def _device(settings: TrainerSettings) -> str:
    return "cpu" if settings.accelerator == "cpu" else default_device()


def _quiet() -> None:
    """Silence what Lightning says to everyone: advertisements, absent accelerators, its own deprecations."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _new_folder(run_dir: str | None, name: str) -> Path:
    """Choose the run folder; one that holds a run already is refused, an unnamed one gets a fresh name."""
    if "/" in name:
        raise UserError(f"name={name}: expected a name without slashes, it ends the run folder's; run_dir=DIR names "
                        f"another folder")
    wanted = Path(run_dir) if run_dir else RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    check_output(wanted, folder=True)
    folder, tries = wanted, 1
    while folder.exists() and any(folder.iterdir()):
        if run_dir:
            raise UserError(f"run_dir={run_dir} is not empty: continue it with resume={run_dir}, or name another "
                            f"folder")
        tries += 1
        folder = wanted.with_name(f"{wanted.name}-{tries}")
    return folder
