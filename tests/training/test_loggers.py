"""Other places for the logs: a real W&B, offline, and a real MLflow in a file; a run continued there is one run."""

import json
import os
import struct
from functools import partial
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient
from tiny_runs import VIEWS, Breaks, go, settings
from wandb.proto import wandb_internal_pb2

from rdcd.errors import UserError
from rdcd.training import loggers
from rdcd.training.launch import TeacherFile


@pytest.fixture
def options(plain_run):
    return {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(validate_every=0)}


def records(folder):
    """Yield what W&B's own file of an offline run holds: 7 bytes, then a log in LevelDB's format."""
    (path,) = folder.glob("*.wandb")
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4:at + 7])
        whole += content[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only part, or the last one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_weights_and_biases_offline(benchmark_root, options, tmp_path):
    make = {"wandb": partial(loggers.wandb, project="here")}
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", logger=make, augment=Breaks(VIEWS + 20), **options)
    run = go(benchmark_root, resume=str(tmp_path / "run"), logger=make, **options)
    steps, names, ids, codes = {}, set(), set(), []
    for folder in sorted((run / "logs" / "wandb").glob("offline-run-*")):
        for record in records(folder):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert (record.run.project, record.run.display_name) == ("here", "run")
            if record.HasField("exit"):
                codes.append(record.exit.exit_code)
            values = {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                      for item in record.history.item}
            if "train/loss" in values:
                steps[values["trainer/global_step"]] = values["train/loss"]
            names |= values.keys()
    assert ids == {(run / "logs" / "wandb-run").read_text().strip()}
    assert codes == [1, 0] and sorted(steps) == [0, 1, 2, 3, 4, 5] and {"train/positives", "train/queue_age"} <= names


def test_mlflow_in_a_file(benchmark_root, options, tmp_path):
    make = {"mlflow": partial(loggers.mlflow, project="here")}
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", logger=make, augment=Breaks(VIEWS + 20), **options)
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'logs' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'here'")
    assert [found.info.status for found in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    go(benchmark_root, resume=str(tmp_path / "run"), logger=make, **options)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert {point.step for point in client.get_metric_history(found.info.run_id, "train/loss")} == {0, 1, 2, 3, 4, 5}
    assert found.data.params["batch_size"] == "8" and "train/gradient_norm" in found.data.metrics


def test_every_stage_has_a_file_of_its_own(tmp_path, monkeypatch):
    """Which MLflow's client is in the way of: it sets the variable that a user may set."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folders = [tmp_path / "run" / "teacher" / "logs", tmp_path / "run" / "logs"]
    for folder in folders:
        loggers.mlflow(save_dir=folder).log_metrics({"train/loss": 1.0}, 0)
        assert "MLFLOW_TRACKING_URI" not in os.environ
    for folder, name in zip(folders, ("run/teacher", "run"), strict=True):
        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'rdcd'")
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_name, found.info.run_id) == (name, (folder / "mlflow-run").read_text().strip())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    loggers.mlflow(save_dir=tmp_path / "other" / "logs")
    assert os.environ["MLFLOW_TRACKING_URI"].endswith("all.db")
    assert (tmp_path / "all.db").is_file() and not (tmp_path / "other" / "logs" / "mlflow.db").exists()


def test_a_server_that_is_gone_is_said_once_and_asked_again_later(tmp_path, monkeypatch, capsys):
    logger = loggers.mlflow(save_dir=tmp_path / "run" / "logs")
    clock, asked = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(loggers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("mlflow.tracking.MlflowClient.log_batch",
                        lambda *words, **named: asked.append(clock.now) or 1 / 0)
    for _ in range(8):
        logger.log_metrics({"train/loss": 1.0}, 0)
        clock.now += 100
    assert asked == [1000, 1300, 1600]
    assert capsys.readouterr().out == ("warning: MLflow did not take everything (division by zero); RUN/logs/csv has "
                                       "it\n")


@pytest.mark.parametrize(("name", "broken", "said"), [
    ("wandb", "wandb.init", "`wandb login`, or WANDB_MODE=offline"),
    ("mlflow", "mlflow.tracking.MlflowClient.create_run", "tracking_uri=sqlite:///.*mlflow.db must be a server")])
def test_a_run_that_cannot_be_begun_there_is_no_run_here(name, broken, said, benchmark_root, options, tmp_path,
                                                         monkeypatch):
    monkeypatch.setattr(broken, lambda *words, **named: 1 / 0)
    with pytest.raises(UserError, match=rf"logger={name}: no run could be begun there \(division by zero\); .*{said}"):
        go(benchmark_root, tmp_path / "run", logger={name: getattr(loggers, name)}, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"logger={name} needs the package {name}: pip install 'rdcd\[{name}\]'"):
        getattr(loggers, name)(save_dir=tmp_path)


def test_stages_have_names_of_their_own(tmp_path):
    assert loggers.stage_name(tmp_path / "x" / "logs") == "x"
    assert loggers.stage_name(tmp_path / "x" / "teacher" / "logs") == "x/teacher"
