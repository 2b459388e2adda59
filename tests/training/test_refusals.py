"""Settings that cannot work are refused before time is spent on them, each with its reason."""

import json
import shutil
from functools import partial

import pytest
from tiny_runs import Breaks, go, settings

from rdcd.errors import UserError
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.models.zoo import ZooTeacher
from rdcd.training.launch import TeacherFile
from rdcd.training.objectives import RDCD


def refuse(said, *arguments, **changes):
    with pytest.raises(UserError, match=said):
        go(*arguments, augment=Breaks(0), **changes)  # before a single view is made


def test_run_folder_in_use_is_refused(benchmark_root, plain_run):
    before = {path: path.stat().st_mtime_ns for path in plain_run.rglob("*")}
    said = f"run_dir={plain_run} is not empty: continue it with resume={plain_run}"
    refuse(said, benchmark_root, plain_run)
    assert before == {path: path.stat().st_mtime_ns for path in plain_run.rglob("*")}


def test_teachers_that_cannot_be_used_are_refused(benchmark_root, plain_run, tmp_path):
    def with_teacher(path):
        return {"teacher": TeacherFile(str(path))}

    source = plain_run / "teacher"
    refuse("no weights file .*nowhere", benchmark_root, tmp_path / "a", **with_teacher(tmp_path / "nowhere"))

    short = shutil.copytree(source, tmp_path / "short") / "student.safetensors"
    short.write_bytes(short.read_bytes()[:5000])
    refuse("not a readable weights file.*may be truncated", benchmark_root, tmp_path / "b",
           **with_teacher(short))

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
    refuse("hard_negative_form='soft'", benchmark_root, tmp_path / "b",
           loss=partial(RDCD, hard_negative_form="soft"))
    refuse("student.trunk=resnet0", benchmark_root, tmp_path / "c",
           student=partial(Student, trunk="resnet0", dim=8))


@pytest.mark.parametrize("name, value", [("precision", "fp16"), ("accelerator", "gpus"), ("epochs", 1.5),
                                         ("epochs", -1), ("log_every", 0)])
def test_trainer_settings_that_cannot_work_are_said(benchmark_root, plain_run, tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
           trainer=settings(**{name: value}), augment=Breaks(0))


@pytest.mark.parametrize(("changes", "said"), [
    ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
    ({"student": partial(Student, trunk="test_efficientnet", dim=8, kd_dim=None, gem_p=0)},
     "student.gem_p=0: expected a number above 0"),
    ({"loss": partial(RDCD, queue_size=0)}, "loss.queue_size=0: expected a whole number of at least 1"),
    ({"loss": partial(RDCD, momentum=2)}, "loss.momentum=2: expected a number of at least 0 and at most 1"),
    ({"loss": partial(RDCD, temperature=0)}, "loss.temperature=0: expected a number above 0"),
    ({"loss": partial(RDCD, relational_weight="much")}, "loss.relational_weight=much: expected a number")])
def test_numbers_that_cannot_work_are_refused(benchmark_root, tmp_path, changes, said):
    refuse(said, benchmark_root, tmp_path / "run", **changes)


def test_a_start_that_fails_leaves_no_folder(benchmark_root, plain_run, tmp_path):
    given = {"teacher": TeacherFile(str(plain_run / "teacher"))}
    refuse("timm has no such model", benchmark_root, tmp_path / "run", **given,
           student=partial(Student, trunk="resnet0", kd_dim=None))
    refuse("hard_negative_form='soft'", benchmark_root, tmp_path / "run", **given,
           loss=partial(RDCD, hard_negative_form="soft"))
    refuse("no weights file .*none.pt", benchmark_root, tmp_path / "run",
           teacher=ZooTeacher("sscd_disc_mixup", path=str(tmp_path / "none.pt")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sizes", "key"), [
    ({"data": {"size": 224, "test_size": 300}}, "data.test_size=300"),
    ({"protocol": Protocol(size=48)}, "protocol.size=48"),
    ({"data": {"size": 36, "test_size": 224}}, "data.size=36")])
def test_a_trunk_that_takes_one_size_alone_is_said_before_training(benchmark_root, plain_run, tmp_path, sizes, key):
    fixed = partial(Student, trunk="levit_conv_128s", dim=8, kd_dim=None)  # made for 224
    changes = {"data": {"size": 224}} | sizes
    refuse(f"{key}: levit_conv_128s takes no pictures of that size", benchmark_root, tmp_path / "run", student=fixed,
           teacher=TeacherFile(str(plain_run / "teacher")), **changes)


@pytest.mark.parametrize(("baselines", "said"), [
    (["nonsense"], "no model .*nonsense'"), (["none.safetensors"], "no weights file .*none.safetensors"),
    (["timm:resnet0"], "timm:resnet0: timm has no such model"), ([3], "baselines=3: expected a path"),
    ("thumbnial", "did you mean thumbnail")])
def test_baselines_are_loaded_before_the_training(benchmark_root, tmp_path, baselines, said):
    refuse(said, benchmark_root, tmp_path / "run", teacher=None, loss=partial(RDCD, relational_weight=0),
           baselines=baselines)


def test_nothing_to_do_is_said(benchmark_root, plain_run, tmp_path):
    refuse("student=none and teacher=none leave nothing", benchmark_root, tmp_path / "run", student=None, teacher=None)
    refuse("student=none measures the teacher.*give a benchmark", benchmark_root / "images" / "train", tmp_path / "run",
           student=None, teacher=TeacherFile(str(plain_run / "teacher")))
