"""From settings to a run folder: the teacher, the student, the table and the page (`rdcd train`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import yaml
from pytorch_lightning.loggers import Logger

from rdcd import provenance
from rdcd.data.images import reads_images
from rdcd.data.parallel import share_cores
from rdcd.data.views import Augment, EpochSampler
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.evaluate import evaluate_run
from rdcd.evaluation.networks import is_named, load_network
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.runs import RUNS, find_run
from rdcd.files import check_output, sha256, write_json, write_text
from rdcd.models.student import Student, check_size
from rdcd.models.teacher import Teacher
from rdcd.models.weights import extend_card, load_student, save_student
from rdcd.models.zoo import ZooTeacher
from rdcd.training import collectives
from rdcd.training.datamodule import DataSettings
from rdcd.training.fit import LICENCE, Run, TrainerSettings, device_of, fit, seed_all
from rdcd.training.mixing import check_pairs
from rdcd.training.objectives import RDCD, SSCD

__all__ = ["TrainerSettings", "TeacherFile", "TrainedHere", "find_run", "train"]


@dataclass(frozen=True)
class TeacherFile:
    """A teacher whose weights are on disk: the `student.safetensors` of an earlier run, with its card."""

    path: str

    def __post_init__(self) -> None:
        check_path("teacher.path", self.path)

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
        batch_size: pictures a step, over all devices.
    """

    student: Callable[[], Student]
    loss: Callable[..., torch.nn.Module]
    trainer: TrainerSettings
    batch_size: int = 256


def no_teacher() -> None:
    """Return None: the choice `teacher=none` of the command line."""


def no_student(*, trunk: str, dim: str) -> None:
    """Return None: the choice `student=none` of the command line; its keys are for the run's name alone."""


@reads_images
def train(*, student: partial | None, loss: Callable[..., torch.nn.Module], data: DataSettings, augment: Augment,
          protocol: Protocol, trainer: TrainerSettings, teacher: TeacherFile | TrainedHere | ZooTeacher | None = None,
          logger: dict[str, Callable[..., Logger]] | None = None, seed: int = 0, name: str = "run",
          run_dir: str | None = None, resume: str | None = None, baselines: list[str] | None = None,
          replay: str | None = None) -> Path:
    """Train a student and measure it; return the run folder.

    Args:
        student: makes the network, `functools.partial(Student, …)`; `kd_dim=None` follows the teacher. None: nothing
            is trained, the teacher is measured.
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
        resume: a run folder (`latest` for the newest) to continue from its latest sound checkpoint; `auto`: `run_dir`,
            which is begun anew where it holds no run yet.
        baselines: further rows of the table: `untrained`, the student as it began, or a name that `load_network` takes.
        replay: a `nonfinite-….pt` of the run that `resume` names: only compute that step again and say where it goes
            wrong.

    Raises:
        UserError: settings that cannot work, each said.
    """
    check_number("seed", seed, 0, 2**32 - 1)
    started = time.monotonic()
    device = device_of(trainer)
    collectives.start(devices=trainer.devices, nodes=trainer.nodes, device=device)
    share_cores(device, threads=trainer.threads)
    if student is None and teacher is None:
        raise UserError("student=none and teacher=none leave nothing to train or measure: choose one of them")
    allow_torchscript = getattr(teacher, "allow_torchscript", False)
    rows_beside = _baselines(baselines, allow_torchscript=allow_torchscript)
    check_path("run_dir", run_dir, null="a new folder under runs/")
    check_path("resume", resume, null="a new run")
    check_path("replay", replay, null="training")
    if replay and not (resume and Path(replay).is_file()):
        raise UserError(f"replay={replay}: expected a nonfinite-….pt of a run, together with resume=RUN")
    folder, resuming = collectives.first_does(lambda: _choose_folder(run_dir, resume, name))
    root, pictures, benchmark = data.open(protocol)
    if benchmark is None and student is None:
        raise UserError(f"student=none measures the teacher, and data.root={root} is a folder of pictures without "
                        f"queries and ground truth: give a benchmark")
    guide = None if teacher is None or isinstance(teacher, TrainedHere) else _open_teacher(teacher)
    if student is not None:
        _rehearse(student, loss, data, protocol, teacher, guide, pictures=len(pictures))
    folder.mkdir(parents=True, exist_ok=True)
    config = provenance.run_config()
    if config and not collectives.rank():
        _keep_config(folder / "config.yaml", config)
    print(f"run folder: {folder}", flush=True)
    if benchmark is None:
        print(f"{root} is a folder of pictures without queries and ground truth: no validation, no table")
    run = Run(folder, seed, root, pictures, benchmark, augment, protocol, logger or {}, resuming,
              replay and Path(replay))

    if isinstance(teacher, TrainedHere):
        weights = _train_teacher(run, teacher, data)
        if replay and not weights.is_file():
            return folder
        guide = _guide_from(weights, folder)
    models: dict[str, str] = {}
    if student is not None:
        models = _train_student(run, student, loss, data, trainer, guide, untrained="untrained" in rows_beside)
    if replay:
        return folder
    if guide:
        models.setdefault("teacher", guide.model)
    models |= {name: model for name, model in rows_beside.items() if name != "untrained"}
    if collectives.rank():  # the first process measures
        collectives.stop()
        return folder
    write_json(folder / "run.json", {"models": models, "data_root": str(root.resolve()), "seed": seed, "name": name})
    if benchmark is not None:
        rows = evaluate_run(folder, out=folder, benchmark=benchmark, protocol=protocol, workers=data.worker_count,
                            device=device, allow_torchscript=allow_torchscript, max_bad_share=data.max_bad_share)
        if student is not None:
            extend_card(folder / models["student"], thresholds=[
                {"codec": row["codec"], "score_norm": row["score_norm"], "precision": 0.9,
                 "recall": row["recall_at_p90"], "threshold": row["threshold_at_p90"], "benchmark": str(root),
                 "protocol": protocol.name} for row in rows if row["model"] == "student"])
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"done in {minutes} min {seconds} s: {folder}")
    collectives.stop()
    return folder


def _baselines(baselines: list[str] | str | None, *, allow_torchscript: bool) -> dict[str, str]:
    """Return name → model of further rows of the table, each loaded once: a mistake shows before the training."""
    found = {}
    for model in [baselines] if isinstance(baselines, str) else baselines or []:
        check_path("baselines", model)
        name = str(model)
        if name != "untrained" and not is_named(name):
            model, name = Path(name).resolve(), Path(name).stem
            if name in ("student", "teacher", "untrained", *found):
                name = str(model)
        if name != "untrained":
            load_network(model, allow_torchscript=allow_torchscript)
        found[name] = str(model)
    return found


@dataclass(frozen=True)
class _Guide:
    """A teacher in place: the frozen network, the hash of its weights, and how run.json names it."""

    teacher: Teacher
    sha256: str
    model: str


def _open_teacher(teacher: TeacherFile | ZooTeacher) -> _Guide:
    if isinstance(teacher, TeacherFile):
        return _guide_from(teacher.weights())
    network, card = teacher.load()
    return _Guide(Teacher(network), card["weights_sha256"], f"{teacher.name}:{teacher.weights().resolve()}")


def _guide_from(weights: Path, folder: Path | None = None) -> _Guide:
    """Return the teacher of a weights file, which run.json names from the run's `folder` where it lies below that."""
    network, _ = load_student(weights)
    path = weights.resolve()
    inside = folder is not None and path.is_relative_to(folder.resolve())
    return _Guide(Teacher(network), sha256(path), str(path.relative_to(folder.resolve()) if inside else path))


def _rehearse(student: partial, loss: Callable[..., torch.nn.Module], data: DataSettings, protocol: Protocol,
              teacher: TeacherFile | TrainedHere | ZooTeacher | None, guide: _Guide | None, *, pictures: int) -> None:
    """Make the networks and the objective once, for the mistakes to show before there is a run."""
    network, share = guide and guide.teacher, data.share
    if isinstance(teacher, TrainedHere):
        before = _make_student(teacher.student, None)
        _check_mixing(teacher.loss(before, None), replace(data, batch_size=teacher.batch_size).share)
        network = Teacher(before)
    made = _make_student(student, network)
    _check_mixing(loss(made, network), share)
    check_size(made, data.size, name=made.architecture["trunk"], key="data.size")
    size, key = (protocol.size, "protocol.size") if protocol.size else (data.test_size or data.size, "data.test_size")
    check_size(made, size, name=made.architecture["trunk"], key=key)
    EpochSampler(pictures, batch_size=share, world_size=collectives.world_size())


def _check_mixing(objective: torch.nn.Module, share: int) -> None:
    if isinstance(objective, SSCD) and objective.mixing["probability"]:
        check_pairs(share, ranks=collectives.world_size())


def _train_student(run: Run, student: partial, loss: Callable[..., torch.nn.Module], data: DataSettings,
                   trainer: TrainerSettings, guide: _Guide | None, *, untrained: bool) -> dict[str, str]:
    """Train the student of a run; return model name → file below the run folder."""
    seed_all(run.seed)
    teacher = guide and guide.teacher
    made = _make_student(student, teacher)
    size, resize = run.protocol.size or data.test_size or data.size, run.protocol.resize or "square"
    models = {"student": "student.safetensors"} | ({"teacher": guide.model} if guide else {})
    if untrained:
        models["student untrained"] = "untrained.safetensors"
        if not collectives.rank() and run.replay is None:
            save_student(run.folder / "untrained.safetensors", made, size=size, resize=resize,
                         card={"training": {"seed": run.seed, "steps": 0}, "licence": LICENCE,
                               "provenance": provenance.provenance(seed=run.seed, device=device_of(trainer))})
    objective = loss(made, teacher)
    if isinstance(objective, RDCD) and not objective.contrastive_weight and made.projector is not None:
        print(f"note: nothing trains the projector to {made.dim} numbers, which stays random: the relational term ends "
              f"before it; student.dim=null leaves it out")
    fit(run, run.folder, made, objective, trainer, data, label="student", size=size,
         card={"teacher_sha256": guide and guide.sha256})
    return models


def _keep_config(path: Path, config: dict) -> None:
    """Write the configuration; of a resumed run, only where it changed, so that the next resume knows."""
    if path.is_file():
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = config | {key: saved.get(key) for key in ("resume", "run_dir", "replay")}
        if config == saved:
            return
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _train_teacher(run: Run, teacher: TrainedHere, data: DataSettings) -> Path:
    folder = run.folder / "teacher"
    weights = folder / "student.safetensors"
    if run.resume and weights.is_file() and weights.with_suffix(".json").is_file():
        return weights
    seed_all(run.seed)
    network = _make_student(teacher.student, None)
    settings = DataSettings(**(vars(data) | {"batch_size": teacher.batch_size}))
    return fit(run, folder, network, teacher.loss(network, None), teacher.trainer, settings, label="teacher",
                size=run.protocol.size or data.test_size or data.size, card={})


def _make_student(student: partial, guide: Teacher | None) -> Student:
    words = dict(student.keywords)
    if words.get("kd_dim") is None:
        words["kd_dim"] = guide.dim if guide else 512
    return student.func(*student.args, **words)


def _choose_folder(run_dir: str | None, resume: str | None, name: str) -> tuple[Path, bool]:
    """Return the run folder, and whether a run in it goes on."""
    if resume == "auto" and run_dir:
        folder = Path(run_dir)
        if any((folder / part).exists() for part in ("config.yaml", "run.json", "checkpoints", "logs", "teacher")):
            return folder, True
    elif resume:
        return find_run(resume), True
    return _new_folder(run_dir, name), False


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
