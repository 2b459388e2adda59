"""The command line from a drawn benchmark to numbers, at the smallest scale that has every part."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from zoo_checkpoints import synthetic_checkpoint

import rdcd
from rdcd import provenance
from rdcd.cli import main
from rdcd.evaluation.runs import find_run
from rdcd.retrieval.descriptors import read_descriptors
from rdcd.yamls import config_dir

ROOT = Path(rdcd.__file__).resolve().parent.parent

# What makes any `rdcd train` tiny. Keys that a choice of slots does not have are left out.
TINY = {"student.trunk": "test_efficientnet", "student.dim": 8, "student.pretrained": "false",
        "data.size": 32, "data.batch_size": 8, "data.workers": 0, "loss.queue_size": 40, "trainer.epochs": 1,
        "trainer.validate_every": 1, "trainer.accelerator": "cpu", "trainer.precision": "32-true",
        "trainer.threads": 1, "teacher.student.trunk": "test_efficientnet", "teacher.student.kd_dim": 12,
        "teacher.trainer.epochs": 1, "teacher.batch_size": 8, "protocol.size": 32, "protocol.split": "dev",
        "protocol.codecs": '[Flat,"PCAW4,L2norm,Flat"]'}
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


def rdcd_main(*words):
    """Run a command in this process; return its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def tiny(*words, command="train"):
    """Return `words` and the overrides of TINY that apply beside them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(command, overrides=[str(word) for word in words])
    given = {str(word).split("=")[0] for word in words}

    def has(key):
        *parents, last = key.split(".")
        node = OmegaConf.select(config, ".".join(parents))
        return node is not None and last in node

    return [*words, *(f"{key}={value}" for key, value in TINY.items() if key not in given and has(key))]


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def runs():
    return {path.name: path for path in Path("runs").iterdir()}


def keep_process(patch, folder):
    """Go to `folder`; what commands change in this process is undone with `patch`."""
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["rdcd"])
    patch.setattr(provenance, "_run", {"command": None, "config": None})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a benchmark, `bench`, and one trained run; returns that run."""
    folder = tmp_path_factory.mktemp("end-to-end")
    with pytest.MonkeyPatch.context() as patch:
        keep_process(patch, folder)
        assert rdcd_main("make-benchmark", "source=synthetic", "out=bench", "train=24", "references=12",
                         "sources=4", "queries=8", "distractors=8", "size=48", "workers=1") == 0
        assert rdcd_main("train", *tiny("data.root=bench")) == 0
        (run,) = runs().values()
        yield folder / run


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    keep_process(monkeypatch, place.parent.parent)


def test_the_run_folder_has_its_configuration(place):
    config = (place / "config.yaml").read_text()
    assert "trunk: test_efficientnet" in config and "root: bench" in config and "${" not in config
    record = json.loads((place / "metrics.json").read_text())["provenance"]
    assert record["command"].startswith("rdcd train data.root=bench")
    assert record["config"]["student"]["dim"] == 8
    assert place.name.endswith("rdcd-test_efficientnet-8")
    models = [row["model"] for row in rows(place / "metrics.csv")]
    assert models[::4] == ["student", "teacher", "student untrained", "thumbnail"]
    left = {path.name for path in place.parent.parent.iterdir()}
    assert left == {"bench", "runs"}  # nothing of Hydra's


def test_files_of_a_run_have_the_mode_of_any_new_file(place, tmp_path):
    (tmp_path / "any").touch()
    wanted = (tmp_path / "any").stat().st_mode
    files = [path for path in place.rglob("*") if path.is_file()]
    assert place / "student.safetensors" in files and place / "checkpoints" / "last.ckpt" in files
    assert {str(path) for path in files if path.stat().st_mode != wanted} == set()


def test_evaluate_repeats_the_table_of_train(place, tmp_path):
    assert rdcd_main("evaluate", f"out={tmp_path}/out", 'protocol.codecs=[Flat,"PCAW4,L2norm,Flat"]',
                     "workers=0", "device=cpu", "protocol.size=32") == 0
    assert rows(tmp_path / "out" / "metrics.csv") == rows(place / "metrics.csv")
    assert (tmp_path / "out" / "report.html").is_file()


def test_extract_and_score_are_evaluate(place, tmp_path):
    for role, folder in (("query", "dev_queries"), ("reference", "references"), ("background", "train")):
        assert rdcd_main("extract", f"images=bench/images/{folder}", f"model={place}/student.safetensors",
                         f"out={tmp_path}/{role}.h5", "workers=0", "device=cpu") == 0
    files = [f"{role}={tmp_path}/{role}.h5" for role in ("query", "reference", "background")]
    assert rdcd_main("score", *files, "ground_truth=bench/dev_ground_truth.csv", f"out={tmp_path}/scores",
                     'codecs=[Flat,"PCAW4,L2norm,Flat"]') == 0
    expected = [{k: v for k, v in row.items() if k not in ("model", "dim")}
                for row in rows(place / "metrics.csv") if row["model"] == "student"]
    found = rows(tmp_path / "scores" / "metrics.csv")
    assert list(found[0])[:7] == ["codec", "score_norm", "candidates", "uAP", "accuracy_at_1", "recall_at_p90",
                                  "threshold_at_p90"]
    assert found == expected


def test_evaluate_of_single_files(place, tmp_path):
    """Weights, a training checkpoint and the thumbnail, in one table; data.root, as no run says it."""
    files = [f"{place}/student.safetensors", f"{place}/checkpoints/last.ckpt", "thumbnail"]
    words = [f"checkpoint=[{','.join(files)}]", f"out={tmp_path}/out", "workers=0", "device=cpu"]
    assert rdcd_main("evaluate", *words) == 2
    assert rdcd_main("evaluate", *words, "data.root=bench", "protocol.codecs=[Flat]", "protocol.size=32") == 0
    found = rows(tmp_path / "out" / "metrics.csv")
    assert [row["model"] for row in found] == ["student"] * 2 + ["last"] * 2 + ["thumbnail"] * 2
    numbers = [[value for key, value in row.items() if key != "model"] for row in found]
    assert numbers[:2] == numbers[2:4]
    flat = [row for row in rows(place / "metrics.csv") if row["codec"] == "Flat"]
    assert found[:2] == [row for row in flat if row["model"] == "student"]
    assert found[4:] == [row for row in flat if row["model"] == "thumbnail"]


def test_files_of_one_name_are_told_apart_by_their_folders(place, tmp_path):
    teacher = f"{place}/teacher/student.safetensors"
    again = shutil.copytree(place / "teacher", tmp_path / "teacher") / "student.safetensors"
    assert rdcd_main("evaluate", f"checkpoint=[{place}/student.safetensors,{teacher},{again}]", "data.root=bench",
                     f"out={tmp_path}/out", "workers=0", "device=cpu", "protocol.codecs=[Flat]",
                     "protocol.score_norms=[null]", "protocol.size=32") == 0
    models = [row["model"] for row in rows(tmp_path / "out" / "metrics.csv")]
    assert models == [f"{place.name} student", teacher, str(again)]
    assert len(list((tmp_path / "out" / "descriptors").glob("*/query.h5"))) == 3  # none beside the weights


def test_evaluate_of_two_runs_keeps_them_apart(place, tmp_path):
    """Also where their folders have one name."""
    other = shutil.copytree(place, tmp_path / "elsewhere" / place.name)
    assert rdcd_main("evaluate", f"checkpoint=[{place},{other}]", f"out={tmp_path}/out", "workers=0",
                     "device=cpu", "protocol.codecs=[Flat]", "protocol.score_norms=[null]",
                     "protocol.size=32", "keep_descriptors=false") == 0
    models = [row["model"] for row in rows(tmp_path / "out" / "metrics.csv")]
    assert len(models) == len(set(models)) == 8
    assert not (tmp_path / "out" / "descriptors").exists()


def test_small_background_leaves_a_codec_out_and_says_so(place, tmp_path, capsys):
    assert rdcd_main("evaluate", "checkpoint=thumbnail", "data.root=bench", f"out={tmp_path}/out",
                     "workers=0", "device=cpu") == 0  # the protocol's PCAW{d} needs more than 243 pictures
    assert [row["codec"] for row in rows(tmp_path / "out" / "metrics.csv")] == ["Flat", "Flat"]
    assert "needs more than 243 background vectors and got 24" in capsys.readouterr().out


def test_resume_with_a_longer_run(place, tmp_path):
    run = shutil.copytree(place, tmp_path / "run")
    teacher = (run / "teacher" / "student.safetensors").stat().st_mtime_ns
    assert rdcd_main("train", f"resume={run}", "++trainer.epochs=2", "name='it, longer'") == 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6 and checkpoint["card"]["architecture"]["dim"] == 8
    assert (run / "teacher" / "student.safetensors").stat().st_mtime_ns == teacher
    assert json.loads((run / "student.json").read_text())["training"]["epochs"] == 2
    assert json.loads((run / "run.json").read_text())["name"] == "it, longer"
    before, after = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (place, run))
    before["trainer"]["epochs"], before["name"] = 2, "it, longer"
    assert before == after  # the next resume goes on with these


def test_resume_as_it_was_keeps_the_configuration(place, tmp_path):
    run = shutil.copytree(place, tmp_path / "run")
    assert rdcd_main("train", f"resume={run}") == 0
    assert (run / "config.yaml").read_bytes() == (place / "config.yaml").read_bytes()


@pytest.mark.parametrize(("word", "said"), [
    ("loss.entropy_weight=2", "no key 'loss.entropy_weight' in .*config.yaml"),
    ("student=efficientnet_b0", "student=efficientnet_b0 cannot change it"),
    ("~baselines", "~baselines: expected key=value"),
    ("+trainer.more=1", r"\+trainer.more=1: expected key=value"),
    ("baselines=thumbnial", "did you mean thumbnail"),
    ("student.zero_init_residual=no", "student.zero_init_residual=no: expected true or false"),
    ("seed=1,2", "seed=1,2: expected key=value")])
def test_what_a_resumed_run_cannot_take_is_said(place, capsys, word, said):
    assert rdcd_main("train", f"resume={place}", word) == 2
    assert re.search(said, capsys.readouterr().err)


def test_the_card_has_the_thresholds_of_the_table(place):
    card = json.loads((place / "student.json").read_text())
    table = [row for row in rows(place / "metrics.csv") if row["model"] == "student"]
    assert [str(entry["threshold"]) for entry in card["thresholds"]] == [row["threshold_at_p90"] for row in table]
    assert card["thresholds"][0]["precision"] == 0.9 and card["thresholds"][0]["codec"] == "Flat"
    assert {"licence", "provenance"} <= json.loads((place / "untrained.json").read_text()).keys()


def test_a_start_that_fails_leaves_no_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rdcd_main("train", "data.root=typo") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("file", "content", "command", "said"), [
    ("run.json", '{"models": ', "evaluate", "run.json is damaged"),
    ("run.json", "[]", "evaluate", "run.json is damaged"),
    ("config.yaml", "", "train", "config.yaml is damaged"),
    ("config.yaml", "a: [", "train", "config.yaml is damaged")])
def test_damaged_files_of_a_run_are_said(place, tmp_path, capsys, file, content, command, said):
    run = shutil.copytree(place, tmp_path / "run")
    (run / file).write_text(content)
    assert rdcd_main(command, f"{'checkpoint' if command == 'evaluate' else 'resume'}={run}") == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_latest_is_the_run_trained_last_whatever_was_evaluated_since(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newer", "older")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("")
        os.utime(tmp_path / "runs" / name / "config.yaml", (10 - age, 10 - age))
    (tmp_path / "runs" / "older" / "evaluation").mkdir()
    assert find_run("latest").name == "newer"
    (tmp_path / "runs" / "older" / "run.json").write_text("{}")
    assert find_run("latest", finished=True).name == "older"  # the other has nothing to measure yet


def test_runs_of_two_benchmarks_are_not_measured_on_one_unasked(place, tmp_path, capsys):
    other = shutil.copytree(place, tmp_path / "other")
    about = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(about | {"data_root": "elsewhere"}))
    assert rdcd_main("evaluate", f"checkpoint=[{place},{other}]") == 2
    assert "different benchmarks" in capsys.readouterr().err


def test_pictures_are_resized_as_the_card_says(place, tmp_path):
    shutil.copytree(place, tmp_path / "run")
    card = tmp_path / "run" / "student.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps(content | {"preprocessing": content["preprocessing"] | {"resize": "short"}}))
    for name, words in (("card", []), ("short", ["resize=short"]), ("square", ["resize=square"])):
        assert rdcd_main("extract", "images=bench/images/references", f"model={tmp_path}/run/student.safetensors",
                         f"out={tmp_path}/{name}.h5", "workers=0", "device=cpu", *words) == 0
    found = {name: read_descriptors(tmp_path / f"{name}.h5").vectors for name in ("card", "short", "square")}
    assert (found["card"] == found["short"]).all() and (found["card"] != found["square"]).any()
    assert rdcd_main("evaluate", f"checkpoint={tmp_path}/run/student.safetensors", "data.root=bench", "workers=0",
                     f"out={tmp_path}/out", "protocol.codecs=[Flat]", "device=cpu") == 0
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())["provenance"]
    assert record["resizes"] == {"student": "short"} and "short side, aspect kept" in record["protocol"]


def test_multirun_trains_one_run_a_value(place, tmp_path, monkeypatch):
    bench = Path("bench").resolve()
    monkeypatch.chdir(tmp_path)
    words = tiny(f"data.root={bench}", "teacher=file", f"teacher.path={place}/teacher", "baselines=[]")
    words = [word for word in words if not str(word).startswith("student.dim=")]
    assert rdcd_main("train", "--multirun", "student.dim=6,10", *words) == 0
    found = sorted(runs().values(), key=lambda run: int(run.name.rsplit("-", 1)[1]))
    assert [run.name.rsplit("-", 1)[1] for run in found] == ["6", "10"]
    for run, dim in zip(found, (6, 10)):
        students = [row for row in rows(run / "metrics.csv") if row["model"].startswith("student")]
        assert {row["dim"] for row in students} == {str(dim)}
        assert f"dim: {dim}\n" in (run / "config.yaml").read_text()
        assert f"student.dim={dim}" in json.loads((run / "metrics.json").read_text())["provenance"]["command"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # nothing of Hydra's


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Return a function: name in the zoo → a file in its released layout, with random numbers."""
    folder = tmp_path_factory.mktemp("released")

    def file(name):
        path = folder / f"{name}.pt"
        if not path.exists():
            synthetic_checkpoint(name, None, path)
        return path

    return file


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment, place, released, tmp_path):
    """A row of a table on a few small pictures; those of the published table with their own networks, whose weights
    are random numbers in the released layouts."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}"])
    words, target = [f"experiment={experiment}", "data.root=bench", f"run_dir={tmp_path}/run"], config.teacher._target_
    if target.endswith("ZooTeacher"):
        words.append(f"teacher.path={released(config.teacher.name)}")
    elif target.endswith("TeacherFile"):
        words += ["teacher=file", f"teacher.path={place}/teacher"]
    if config.protocol.name == "disc_dev_knn10":  # published
        words.append(f"student.trunk={config.student.trunk}")
        if config.student.get("pretrained"):
            save_file(timm.create_model(config.student.trunk).state_dict(), tmp_path / "trunk.safetensors")
            words.append(f"student.pretrained={tmp_path}/trunk.safetensors")
        if config.student.get("kd_dim"):
            words.append(f"student.dim={config.student.dim or 'null'}")
        elif config.student.trunk != "teacher":
            words.append(f"student.dim={config.student.dim}")
    assert rdcd_main("train", *tiny(*words)) == 0
    table = rows(tmp_path / "run" / "metrics.csv")
    assert table[0]["model"] == ("teacher" if config.student.trunk == "teacher" else "student")
    if config.protocol.name == "disc_dev_knn10":
        assert table[0]["dim"] == experiment.split("_dino")[0].split("_resnext")[0].rsplit("_", 1)[1]
        assert {row["model"] for row in table} <= {"student", "teacher"}


def test_an_experiment_beside_another_choice_of_slots_is_said(tmp_path, capsys):
    assert rdcd_main("train", "experiment=smoke", "teacher=none", "data.root=bench", "trainer.accelerator=cpu",
                     f"run_dir={tmp_path}/run") == 2
    error = capsys.readouterr().err
    assert "teacher takes no key 'student': an experiment sets it for another choice" in error
    assert error.count("\n") == 1


def test_every_run_of_a_sweep_has_its_switches_checked(place, tmp_path, capsys, monkeypatch):
    bench = Path("bench").resolve()
    monkeypatch.chdir(tmp_path)
    words = tiny(f"data.root={bench}", "teacher=file", f"teacher.path={place}/teacher", "baselines=[]")
    assert rdcd_main("train", "--multirun", "trainer.sync_batchnorm=true,no", *words) == 2
    assert "trainer.sync_batchnorm=no: expected true or false" in capsys.readouterr().err
    assert len(runs()) == 1  # the first alone


def test_a_torchscript_baseline_is_allowed_with_the_teacher(released, tmp_path):
    path = tmp_path / "teacher.pt"
    synthetic_checkpoint("sscd_disc_mixup", "torchscript", path)
    words = ["student=none", "teacher=sscd_disc_mixup", f"teacher.path={path}", "teacher.allow_torchscript=true",
             f"baselines=['sscd_disc_mixup:{path}']", "data.root=bench", f"run_dir={tmp_path}/run", "name=x"]
    assert rdcd_main("train", *tiny(*words)) == 0
    models = [row["model"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert set(models) == {"teacher", f"sscd_disc_mixup:{path}"}


def test_sscd_without_teacher_on_a_plain_folder(place, tmp_path):
    words = tiny("loss=sscd", "teacher=none", "data.root=bench/images/train", f"run_dir={tmp_path}/run")
    assert rdcd_main("train", *words) == 0
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert not (tmp_path / "run" / "metrics.csv").exists()


def other_architecture(run, folder):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["card"]["architecture"]["trunk"] = "test_resnet"
    torch.save(checkpoint, folder / "other.ckpt")


def cut_short(run, folder):
    (folder / "cut.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:2000])


def empty(run, folder):
    (folder / "empty").mkdir()


def benchmark_without_queries(run, folder):
    shutil.copytree("bench", folder / "half", ignore=shutil.ignore_patterns("dev_*"))


def unfinished(run, folder):
    (folder / "begun").mkdir()
    shutil.copy(run / "config.yaml", folder / "begun")


MISTAKES = {
    "wrong root": (["train", "data.root={}/nowhere"], "no folder {}/nowhere", None),
    "empty folder": (["train", "data.root={}/empty"], "no pictures under {}/empty", empty),
    "half a benchmark": (["train", "data.root={}/half"], "missing images/dev_queries, dev_ground_truth.csv",
                         benchmark_without_queries),
    "wrong root of evaluate": (["evaluate", "checkpoint=thumbnail", "data.root={}/nowhere"],
                               "data.root={}/nowhere is no DISC-layout benchmark", None),
    "batch too large": (["train", "data.root=bench", "data.batch_size=64"], "fewer than one batch of 64",
                        None),
    "another architecture": (["evaluate", "checkpoint={}/other.ckpt", "data.root=bench"],
                             "other.ckpt does not fit the test_resnet its card describes",
                             other_architecture),
    "cut short": (["evaluate", "checkpoint={}/cut.ckpt", "data.root=bench"],
                  "cut.ckpt (2,000 bytes) is not a readable", cut_short),
    "no such checkpoint": (["evaluate", "checkpoint={}/none.ckpt", "data.root=bench"],
                           "no checkpoint {}/none.ckpt", None),
    "no such folder": (["evaluate", "checkpoint={}/none", "data.root=bench"], "{}/none", None),
    "unfinished run": (["evaluate", "checkpoint={}/begun"], "holds no finished run", unfinished),
    "misspelt key": (["train", "trainer.epoch=3"], "did you mean trainer.epochs", None),
    "misspelt trunk": (["train", "data.root=bench", "student.trunk=resnet0"], "student.trunk=resnet0", None),
    "misspelt precision": (["train", "data.root=bench", "trainer.precision=fp16"], "precision=fp16", None),
    "misspelt accelerator": (["train", "data.root=bench", "trainer.accelerator=gpus"],
                             "accelerator=gpus", None),
    "wrong form": (["train", "data.root=bench", "loss.hard_negative_form=soft"],
                   "hard_negative_form='soft'", None),
    "half an epoch": (["train", "data.root=bench", "trainer.epochs=1.5"], "epochs=1.5", None),
    "no number": (["train", "data.root=bench", "trainer.optimization.lr=fast"], "optimization.lr=fast", None),
    "misspelt codec": (["train", "data.root=bench", "protocol.codecs=[flat]"],
                       "cannot parse codec 'flat'", None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_message_and_code_2(mistake, place, tmp_path, capsys, monkeypatch):
    words, said, prepare = MISTAKES[mistake]
    if prepare:
        prepare(place, tmp_path)
    words = [word.replace("{}", str(tmp_path)) for word in words]
    if words[0] == "train" and mistake != "misspelt key":
        words = ["train", *tiny("teacher=file", f"teacher.path={place}/teacher", f"run_dir={tmp_path}/run",
                                *words[1:])]
    else:
        words += [] if words[0] == "train" else [f"out={tmp_path}/out", "device=cpu", "workers=0"]
    assert rdcd_main(*words) == 2
    told = capsys.readouterr().err
    assert said.replace("{}", str(tmp_path)) in told
    assert told.startswith("rdcd: ") and told.count("\n") == 1 and "Traceback" not in told


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    """As a person sees it: exit code 2, one line on stderr."""
    words = ["train", "data.root=nowhere", "trainer.accelerator=cpu"]
    done = subprocess.run([sys.executable, "-m", "rdcd", *words], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith("rdcd: no folder nowhere") and done.stderr.count("\n") == 1
