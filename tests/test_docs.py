"""The commands of README and docs run, and the figures in them are those of the result files."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from authors_checkpoint import write_authors_checkpoint
from miniatures import make_cd10k, make_ndec, make_pairs
from safetensors.torch import save_file
from zoo_checkpoints import synthetic_checkpoint

from rdcd.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = ["data.size=32", "data.test_size=32", "data.batch_size=8", "data.workers=0", "baselines=[]", "trainer.epochs=1",
        "trainer.validate_every=0", "loss.queue_size=16", "protocol.codecs=[Flat]"]
BENCHES = {
    "step": ["student.trunk=test_efficientnet", "teacher_trunk=test_efficientnet", "data.size=32", "data.batch_size=8",
             "steps=2", "block=1"],
    "data": ["size=16", "sides=[64]", "turn=4", "turns=1", "workers=[1]"],
    "extract": ["trunk=test_efficientnet", "size=32", "side=64", "turn=4", "turns=1"],
    "score": ["queries=100", "references=500", "background=500", "dim=16", "sizes=[]"],
    "codecs": ["queries=50", "references=400", "drawn_background=400", "dim=16", "turns=1", "codecs=[SQ8]"],
}
NO_ENGINE = ("docker build", "mkdir -p runs", "docker run")  # scripts/container.sh builds the image and uses it


def commands(document: Path) -> list[str]:
    """Return the lines of a document's shell blocks, comments cut off."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def run(words: list[str], environment: dict[str, str], capfd: pytest.CaptureFixture) -> tuple[int, str]:
    """Run a command; return its exit code and what it said. One of ours runs in this process, where all is imported."""
    if words[:2] == [sys.executable, "-m"]:
        try:
            code = main(words[3:])
        except SystemExit as stop:
            code = stop.code
        return code, "\n".join(capfd.readouterr())
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def shrunk(command: str, places: dict[str, str]) -> list[str]:
    """Return the words of a command with its placeholders filled and its size cut down to seconds."""
    for placeholder, place in places.items():
        command = re.sub(rf"\b{placeholder}\b", place, command)
    words = shlex.split(command)
    tiny = TINY if "student.pretrained" in command else [*TINY, "student.trunk=test_efficientnet"]
    if words[:2] == ["sh", "train.sh"]:
        words = ["sh", str(ROOT / "train.sh"), *words[2:]]
        if "--multirun" not in words and not any(word.startswith("data.root") for word in words):
            return words + ([] if "experiment=smoke" in words else ["experiment=smoke"])
        if "experiment=" in command:  # of photographs: an experiment chooses its own teacher and loss
            alone = "teacher.path" not in command
            return [*words, *(word for word in tiny if not (alone and word.startswith("loss.")))]
        return [*words, *tiny, *([] if "teacher.path" in command else ["teacher=none", "loss.relational_weight=0"])]
    if words[:2] == ["sh", "disc_eval.sh"]:
        return ["sh", str(ROOT / "disc_eval.sh"), *words[2:], "workers=0"]
    if words[:2] == ["sh", "scripts/test.sh"]:  # all of them would run themselves
        return ["sh", str(ROOT / "scripts/test.sh"), *(words[2:] or ["tests/test_files.py"])]
    if words[:2] == ["rdcd", "train"]:
        words += [*tiny, f"data.root={places['ROOT']}"]
    if words[:2] == ["rdcd", "make-benchmark"]:
        words += ["workers=1"]
    if words[:2] == ["rdcd", "calibrate"]:
        words += ["workers=0", "k=3"] + (["queries=4"] if "images=" in command else [])
    if words[:2] == ["rdcd", "search"]:  # the students of this test find too little for a precision
        words = [word if not word.startswith("precision=") else "threshold=0.5" for word in words] + ["workers=0"]
    if words[:3] == ["rdcd", "index", "build"] or words[:2] == ["rdcd", "dedup"]:
        words += ["workers=0"]
    for begin, small in BENCHES.items():
        if words[:3] == ["rdcd", "bench", begin]:
            words += small
    return [sys.executable, "-m", *words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


def test_commands_of_the_documents_run_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture) -> None:
    from rdcd.data.synthetic import draw_picture

    monkeypatch.chdir(place)
    for folder, seeds in (("photos", range(60)), ("more", range(60, 80))):
        (place / folder).mkdir()
        for seed in seeds:
            draw_picture(seed, size=48).save(place / folder / f"{seed}.png")
    save_file(timm.create_model("mobilenetv2_100", num_classes=0).state_dict(), place / "trunk.safetensors")
    write_authors_checkpoint(place / "authors.ckpt")
    synthetic_checkpoint("sscd_disc_mixup", None, place / "sscd.pt")
    for name, make in (("ndec", make_ndec), ("cd10k", make_cd10k), ("mine", make_pairs)):
        make(place / name)
    (place / "rejected.csv").write_text("path,of\nphotos/0.png,photos/1.png\n")
    places = {"DIR": "photos", "DIR2": "more", "ROOT": "root", "PHOTOS": "benchmark", "TRUNK": "trunk.safetensors",
              "RUN": "run", "TEACHER_RUN": "run", "AUTHORS_CKPT": "authors.ckpt", "SSCD_FILE": "sscd.pt",
              "NDEC": "ndec", "CD10K": "cd10k", "PHOTOS_DIR": "mine", "PAIRS_CSV": "mine/pairs.csv",
              "INDEX": "index", "REJECTED_CSV": "rejected.csv"}
    environment = os.environ | {"RDCD_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = []
    for document in DOCUMENTS:
        for command in commands(document):
            if command in done or command.startswith(NO_ENGINE):
                continue
            words = shrunk(command, places)
            if words[:1] == ["sh"] and "train.sh" in words[1] and any("train.sh" in before for before in done):
                words = [sys.executable, "-m", "rdcd", "train", *words[2:]]  # what the script ends in
            code, said = run(words, environment, capfd)
            assert code == 0, f"{document.name}: {command}\n{said[-4000:]}"
            done.append(command)
            newest = max(place.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime, default=None)
            if newest and not (place / "run").exists():
                shutil.copytree(newest.parent, place / "run")
    assert {"sh train.sh", "sh disc_eval.sh", "sh scripts/test.sh"} <= set(done)
    assert (place / "scores" / "metrics.csv").is_file()


def test_tables_are_those_of_the_result_files() -> None:
    filled = runpy.run_path(str(ROOT / "scripts" / "results.py"))["filled"]
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert filled(text) == text, f"{document.name}: run `python scripts/results.py`"


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
