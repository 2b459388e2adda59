import csv
import json
import os
import random
import shutil
import signal
import socket
import time
from multiprocessing import Process, get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdcd.data.manifest import Manifest
from rdcd.errors import BadImage, UserError
from rdcd.evaluation.extract import assemble, check_device, extract, extract_descriptors, load_network
from rdcd.evaluation.shards import Shards
from rdcd.models.student import Student
from rdcd.models.thumbnail import Thumbnail
from rdcd.models.weights import save_student
from rdcd.retrieval.descriptors import read_descriptors

NAMES = [f"R{i}" for i in range(11)]


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    made = Student(trunk="test_efficientnet", dim=6, kd_dim=10).train()
    for _ in range(20):  # BN statistics of noise, so that descriptors differ from picture to picture
        made(torch.rand(8, 3, 32, 32))
    return made.eval()


@pytest.fixture
def pictures(fill, tmp_path: Path) -> Manifest:
    return Manifest.of_folder(fill(tmp_path / "pictures", NAMES))


@pytest.fixture
def holed(fill, tmp_path: Path) -> Manifest:
    return Manifest.of_folder(fill(tmp_path / "holed", NAMES, bad=("R0", "R4", "R10")))


def one_by_one(network: torch.nn.Module, pictures: Manifest, size: int, resize: str) -> dict[str, np.ndarray]:
    """Plain Pillow and torch, a picture at a time."""
    found = {}
    network.eval()
    for name, path in pictures.paths_by_name().items():
        try:
            picture = Image.open(path).convert("RGB")
        except OSError:
            continue
        shape = (size, size)
        if resize == "short":
            shape = tuple(int(size * side / min(picture.size)) for side in picture.size)
        picture = picture.resize(shape, Image.Resampling.BILINEAR)
        rows = torch.tensor(np.asarray(picture).tolist(), dtype=torch.float32) / 255
        with torch.no_grad():
            found[name] = network.embed(rows.permute(2, 0, 1)[None])[0].numpy()
    return found


@pytest.mark.parametrize("resize", ["square", "short"])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (4, 2), (64, 1)])
def test_equals_the_plain_loop(student: Student, holed: Manifest, resize: str, batch_size: int,
                               workers: int) -> None:
    expected = one_by_one(student, holed, 40, resize)
    student.train()  # extraction is in eval mode whatever the network was in, and leaves it there
    found, bad = extract_descriptors(student, holed, size=40, resize=resize, batch_size=batch_size,
                                     workers=workers)
    assert student.training
    assert found.names.tolist() == list(expected) == [n for n in holed.names if n not in ("R0", "R4", "R10")]
    np.testing.assert_allclose(found.vectors, np.stack(list(expected.values())), atol=2e-6)
    assert found.vectors.dtype == np.float32 and np.ptp(found.vectors, axis=0).max() > 0.1
    assert sorted(found.missing.tolist()) == ["R0", "R10", "R4"]
    assert sorted(Path(error.path).stem for error in bad) == ["R0", "R10", "R4"]
    assert all(isinstance(error, BadImage) and error.reason for error in bad)


def test_size_and_resize_matter(student: Student, pictures: Manifest) -> None:
    found = [extract_descriptors(student, pictures, size=size, resize=resize, workers=0)[0].vectors
             for size, resize in ((32, "square"), (64, "square"), (64, "short"))]
    assert not np.allclose(found[0], found[1], atol=1e-3) and not np.allclose(found[1], found[2], atol=1e-3)


def test_only_bad_pictures_is_an_error(fill, tmp_path: Path) -> None:
    broken = Manifest.of_folder(fill(tmp_path / "broken", ["a", "b"], bad=("a", "b")))
    with pytest.raises(UserError, match=f"none of the 2 pictures under {broken.root} could be read, .*a.png"):
        extract_descriptors(Thumbnail(2), broken, size=8, workers=0)


def test_parts_are_assembled_once_and_in_order(tmp_path: Path) -> None:
    pictures = Manifest(tmp_path, [tmp_path / f"{name}.jpg" for name in "abcde"])
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    # ranks of a distributed run interleave, pad to equal length by repeating, and meet a bad picture
    parts = [([4, 0], rows[[4, 0]]), ([3], None), ([1], rows[[1]]), ([0, 4], rows[[0, 4]]), ([3], None)]
    found = assemble(pictures, parts, dim=2)
    assert found.names.tolist() == ["a", "b", "e"] and found.missing.tolist() == ["c", "d"]
    assert np.array_equal(found.vectors, rows[[0, 1, 4]])


def test_command_writes_a_file_and_the_ledger(student: Student, holed: Manifest, tmp_path: Path,
                                              capsys) -> None:
    weights = save_student(tmp_path / "student.safetensors", student, size=48)
    out = extract(images=str(holed.root), model=str(weights), out=str(tmp_path / "out" / "r.h5"), workers=0,
                  device="cpu", max_bad_share=0.5)
    expected = one_by_one(student, holed, 48, "square")  # 48: the card's
    found = read_descriptors(out)
    assert out == tmp_path / "out" / "r.h5" and found.names.tolist() == list(expected)
    np.testing.assert_allclose(found.vectors, np.stack(list(expected.values())), atol=2e-6)
    assert sorted(found.missing.tolist()) == ["R0", "R10", "R4"]
    with open(tmp_path / "out" / "r-bad_files.csv", newline="") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["R0.png", "R10.png", "R4.png"]
    said = capsys.readouterr().out
    assert "8 descriptors of 6 numbers, 48 px square" in said and "3 pictures could not be read" in said


def test_command_takes_a_size_and_the_thumbnail(pictures: Manifest, tmp_path: Path) -> None:
    out = extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "t.h5"), size=18,
                  resize="short", workers=0, device="cpu")
    found = read_descriptors(out)
    expected = one_by_one(Thumbnail(), pictures, 18, "short")
    np.testing.assert_allclose(found.vectors, np.stack(list(expected.values())), atol=1e-6)
    assert not list(tmp_path.glob("*bad_files.csv")) and not found.missing.size


def test_command_says_what_is_wrong(pictures: Manifest, tmp_path: Path) -> None:
    for model, said in [("none.safetensors", "no weights file"), ("none.ckpt", "no checkpoint")]:
        with pytest.raises(UserError, match=said):
            extract(images=str(pictures.root), model=str(tmp_path / model), out=str(tmp_path / "r.h5"))
    with pytest.raises(UserError, match="no folder .*, nor a file of that name"):
        extract(images=str(tmp_path / "none"), model="thumbnail", out=str(tmp_path / "r.h5"))
    with pytest.raises(UserError, match="resize='stretch'"):
        extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "r.h5"), resize="stretch")
    with pytest.raises(UserError, match="decode='half'"):
        extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "r.h5"), decode="half")
    with pytest.raises(UserError, match="precision=fp8: expected one of fp32, bf16"):
        extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "r.h5"), precision="fp8")
    with pytest.raises(UserError, match="compile=true, resize=short: every shape"):
        extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "r.h5"), compile=True, resize="short")
    assert not list(tmp_path.glob("r*"))


def test_too_many_bad_pictures_end_the_work_and_more_may_be_allowed(holed: Manifest, tmp_path: Path, capsys) -> None:
    settings = {"images": str(holed.root), "model": "thumbnail", "out": str(tmp_path / "r.h5"), "shard": 4,
                "device": "cpu"}
    with pytest.raises(UserError, match="3 of 11 pictures .*27.3%.* could not be read, more than max_bad_share=0.1"):
        extract(**settings)
    with open(tmp_path / "r.h5.parts" / "bad_files-0.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    found = read_descriptors(extract(**settings, max_bad_share=0.3))
    assert len(found) == 8 and len(found.missing) == 3
    assert "3 of 3 shards were done" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holed", "r-bad_files.csv", "r.h5"]


@pytest.mark.parametrize("settings", [{"shard": 3}, {"shard": 4, "batch_size": 3, "workers": 2}, {"shard": 1}])
def test_shards_do_not_show(student: Student, holed: Manifest, tmp_path: Path, settings: dict) -> None:
    weights = str(save_student(tmp_path / "student.safetensors", student, size=40))
    for name, more in (("whole", {}), ("cut", settings)):
        extract(images=str(holed.root), model=weights, out=str(tmp_path / f"{name}.h5"), resize="short", device="cpu",
                max_bad_share=0.5, **more)
    whole, found = (read_descriptors(tmp_path / f"{name}.h5") for name in ("whole", "cut"))
    assert found.names.tolist() == whole.names.tolist() and found.missing.tolist() == whole.missing.tolist()
    np.testing.assert_allclose(found.vectors, whole.vectors, atol=2e-6)


def test_shards_of_another_extraction_are_refused(holed: Manifest, pictures: Manifest, tmp_path: Path) -> None:
    settings = {"images": str(holed.root), "model": "thumbnail", "out": str(tmp_path / "r.h5"), "device": "cpu"}
    with pytest.raises(UserError, match="max_bad_share"):  # which leaves its shards
        extract(**settings)
    for change, said in (({"size": 20}, "size was 64 and is 20"),
                         ({"model": "phash"}, "model was .* and is phash hash"),
                         ({"images": str(pictures.root)}, "images was .*/holed and is .*/pictures"),
                         ({"shard": 5}, "shard was 4096 and is 5")):
        with pytest.raises(UserError, match=f"r.h5.parts holds the beginning of another extraction .*{said}"):
            extract(**settings | change, max_bad_share=0.5)
    shutil.rmtree(tmp_path / "r.h5.parts")
    assert len(read_descriptors(extract(**settings | {"images": str(pictures.root)}))) == 11


SMALL = {"size": 40, "shard": 3, "batch_size": 2, "resize": "short", "device": "cpu", "max_bad_share": 0.5}


def started(environment: dict[str, str] | None = None, **settings) -> Process:
    """A process of its own that extracts, as if from the command line."""
    def run() -> None:
        os.environ.update(environment or {})
        extract(**settings, **SMALL)

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def test_killed_again_and_again_it_ends_with_the_same_bits(student: Student, fill, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = [f"R{i:02d}" for i in range(36)]
    root = str(fill(tmp_path / "holed", names, bad=("R03", "R11", "R35")))
    model = str(save_student(tmp_path / "student.safetensors", student, size=40))
    out, parts = tmp_path / "killed" / "r.h5", tmp_path / "killed" / "r.h5.parts"
    moments, kills, kept = random.Random(0), 0, 0
    for wanted in (0, 1, 3, 3, 6, 8, 12):  # so many shards are whole
        process = started(images=root, model=model, out=str(out))
        while process.is_alive() and not out.exists() and len(list(parts.glob("0*.json"))) < wanted:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert {path.name for path in (tmp_path / "killed").glob("*")} <= {"r.h5.parts", "r.h5", "r-bad_files.csv"}
        if out.exists():  # and perhaps what is left of its shards
            break
        done = len(list(parts.glob("0*.json")))
        assert done >= kept  # what is whole stays
        kept = done
    assert kills >= 4 and kept >= 3
    made: list[int] = []
    write = Shards.write
    monkeypatch.setattr(Shards, "write", lambda self, number, *rest: (made.append(number), write(self, number, *rest)))
    if parts.exists():
        whole = {int(path.stem) for path in parts.glob("0*.json")}
        extract(images=root, model=model, out=str(out), **SMALL)
        assert made == [number for number in range(12) if number not in whole]
    made.clear()
    extract(images=root, model=model, out=str(tmp_path / "whole" / "r.h5"), **SMALL)
    assert made == list(range(12))
    assert out.read_bytes() == (tmp_path / "whole" / "r.h5").read_bytes()
    found = read_descriptors(out)
    assert found.names.tolist() == [name for name in names if name not in ("R03", "R11", "R35")]
    for place in ("killed", "whole"):
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == ["r-bad_files.csv", "r.h5"]


def test_two_processes_write_the_file_of_one(student: Student, holed: Manifest, tmp_path: Path, monkeypatch) -> None:
    """With the variables that torchrun sets."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = str(save_student(tmp_path / "student.safetensors", student, size=40))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [started(common | {"RANK": rank, "LOCAL_RANK": rank}, images=str(holed.root), model=model,
                    out=str(tmp_path / "two" / "r.h5")) for rank in "01"]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    extract(images=str(holed.root), model=model, out=str(tmp_path / "one" / "r.h5"), **SMALL)
    for name in ("r.h5", "r-bad_files.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["r-bad_files.csv", "r.h5"]


def test_networks_come_with_a_card(student: Student, tmp_path: Path) -> None:
    weights = save_student(tmp_path / "student.safetensors", student, size=48)
    for path in ("thumbnail", weights):
        network, card = load_network(path)
        assert network.dim and card["preprocessing"]["size"] and card["architecture"]["trunk"]
        assert (card["weights_sha256"] is None) == (path == "thumbnail")
        json.dumps(card)


def test_a_link_that_leads_nowhere_is_missing_and_not_left_out(pictures: Manifest, tmp_path: Path) -> None:
    (pictures.root / "R99.jpg").symlink_to(tmp_path / "nowhere.jpg")
    out = extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "t.h5"), workers=0, device="cpu")
    assert read_descriptors(out).missing.tolist() == ["R99"]
    with open(tmp_path / "t-bad_files.csv", newline="") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["R99.jpg"]
    (pictures.root / "R99.jpg").unlink()
    extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "t.h5"), workers=0, device="cpu")
    assert not (tmp_path / "t-bad_files.csv").exists()  # of an earlier run


def test_devices_that_are_not_there_are_said(pictures: Manifest, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device(None) == check_device("cpu") == "cpu"
    for device, said in (("gpu", "device=gpu: expected cpu or cuda"), ("cuda", "torch finds no GPU")):
        with pytest.raises(UserError, match=said):
            extract(images=str(pictures.root), model="thumbnail", out=str(tmp_path / "r.h5"), device=device)


def test_a_place_that_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: expected the name of a file"):
        extract(images="nowhere", model="thumbnail", out=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, no folder"):
        extract(images="nowhere", model="thumbnail", out=str(tmp_path / "file" / "r.h5"))
