"""`train` called as a library: what a run folder holds, and that interrupted runs end like whole ones."""

import csv
import json
import shutil
from functools import partial

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file

from rdcd.augment.recipes import simclr
from rdcd.data.disc import open_benchmark
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract_descriptors
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.score import score_descriptors
from rdcd.files import sha256
from rdcd.models.student import Student
from rdcd.models.weights import load_student
from rdcd.training.datamodule import DataSettings
from rdcd.training.launch import TeacherFile, TrainedHere, TrainerSettings, train
from rdcd.training.module import Optimization
from rdcd.training.objectives import RDCD, SSCD

VIEWS = 2 * 24  # a stage and epoch: 24 pictures, two views each
RECIPE = simclr(32)


def settings(**changes):
    values = {"epochs": 2, "validate_every": 1, "log_every": 1, "accelerator": "cpu", "threads": 1,
              "optimization": Optimization(algorithm="adamw", lr=0.005, warmup_epochs=1.0)}
    return TrainerSettings(**values | changes)


def here(**changes):
    return TrainedHere(student=partial(Student, trunk="test_efficientnet", dim=None, kd_dim=12),
                       loss=partial(SSCD, entropy_weight=10.0), trainer=settings(**changes), batch_size=8)


def go(root, run_dir=None, *, data=None, **changes):
    """Train at the smallest scale that has every part."""
    data = DataSettings(**{"root": str(root), "size": 32, "batch_size": 8, "workers": 0} | (data or {}))
    values = {"student": partial(Student, trunk="test_efficientnet", dim=8, kd_dim=None),
              "loss": partial(RDCD, queue_size=40), "augment": RECIPE, "protocol": Protocol(), "trainer": settings(),
              "teacher": here(), "name": "tiny", "logger": {"csv": partial(CSVLogger, name="csv")}}
    return train(data=data, run_dir=run_dir and str(run_dir), **values | changes)


class Breaks:
    """A recipe after which the power fails, once `views` views are made."""

    def __init__(self, views, error=ZeroDivisionError):
        self.left, self.error = views, error

    def __call__(self, picture, rng):
        self.left -= 1
        if self.left < 0:
            raise self.error("the power failed")
        return RECIPE(picture, rng)


def rows(folder, name="metrics.csv"):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_weights(first, second, atol=1e-6):
    first, second = (load_file(folder / "student.safetensors") for folder in (first, second))
    return first.keys() == second.keys() and all(torch.allclose(first[k].float(), second[k].float(), atol=atol)
                                                 for k in first)


@pytest.fixture(scope="module")
def run(benchmark_root, tmp_path_factory):
    """A whole run: teacher, student, table, page."""
    return go(benchmark_root, tmp_path_factory.mktemp("runs") / "whole", baselines=["thumbnail"],
              protocol=Protocol(codecs=["Flat", "PCAW4,L2norm,Flat"]), seed=1,
              logger={"csv": partial(CSVLogger, name="csv"), "tensorboard": partial(TensorBoardLogger, name="tb")})


def test_run_folder_holds_everything(run):
    for name in ("run.json", "student.safetensors", "student.json", "untrained.safetensors", "untrained.json",
                 "teacher/student.safetensors", "teacher/student.json", "checkpoints/last.ckpt",
                 "checkpoints/best.ckpt", "teacher/checkpoints/last.ckpt", "metrics.csv", "metrics.json",
                 "report.html", "curves.png"):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("logs/csv/*/metrics.csv")) and list(run.glob("logs/tb/*/events.*"))
    assert list(run.glob("teacher/logs/csv/*/metrics.csv"))
    assert not (run / "config.yaml").exists()  # of the command line alone
    assert not (run / "bad_files.csv").exists() and not list(run.rglob("*.partial*"))
    with Image.open(run / "curves.png") as picture:
        picture.load()


def test_run_says_what_it_is(run, benchmark_root):
    about = json.loads((run / "run.json").read_text())
    assert about == {"models": {"student": "student.safetensors", "teacher": "teacher/student.safetensors",
                                "student untrained": "untrained.safetensors", "thumbnail": "thumbnail"},
                     "data_root": str(benchmark_root.resolve()), "seed": 1, "name": "tiny"}
    student, card = load_student(run / "student.safetensors")
    assert student.architecture["kd_dim"] == 12 and student.dim == 8  # kd_dim follows the teacher
    assert card["preprocessing"]["size"] == 32
    assert card["training"] == card["training"] | {
        "label": "student", "objective": "RDCD", "epochs": 2, "steps": 6, "batch_size": 8, "pictures": 24, "seed": 1,
        "lr": 0.005, "view_size": 32, "teacher_sha256": sha256(run / "teacher" / "student.safetensors")}
    assert {"command", "versions", "device", "git_commit", "seed"} <= card["provenance"].keys()
    _, card = load_student(run / "untrained.safetensors")
    assert card["training"] == {"seed": 1, "steps": 0}


def test_table_has_every_model_and_its_numbers_are_those_of_the_weights(run, benchmark_root):
    table = rows(run)
    assert list(table[0]) == ["model", "dim", "codec", "score_norm", "candidates", "uAP", "accuracy_at_1",
                              "recall_at_p90", "threshold_at_p90"]
    wanted = [(model, dim, codec, norm) for model, dim in (("student", "8"), ("teacher", "12"),
                                                           ("student untrained", "8"), ("thumbnail", "243"))
              for codec in ("Flat", "PCAW4,L2norm,Flat") for norm in ("None", "1.0[0,2]")]
    assert [(r["model"], r["dim"], r["codec"], r["score_norm"]) for r in table] == wanted
    record = json.loads((run / "metrics.json").read_text())
    assert [{k: str(v) for k, v in row.items()} for row in record["rows"]] == table
    assert record["provenance"]["seed"] == 1
    assert record["provenance"]["weights_sha256"] == {
        "student": sha256(run / "student.safetensors"), "teacher": sha256(run / "teacher/student.safetensors"),
        "student untrained": sha256(run / "untrained.safetensors")}

    benchmark = open_benchmark(benchmark_root)
    for name, file in (("student", "student"), ("teacher", "teacher/student"), ("student untrained", "untrained")):
        network, _ = load_student(run / f"{file}.safetensors")
        roles = (benchmark.queries, benchmark.references, benchmark.background)
        descriptors = [extract_descriptors(network, role, size=32, workers=0)[0] for role in roles]
        expected = score_descriptors(*descriptors, benchmark.pairs)
        found = [row for row in table if row["model"] == name and row["codec"] == "Flat"]
        assert [float(row["uAP"]) for row in found] == pytest.approx([row.metrics.uAP for row in expected])


def test_logs_and_checkpoints_agree_with_the_table(run):
    log = rows(next(run.glob("logs/csv/*/")))
    validated = [float(row["val/uAP_SN"]) for row in log if row.get("val/uAP_SN")]
    final = next(row for row in rows(run) if row["model"] == "student" and row["score_norm"] != "None")
    assert len(validated) == 2 and validated[-1] == pytest.approx(float(final["uAP"]))
    assert len([row for row in log if row.get("train/loss")]) == 6
    student, _ = load_student(run / "student.safetensors")
    last, card = load_student(run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(last.state_dict()[k], v) for k, v in student.state_dict().items())
    assert card["training"]["objective"] == "RDCD"
    best = load_student(run / "checkpoints" / "best.ckpt")[0]
    epoch = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert validated[epoch] == max(validated) and best.dim == 8


def test_page_names_models_and_shows_curves(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for word in ("student untrained", "thumbnail", "1.0[0,2]", "loss"):
        assert word in page


@pytest.fixture(scope="module")
def plain_run(benchmark_root, tmp_path_factory):
    """A run without further rows or loggers, which others are compared with."""
    return go(benchmark_root, tmp_path_factory.mktemp("runs") / "plain")


@pytest.mark.parametrize("views, stage", [(VIEWS + 20, "teacher"), (3 * VIEWS + 20, "student")])
def test_interrupted_run_continues_to_the_same_weights(benchmark_root, plain_run, tmp_path, views, stage):
    """Stopped in the second epoch of either stage, then resumed: as if nothing had happened."""
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, folder, augment=Breaks(views))
    assert not (folder / "student.safetensors").exists()
    teacher = folder / "teacher" / "student.safetensors"
    assert teacher.exists() == (stage == "student")
    untouched = teacher.stat().st_mtime_ns if teacher.exists() else None
    augment = Breaks({"teacher": 3, "student": 1}[stage] * VIEWS)  # enough for what is left, and no more
    assert go(benchmark_root, resume=str(folder), augment=augment) == folder
    assert same_weights(folder / "teacher", plain_run / "teacher") and same_weights(folder, plain_run)
    assert untouched in (None, teacher.stat().st_mtime_ns)
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
                     for run in (folder, plain_run))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-5) for key in second)
    for ours, theirs in zip(rows(folder), rows(plain_run), strict=True):
        assert float(ours["uAP"]) == pytest.approx(float(theirs["uAP"]), abs=1e-6)


def test_finished_run_resumed_stays_as_it_is(benchmark_root, plain_run, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    go(benchmark_root, resume=str(folder), augment=Breaks(0))
    assert same_weights(folder, plain_run, atol=0) and rows(folder) == rows(plain_run)


def test_same_seed_same_numbers_and_another_seed_others(benchmark_root, plain_run, tmp_path):
    again = go(benchmark_root, tmp_path / "again")
    assert (again / "metrics.csv").read_bytes() == (plain_run / "metrics.csv").read_bytes()
    assert same_weights(again, plain_run, atol=0)
    other = go(benchmark_root, tmp_path / "other", seed=5, teacher=TeacherFile(str(plain_run / "teacher")),
               trainer=settings(epochs=1))
    first, second = (load_file(folder / "untrained.safetensors") for folder in (other, plain_run))
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


@pytest.mark.parametrize("validate_every", [0, 5])
def test_every_epoch_leaves_a_checkpoint(benchmark_root, plain_run, tmp_path, validate_every):
    """Also where validation comes later, or never: an interrupted run loses one epoch at most."""
    run = go(benchmark_root, tmp_path / "run", trainer=settings(epochs=2, validate_every=validate_every),
             teacher=TeacherFile(str(plain_run / "teacher")))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_plain_folder_trains_without_a_table(benchmark_root, tmp_path, capsys):
    run = go(benchmark_root / "images" / "train", tmp_path / "run", teacher=None, loss=SSCD,
             student=partial(Student, trunk="test_efficientnet", dim=None, kd_dim=None),
             trainer=settings(epochs=1, validate_every=5))
    assert load_student(run / "student.safetensors")[0].dim == 512
    assert not (run / "metrics.csv").exists() and not (run / "report.html").exists()
    assert "no validation, no table" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["models"] == {"student": "student.safetensors",
                                                                   "student untrained": "untrained.safetensors"}
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_picture_that_does_not_decode_is_listed_and_the_run_goes_on(damaged, plain_run, tmp_path, capsys):
    root, picture = damaged("train", number=3)
    run = go(root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")))
    assert [row["path"] for row in rows(run, "bad_files.csv")] == [str(picture)]
    assert rows(run, "bad_files.csv")[0]["reason"]
    said = capsys.readouterr().out
    assert said.count(f"{picture}: ") == 1 and "the next picture takes its place" in said
    assert len(rows(run)) == 6  # student, teacher and untrained student, two rows each


def test_teacher_of_an_earlier_run(benchmark_root, plain_run, tmp_path):
    weights = plain_run / "teacher" / "student.safetensors"
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")))
    assert not (run / "teacher").exists()
    assert json.loads((run / "run.json").read_text())["models"]["teacher"] == str(weights.resolve())
    assert same_weights(run, plain_run, atol=0)  # as with the teacher trained in the same run
    assert load_student(run / "student.safetensors")[1]["training"]["teacher_sha256"] == sha256(weights)


def test_best_follows_what_the_protocol_measures(benchmark_root, plain_run, tmp_path):
    run = go(benchmark_root, tmp_path / "run", protocol=Protocol(score_norms=[None]),
             teacher=TeacherFile(str(plain_run / "teacher")), trainer=settings(epochs=1))
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert [row["score_norm"] for row in rows(run)] == ["None"] * 3


def refuse(said, *arguments, **changes):
    with pytest.raises(UserError, match=said):
        go(*arguments, augment=Breaks(0), **changes)  # before a single view is made


def test_run_folder_in_use_is_refused(benchmark_root, plain_run):
    before = {path: path.stat().st_mtime_ns for path in plain_run.rglob("*")}
    refuse(f"run_dir={plain_run} is not empty: continue it with resume={plain_run}", benchmark_root, plain_run)
    assert before == {path: path.stat().st_mtime_ns for path in plain_run.rglob("*")}


def test_unnamed_runs_get_folders_of_their_own(benchmark_root, plain_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20200101-000000")
    words = {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(epochs=1, validate_every=0)}
    folders = [go(benchmark_root / "images" / "references", **words) for _ in range(2)]
    assert [str(folder) for folder in folders] == ["runs/20200101-000000-tiny", "runs/20200101-000000-tiny-2"]


def test_teachers_that_cannot_be_used_are_refused(benchmark_root, plain_run, tmp_path):
    def with_teacher(path):
        return {"teacher": TeacherFile(str(path))}

    source = plain_run / "teacher"
    refuse("no weights file .*nowhere", benchmark_root, tmp_path / "a", **with_teacher(tmp_path / "nowhere"))

    short = shutil.copytree(source, tmp_path / "short") / "student.safetensors"
    short.write_bytes(short.read_bytes()[:5000])
    refuse("not a readable weights file.*may be truncated", benchmark_root, tmp_path / "b", **with_teacher(short))

    other = shutil.copytree(source, tmp_path / "other") / "student.json"
    card = json.loads(other.read_text())
    card["architecture"]["trunk"] = "test_resnet"
    other.write_text(json.dumps(card))
    refuse("does not fit the test_resnet its card describes", benchmark_root, tmp_path / "c",
           **with_teacher(other.parent))

    refuse("student.kd_dim=5 but the teacher's descriptors have 12 numbers", benchmark_root, tmp_path / "d",
           **with_teacher(source), student=partial(Student, trunk="test_efficientnet", dim=8, kd_dim=5))
    refuse("follows a teacher", benchmark_root, tmp_path / "e", teacher=None)


def test_mistakes_show_before_the_first_step(benchmark_root, plain_run, tmp_path):
    given = {"teacher": TeacherFile(str(plain_run / "teacher"))}
    refuse("24 training pictures are fewer than one batch of 25", benchmark_root, tmp_path / "a", **given,
           data={"batch_size": 25})
    refuse("hard_negative_form='soft'", benchmark_root, tmp_path / "b", **given,
           loss=partial(RDCD, hard_negative_form="soft"))
    refuse("split='dve'", benchmark_root, tmp_path / "c", **given, protocol=Protocol(split="dve"))
    refuse("no run folder", benchmark_root, **given, resume=str(tmp_path / "nowhere"))


def test_mistakes_of_the_second_stage_show_before_the_first(benchmark_root, tmp_path):
    """Training a teacher may take days; the student's settings are looked at before."""
    refuse("24 training pictures are fewer than one batch of 25", benchmark_root, tmp_path / "a",
           data={"batch_size": 25})
    refuse("hard_negative_form='soft'", benchmark_root, tmp_path / "b", loss=partial(RDCD, hard_negative_form="soft"))
    refuse("student.trunk=resnet0", benchmark_root, tmp_path / "c", student=partial(Student, trunk="resnet0", dim=8))


@pytest.mark.parametrize("name, value", [("precision", "fp16"), ("accelerator", "gpus"), ("epochs", 1.5), ("epochs", -1),
                                         ("log_every", 0)])
def test_trainer_settings_that_cannot_work_are_said(benchmark_root, plain_run, tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
           trainer=settings(**{name: value}), augment=Breaks(0))


def test_interruption_by_the_keyboard_passes_through(benchmark_root, plain_run, tmp_path, monkeypatch):
    """Lightning turns it into an exit with code 1 and silences later ones; the command line expects it."""
    monkeypatch.setattr("signal.signal", lambda *words: None)
    augment = Breaks(VIEWS + 20, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")), augment=augment)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_checkpoint_cut_short_is_said_on_resume(benchmark_root, plain_run, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    refuse("last.ckpt .1,000 bytes. is not a readable checkpoint", benchmark_root, resume=str(folder))
