"""Other places for the logs, one word each on the command line: Weights & Biases, MLflow."""

import os
import secrets
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from rdcd.errors import UserError
from rdcd.files import write_text
from rdcd.training import collectives

Result = TypeVar("Result")


def wandb(*, save_dir: Path, project: str = "rdcd") -> WandbLogger:
    """Return a logger to Weights & Biases, which its own settings steer: a login, or WANDB_MODE=offline.

    Only numbers and settings leave this machine, never weights. A resumed run goes on as the same run there.

    Args:
        save_dir: the folder `logs` of a stage.
        project: name of the project there.

    Raises:
        UserError: the package is not installed, or the service does not take the run.
    """
    _need("wandb")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    logger = StageWandbLogger(save_dir=save_dir, project=project, name=stage_name(save_dir), resume="allow",
                              log_model=False, id=_kept(save_dir / "wandb-run", lambda: secrets.token_hex(4)))
    _begin("wandb", lambda: logger.experiment, remedy="`wandb login`, or WANDB_MODE=offline")
    return logger


def mlflow(*, save_dir: Path, project: str = "rdcd", tracking_uri: str | None = None) -> Logger:
    """Return a logger to MLflow. A resumed run goes on as the same run there.

    Args:
        save_dir: the folder `logs` of a stage.
        project: name of the experiment there.
        tracking_uri: the server; None: MLFLOW_TRACKING_URI, or the SQLite file `save_dir`/mlflow.db.

    Raises:
        UserError: the package is not installed, or the server does not take the run.
    """
    _need("mlflow")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing but the run's numbers, and only where they go
    if collectives.rank():  # the first process writes
        return DummyLogger()
    save_dir.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{save_dir.resolve() / 'mlflow.db'}"
    kept = save_dir / "mlflow-run"

    def begin() -> SteadyMLFlowLogger:
        logger = SteadyMLFlowLogger(
            experiment_name=project, run_name=stage_name(save_dir), tracking_uri=uri,
            artifact_location=None if uri.startswith("http") else (save_dir / "mlflow-artifacts").resolve().as_uri(),
            run_id=kept.read_text(encoding="utf-8").strip() if kept.is_file() else None)
        _kept(kept, lambda: logger.run_id)
        return logger

    return _begin("mlflow", begin, remedy=f"logger.mlflow.tracking_uri={uri} must be a server that answers, or null")


class StageWandbLogger(WandbLogger):
    """A W&B logger whose run ends with its stage: the next one in this process, a student's, has its own."""

    def finalize(self, status: str) -> None:
        """End the run; of an interrupted one Lightning says twice how it ended, first rightly."""
        super().finalize(status)
        if self._experiment is not None and not collectives.rank():
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


class SteadyMLFlowLogger(MLFlowLogger):
    """An MLflow logger whose server may go away: what it misses is said once, and is in the other logs."""

    said = ended = False

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Send numbers."""
        self._try(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: dict) -> None:
        """Send settings; those that a resumed run has changed are refused there and said here."""
        self._try(super().log_hyperparams, params)

    def finalize(self, status: str = "success") -> None:
        """Say that the run has ended; of an interrupted one Lightning says twice how, first rightly."""
        if not self.ended:
            self._try(super().finalize, status)
        self.ended = True

    def _try(self, send: Callable, *what: object) -> None:
        try:
            send(*what)
        except Exception as error:  # of the client, of the server, of the network
            if not self.said:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                print(f"warning: MLflow did not take everything ({reason}); RUN/logs/csv has it", flush=True)
            self.said = True


def stage_name(save_dir: Path) -> str:
    """Return what tells stages apart: the run folder's name, or NAME/teacher, of a folder `logs`."""
    folder = save_dir.resolve().parent
    return f"{folder.parent.name}/{folder.name}" if folder.name == "teacher" else folder.name


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"logger={package} needs the package {package}: pip install 'rdcd[{package}]'")


def _begin(name: str, begin: Callable[[], Result], *, remedy: str) -> Result:
    """Begin a run elsewhere before anything is trained."""
    try:
        return begin()
    except Exception as error:  # of their clients, of the network
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"logger={name}: no run could be begun there ({reason}); {remedy}") from error


def _kept(path: Path, make: Callable[[], str]) -> str:
    """Return the word in a file, which is made where there is none."""
    if not path.is_file():
        word = make()
        if collectives.rank():
            return word
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{word}\n")
    return path.read_text(encoding="utf-8").strip()
