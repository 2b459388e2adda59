"""A file that cannot be read, whatever it is and whichever key names it, is one line and exit code 2."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import DAMAGES, without_roots_rights
from test_cli import process, run  # noqa: F401 (a fixture for every test)
from test_grammar import text_keys

from rdcd.models.weights import load_student
from rdcd.retrieval.descriptors import Descriptors, write_descriptors

# Text keys whose value is no file that is read: choices, names, folders and files to come.
NO_INPUT = {"out", "device", "layout", "split", "resize", "decode", "precision", "ids", "codec", "codecs", "factory",
            "score_norm", "metric", "metrics", "candidates", "recipe", "trunk", "teacher_trunk", "input", "format",
            "name", "dim", "source", "keep", "write_checksums", "algorithm", "accelerator", "project", "tracking_uri",
            "cache", "folder", "hard_negative_form", "entropy_form", "init", "run_dir", "augment.path",
            # the last two need a whole CD10K, a whole run: test_nonfinite
            "index-build index", "evaluate data.distractors", "train replay"}

DESCRIPTORS = "query=q.h5 reference=r.h5 background=r.h5 ground_truth=truth.csv"
TRAIN = "data.root=pics teacher=none loss=sscd run_dir=o trainer.accelerator=cpu"
PAIRS = "data.root=pics data.pairs=truth.csv data.background=pics out=o device=cpu"
KEYS: dict[str, dict[str, str]] = {  # command → key → what else is typed
    "score": dict.fromkeys(("query", "reference", "background", "ground_truth", "hard_negatives"),
                           f"{DESCRIPTORS} out=o"),
    "bench-codecs": dict.fromkeys(("query", "reference", "background", "ground_truth"), f"{DESCRIPTORS} codecs=[SQ8]"),
    "bench-data": {"images": ""},
    "bench-extract": dict.fromkeys(("images", "model"), "images=pics model=s/student.safetensors size=32 device=cpu"),
    "bench-step": {"student.pretrained": "student.trunk=test_efficientnet trainer.accelerator=cpu loss=sscd",
                   "data.root": "input=loader student.trunk=test_efficientnet trainer.accelerator=cpu loss=sscd",
                   "data.synthetic.out": None, "data.synthetic.photos": None, "data.synthetic.train_photos": None},
    "calibrate": {"checkpoint": "data.root=bench out=o", "data.root": "checkpoint=s/student.safetensors out=o",
                  "images": "checkpoint=s/student.safetensors out=o",
                  **dict.fromkeys(("data.pairs", "data.background"),
                                  f"checkpoint=s/student.safetensors layout=pairs {PAIRS}")},
    "check-data": {"root": "", "checksums": "root=pics layout=folder",
                   **dict.fromkeys(("pairs", "background"), "root=pics layout=pairs pairs=truth.csv background=pics"),
                   "distractors": "root=pics layout=cd10k"},
    "dedup": dict.fromkeys(("images", "against", "model", "background", "not_duplicates"),
                           "images=pics model=thumbnail out=o device=cpu"),
    "demo": dict.fromkeys(("index", "model"), "index=index device=cpu port=0"),
    "evaluate": {"checkpoint": "data.root=bench out=o device=cpu", "data.root": "checkpoint=thumbnail out=o device=cpu",
                 **dict.fromkeys(("data.pairs", "data.background"), f"checkpoint=thumbnail protocol=pairs {PAIRS}")},
    "export": {"checkpoint": "out=o.safetensors",
               **dict.fromkeys(("images", "calibration_images", "benchmark"),
                               "checkpoint=s/student.safetensors out=o.onnx format=int8 calibration_images=pics")},
    "extract": dict.fromkeys(("images", "model"), "images=pics model=thumbnail out=o.h5 device=cpu workers=0"),
    "index-add": dict.fromkeys(("index", "images", "model"), "index=index images=bench/images device=cpu"),
    "index-build": dict.fromkeys(("images", "model", "background"), "index=o images=pics model=thumbnail device=cpu"),
    "index-info": {"index": ""}, "index-remove": {"index": "images=pics", "images": "index=index"},
    "search": dict.fromkeys(("index", "images", "model", "not_duplicates"), "index=index images=pics out=o device=cpu"),
    "make-benchmark": dict.fromkeys(("photos", "train_photos"), "source=folder photos=pics out=o workers=1"),
    "train": {"data.root": TRAIN, "student.pretrained": TRAIN, "baselines": TRAIN, "resume": "",
              "teacher.student.pretrained": TRAIN.replace("teacher=none loss=sscd ", ""),
              "teacher.path": TRAIN.replace("teacher=none", "teacher=file")},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_student: Path, onnx_file: Path, drawn: Path,
             benchmark_root: Path) -> Path:
    """A folder with a sound file of every kind; do not change it."""
    place = tmp_path_factory.mktemp("prepared")
    shutil.copytree(drawn, place / "pics")
    shutil.copytree(benchmark_root, place / "bench")
    (place / "s").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(small_student.with_suffix(suffix), place / "s" / f"student{suffix}")
    shutil.copy(onnx_file, place / "student.onnx")
    shutil.copy(onnx_file.with_name(f"{onnx_file.name}.json"), place / "student.onnx.json")
    student, card = load_student(small_student)
    torch.save({"state_dict": {f"student.{key}": value for key, value in student.state_dict().items()}, "card": card},
               place / "student.ckpt")
    rng = np.random.default_rng(0)
    for name, prefix in (("q", "Q"), ("r", "R")):
        names = [f"{prefix}{number}" for number in range(9)]
        vectors = rng.normal(size=(9, 4))
        write_descriptors(place / f"{name}.h5", Descriptors(names, vectors / np.linalg.norm(vectors, axis=1)[:, None]))
    (place / "truth.csv").write_text("query_id,reference_id\nQ0,R0\nQ1,R1\n")
    (place / "ids.txt").write_text("Q3\n")
    (place / "list.txt").write_text("".join(f"pics/{number}.png\n" for number in range(24)))
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text("_target_: rdcd.training.launch.train\nseed: 0\nresume: null\n"
                                               "run_dir: null\nreplay: null\n")
    subprocess.run(["tar", "cf", "pics.tar", "pics"], cwd=place, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run("index", "build", "index=index", "images=pics", "model=s/student.safetensors", "factory=HNSW8",
                   "codec=PCAW4,L2norm,Flat", "background=pics", "device=cpu") == 0
        assert run("check-data", "root=pics", "layout=folder", "write_checksums=sums.txt") == 0
    return place


@pytest.fixture
def here(prepared: Path, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """In a copy of `prepared`; call it to have the copy as new."""
    def renew() -> None:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o700)
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)

    renew()
    yield renew
    renew()


def refusal(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """What a command says that ends with code 2, in one line (1: checks that failed); "" if it ends well."""
    capsys.readouterr()
    with without_roots_rights():
        code = run(*words)
    error = capsys.readouterr().err
    said = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert code in (0, 2, int(words[0] == "check-data")), f"{words}: code {code}, {error}"
    assert code == 0 or len(said) == 1 and said[0].startswith("rdcd: "), f"{words}: {error}"
    return said[0] if code else ""


def test_every_text_key_is_looked_at() -> None:
    asked = {(command, key) for command, keys in KEYS.items() for key in keys}
    unknown = {(command, key) for command, key, _ in text_keys()
               if (command, key) not in asked and not {key, f"{command} {key}", key.rpartition(".")[2]} & NO_INPUT}
    assert unknown == set(), "does it name a file that is read? Then add it to KEYS"


@pytest.mark.parametrize(("command", "key"), [(command, key) for command, keys in KEYS.items()
                                              for key, others in keys.items() if others is not None])
def test_what_a_key_names_cannot_be_read(command: str, key: str, here: Callable, capsys) -> None:
    others = [word for word in KEYS[command][key].split() if word.partition("=")[0] != key]
    value = "[damaged]" if key == "baselines" else "damaged"
    for damage in ("folder", "forbidden", "garbage"):
        path = Path("damaged")
        path.write_text("something")
        DAMAGES[damage](path)
        said = refusal([*command.split("-", 1 if command.startswith(("bench", "index")) else 0), *others,
                        f"{key}={value}"], capsys)
        left_out = key in ("images", "against") and said == ""  # a picture that cannot be read, and is listed
        assert left_out or "damaged" in said or command == "check-data" and "checks of" in said, f"{damage}: {said}"
        DAMAGES["missing"](path)
        shutil.rmtree("o", ignore_errors=True)


FILES = {  # file → a command that reads it
    "q.h5": f"score {DESCRIPTORS} out=o", "truth.csv": f"score {DESCRIPTORS} out=o",
    "ids.txt": f"score {DESCRIPTORS} hard_negatives=ids.txt out=o",
    "s/student.safetensors": "export checkpoint=s/student.safetensors out=o.safetensors",
    "s/student.json": "export checkpoint=s/student.safetensors out=o.safetensors",
    "student.ckpt": "export checkpoint=student.ckpt out=o.safetensors",
    "student.onnx": "index build index=o images=pics/1.png model=student.onnx device=cpu",
    "student.onnx.json": "index build index=o images=pics/1.png model=student.onnx device=cpu",
    "pics.tar": "extract images=pics.tar model=thumbnail out=o.h5 device=cpu workers=0",
    "list.txt": "dedup images=list.txt model=thumbnail out=o device=cpu",
    "sums.txt": "check-data root=pics layout=folder checksums=sums.txt samples=1",
    "run/config.yaml": "train resume=run",
    "bench/dev_ground_truth.csv": "calibrate checkpoint=s/student.safetensors data.root=bench out=o device=cpu",
    "bench/benchmark.json": "make-benchmark out=bench",
    **{f"index/{part}": "search index=index images=pics/1.png out=o device=cpu" for part in (
        "index.json", "codec.faiss", "background.f32", "000001/vectors.f32", "000001/paths.utf8")},
}


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_one_line(file: str, here: Callable, capsys) -> None:
    refused = 0
    for name, damage in DAMAGES.items():
        damage(Path(file))
        refused += bool(refusal(FILES[file].split(), capsys))
        here()
    assert refused > len(DAMAGES) // 4  # others are sound: text is a list of names, and a picture may be left out


def test_the_rights_that_root_has_are_given_up_and_taken_again(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0)
    with without_roots_rights(), pytest.raises(PermissionError):
        open(tmp_path / "x")
    if os.geteuid() == 0:
        open(tmp_path / "x").close()
