"""Other places for the logs, one word each on the command line: Weights & Biases, MLflow."""

import os
import secrets
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from rdcd.errors import UserError
from rdcd.files import write_text
from rdcd.training import collectives

PAUSE = 300.0  # seconds that a server is left alone after it did not take numbers
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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 10 s: by default a step could wait many minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if collectives.rank():  # the first process writes
        return DummyLogger()
    save_dir.mkdir(parents=True, exist_ok=True)
    theirs = os.environ.get("MLFLOW_TRACKING_URI")
    uri = tracking_uri or theirs or f"sqlite:///{save_dir.resolve() / 'mlflow.db'}"
    kept = save_dir / "mlflow-run"

    def begin() -> SteadyMLFlowLogger:
        logger = SteadyMLFlowLogger(
            experiment_name=project, run_name=stage_name(save_dir), tracking_uri=uri,
            artifact_location=None if uri.startswith("http") else (save_dir / "mlflow-artifacts").resolve().as_uri(),
            run_id=kept.read_text(encoding="utf-8").strip() if kept.is_file() else None)
        try:
            logger.experiment  # looks for a run that was kept, too
        finally:  # the variable is set by this, and the next stage would take the file of this one for the user's wish
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            os.environ.update({} if theirs is None else {"MLFLOW_TRACKING_URI": theirs})
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
    again = 0.0  # when numbers are sent next

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Send numbers; none for a while after they did not arrive, as each attempt keeps training waiting."""
        if time.monotonic() >= self.again and not self._try(super().log_metrics, metrics, step):
            self.again = time.monotonic() + PAUSE

    def log_hyperparams(self, params: dict) -> None:
        """Send settings; those that a resumed run has changed are refused there and said here."""
        self._try(super().log_hyperparams, params)

    def finalize(self, status: str = "success") -> None:
        """Say that the run has ended; of an interrupted one Lightning says twice how, first rightly."""
        if not self.ended:
            self._try(super().finalize, status)
        self.ended = True

    def _try(self, send: Callable, *what: object) -> bool:
        try:
            send(*what)
            return True
        except Exception as error:  # of the client, of the server, of the network
            if not self.said:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                print(f"warning: MLflow did not take everything ({reason}); RUN/logs/csv has it", flush=True)
            self.said = True
            return False


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
