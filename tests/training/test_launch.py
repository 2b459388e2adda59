"""`train` called as a library: what a run folder holds, whatever the data and the teacher."""

import json
from functools import partial

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tiny_runs import go, rows, same_weights, settings

from rdcd.data.disc import open_benchmark
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract_descriptors
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.score import score_descriptors
from rdcd.files import sha256
from rdcd.models.student import Student
from rdcd.models.weights import load_student
from rdcd.training.launch import TeacherFile
from rdcd.training.objectives import SSCD
from rdcd.training.optim import schedule_factor


@pytest.fixture(scope="module")
def run(benchmark_root, tmp_path_factory):
    """A whole run: teacher, student, table, page."""
    return go(benchmark_root, tmp_path_factory.mktemp("runs") / "whole", baselines=["untrained", "thumbnail"],
              protocol=Protocol(codecs=["Flat", "PCAW4,L2norm,Flat"]), seed=1,
              logger={"csv": partial(CSVLogger, name="csv"), "board": partial(TensorBoardLogger, name="tb")})


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
        "label": "student", "objective": "RDCD", "epochs": 2, "steps": 6, "batch_size": 8, "pictures": 24,
        "seed": 1, "lr": 0.005, "view_size": 32,
        "teacher_sha256": sha256(run / "teacher" / "student.safetensors")}
    assert {"command", "versions", "device", "git_commit", "seed"} <= card["provenance"].keys()
    _, card = load_student(run / "untrained.safetensors")
    assert card["training"] == {"seed": 1, "steps": 0}


def test_table_has_every_model_and_its_numbers_are_those_of_the_weights(run, benchmark_root):
    table = rows(run)
    assert list(table[0])[:9] == ["model", "dim", "codec", "score_norm", "candidates", "uAP", "accuracy_at_1",
                              "recall_at_p90", "threshold_at_p90"]
    wanted = [(model, dim, codec, norm) for model, dim in (("student", "8"), ("teacher", "12"),
                                                           ("student untrained", "8"), ("thumbnail", "243"))
              for codec in ("Flat", "PCAW4,L2norm,Flat") for norm in ("None", "1.0[0,2]")]
    assert [(r["model"], r["dim"], r["codec"], r["score_norm"]) for r in table] == wanted
    record = json.loads((run / "metrics.json").read_text())
    assert [{k: str(v) for k, v in row.items()} for row in record["rows"]] == table
    assert record["provenance"]["seed"] == 1
    assert record["provenance"]["weights_sha256"] == {
        "student": sha256(run / "student.safetensors"),
        "teacher": sha256(run / "teacher" / "student.safetensors"),
        "student untrained": sha256(run / "untrained.safetensors")}

    benchmark = open_benchmark(benchmark_root)
    for name, file in json.loads((run / "run.json").read_text())["models"].items():
        if name == "thumbnail":
            continue
        network, _ = load_student(run / file)
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


def test_plain_folder_trains_without_a_table(benchmark_root, tmp_path, capsys):
    run = go(benchmark_root / "images" / "train", tmp_path / "run", teacher=None, loss=SSCD,
             student=partial(Student, trunk="test_efficientnet", dim=None, kd_dim=None),
             trainer=settings(epochs=1, validate_every=5))
    assert load_student(run / "student.safetensors")[0].dim == 512
    assert not (run / "metrics.csv").exists() and not (run / "report.html").exists()
    assert "no validation, no table" in capsys.readouterr().out
    models = json.loads((run / "run.json").read_text())["models"]
    assert models == {"student": "student.safetensors", "student untrained": "untrained.safetensors"}
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_every_logged_step_has_its_own_learning_rate_and_spread(benchmark_root, plain_run, tmp_path):
    """Also where the steps between log lines do not divide the three of an epoch."""
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(log_every=2, validate_every=0))
    log = [row for row in rows(next(run.glob("logs/csv/*/"))) if row["train/loss"]]
    assert [row["step"] for row in log] == ["1", "3", "5"]
    for row in log:
        factor = schedule_factor(int(row["step"]), total=6, warmup=3)
        assert float(row["train/lr"]) == pytest.approx(0.005 * 8 / 256 * factor)
        assert all(float(row[f"train/effective_rank_{of}"]) > 1 for of in "hz")


def test_test_size_is_the_cards_unless_the_protocol_has_one(benchmark_root, plain_run, tmp_path):
    for number, (protocol, size) in enumerate(((Protocol(), 48), (Protocol(size=40), 40))):
        run = go(benchmark_root, tmp_path / str(number), data={"test_size": 48}, protocol=protocol,
                 teacher=TeacherFile(str(plain_run / "teacher")), trainer=settings(epochs=1))
        cards = [json.loads((run / f"{name}.json").read_text()) for name in ("student", "untrained")]
        assert [card["preprocessing"]["size"] for card in cards] == [size] * 2
        sizes = json.loads((run / "metrics.json").read_text())["provenance"]["sizes"]
        assert sizes["student"] == size and sizes["teacher"] == (protocol.size or 32)  # as it was trained


def test_picture_that_does_not_decode_is_listed_and_the_run_goes_on(damaged, plain_run, tmp_path, capsys):
    root, picture = damaged("train", number=3)
    run = go(root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")))
    assert [row["path"] for row in rows(run, "bad_files.csv")] == [str(picture)]
    assert rows(run, "bad_files.csv")[0]["reason"]
    assert [row["path"] for row in rows(run, "bad_files_evaluation.csv")] == [str(picture)]  # also a background
    said = capsys.readouterr().out
    assert said.count(f"{picture}: ") == 2  # its training and, as a background, its validation
    assert said.count("the next picture takes its place") == said.count("it counts as missing") == 1
    assert len(rows(run)) == 6  # student, teacher and untrained student, two rows each


def test_too_many_that_do_not_decode_end_the_run(damaged, plain_run, tmp_path):
    root, picture = damaged("train", number=3)
    with pytest.raises(UserError, match=rf"1 of 24 pictures \(4.2%\) could not be read, more than data.max_bad_share="
                                        rf"0.04 allows; the first: {picture} .*; {tmp_path}/run/bad_files.csv lists"):
        go(root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")), data={"max_bad_share": 0.04})
    assert [row["path"] for row in rows(tmp_path / "run", "bad_files.csv")] == [str(picture)]
    assert not (tmp_path / "run" / "student.safetensors").exists()


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


def test_unnamed_runs_get_folders_of_their_own(benchmark_root, plain_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20200101-000000")
    words = {"teacher": TeacherFile(str(plain_run / "teacher")),
             "trainer": settings(epochs=1, validate_every=0)}
    folders = [go(benchmark_root / "images" / "references", **words) for _ in range(2)]
    assert [str(folder) for folder in folders] == ["runs/20200101-000000-tiny", "runs/20200101-000000-tiny-2"]


def test_further_rows_are_files_and_names(benchmark_root, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    for suffix in (".safetensors", ".json"):
        (tmp_path / "kept" / f"student{suffix}").write_bytes((run / f"student{suffix}").read_bytes())
    folder = go(benchmark_root, tmp_path / "out", student=None, teacher=TeacherFile(str(run / "teacher")),
                baselines=["thumbnail", "kept/student.safetensors"])
    kept = str(tmp_path / "kept" / "student.safetensors")  # its name alone would be the run's own student's
    assert json.loads((folder / "run.json").read_text())["models"] == {
        "teacher": str(run / "teacher" / "student.safetensors"), "thumbnail": "thumbnail", kept: kept}
    assert [row["model"] for row in rows(folder)[::2]] == ["teacher", "thumbnail", kept]
    assert not (folder / "student.safetensors").exists()


def test_every_rank_validates_its_share(benchmark_root, monkeypatch):
    from rdcd.training import collectives
    from rdcd.training.datamodule import DataModule, DataSettings

    settings = DataSettings(root=str(benchmark_root), size=32, batch_size=8, workers=0)
    root, pictures, benchmark = settings.open(Protocol())
    seen = [[], [], []]
    for rank in range(3):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(collectives, "world_size", lambda: 3)
        modules = DataModule(pictures, None, settings=settings, protocol=Protocol(), benchmark=benchmark,
                             validation_size=32, seed=0)
        for role, loader in enumerate(modules.val_dataloader()):
            seen[role] += [i for batches, _ in loader for indices, _ in batches for i in indices]
    assert [sorted(role) for role in seen] == [list(range(n)) for n in (16, 12, 24)]
