import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import Resize

from rdcd.augment.recipes import strong_blur
from rdcd.data.images import open_image
from rdcd.data.manifest import Manifest
from rdcd.data.views import EpochSampler, Pictures, TwoViews, collate_views, to_tensor
from rdcd.errors import BadImage, UserError

NAMES = [f"T{i}" for i in range(8)]


@pytest.fixture
def pictures(fill, tmp_path: Path) -> Manifest:
    return Manifest.of_folder(fill(tmp_path / "train", NAMES))


@pytest.fixture
def holed(fill, tmp_path: Path) -> Manifest:
    """T2, T3 and T7 do not decode."""
    return Manifest.of_folder(fill(tmp_path / "holed", NAMES, bad=("T2", "T3", "T7")))


def views(pictures: Manifest, key: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    sample = TwoViews(pictures, strong_blur(16, path="plain"), seed=seed)[key]
    return sample["query"], sample["key"]


def test_to_tensor_keeps_pixels(picture) -> None:
    made = picture(0)
    tensor = to_tensor(made)
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 24, 32) and tensor.is_contiguous()
    for c, y, x in [(0, 0, 0), (2, 5, 30), (1, 23, 31)]:
        assert tensor[c, y, x] == made.getpixel((x, y))[c]


def test_a_view_depends_on_seed_epoch_index_and_view_alone(pictures: Manifest) -> None:
    first = views(pictures, (3, 5))
    np.random.seed(1)  # no global state is read
    torch.manual_seed(1)
    views(pictures, (0, 1))
    for one, again in zip(first, views(pictures, (3, 5)), strict=True):
        assert one.dtype == torch.uint8 and one.shape == (3, 16, 16) and torch.equal(one, again)
    for view in range(2):  # by hand
        made = strong_blur(16)(open_image(pictures.path(5)), np.random.default_rng((0, 3, 5, view)))
        assert torch.equal(first[view], to_tensor(made))


def test_views_epochs_seeds_and_pictures_differ(pictures: Manifest, fill, tmp_path: Path) -> None:
    fill(tmp_path / "same", ["a"])
    shutil.copy(tmp_path / "same" / "a.png", tmp_path / "same" / "b.png")
    same = Manifest.of_folder(tmp_path / "same")  # one picture under two indices
    seen = [*views(same, (0, 0)), *views(same, (1, 0)), *views(same, (0, 1)), *views(same, (0, 0), seed=1)]
    assert len({view.numpy().tobytes() for view in seen}) == 8


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_a_bad_picture_is_replaced_by_the_next_and_reported(holed: Manifest, path: str) -> None:
    dataset = TwoViews(holed, strong_blur(16, path=path), seed=0)
    for index, shown, bad in [(0, 0, []), (2, 4, ["T2", "T3"]), (3, 4, ["T3"]), (7, 0, ["T7"])]:
        sample, again = dataset[1, index], dataset[1, index]
        assert sample["index"] == shown  # rows that show one picture must have one label
        assert [Path(error.path).stem for error in sample["bad"]] == bad
        assert all(isinstance(error, BadImage) for error in sample["bad"])
        for view, name in enumerate(("query", "key")):
            made = strong_blur(16)(open_image(holed.path(shown)), np.random.default_rng((0, 1, index, view)))
            apart = (sample[name].float() - to_tensor(made)).abs().mean()
            assert apart == 0 if path == "plain" else apart < 4
            assert torch.equal(sample[name], again[name])


def test_only_bad_pictures_is_an_error(fill, tmp_path: Path) -> None:
    broken = Manifest.of_folder(fill(tmp_path / "broken", NAMES, bad=tuple(NAMES)))
    with pytest.raises(UserError, match=f"8 training pictures in a row do not decode, .*T5.png .*{tmp_path}"):
        TwoViews(broken, strong_blur(16))[0, 5]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(holed: Manifest, workers: int) -> None:
    def batches(workers: int) -> list[dict]:
        found = []
        sampler = EpochSampler(8, batch_size=3, seed=4)
        loader = DataLoader(TwoViews(holed, strong_blur(16), seed=4), sampler=sampler, batch_size=3,
                            num_workers=workers, collate_fn=collate_views, persistent_workers=workers > 0)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            found += list(loader)
        return found

    expected, found = batches(0), batches(workers)
    assert len(expected) == len(found) == 4
    for one, other in zip(expected, found, strict=True):
        for name in ("query", "key", "index"):
            assert torch.equal(one[name], other[name])
        assert [str(error) for error in one["bad"]] == [str(error) for error in other["bad"]]
    assert expected[0]["query"].shape == (3, 3, 16, 16) and expected[0]["index"].shape == (3,)
    assert not torch.equal(expected[0]["query"], expected[2]["query"])
    assert any(batch["bad"] for batch in expected)


@pytest.mark.parametrize("length", [12, 14])
def test_an_epoch_is_a_permutation(length: int) -> None:
    sampler = EpochSampler(length, batch_size=4, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert keys == list(sampler) and len(keys) == len(sampler) == 12
        assert {key[0] for key in keys} == {epoch} and all(type(key[1]) is int for key in keys)
        orders.append([key[1] for key in keys])
        assert max(Counter(orders[-1]).values()) == 1 and set(orders[-1]) <= set(range(length))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [key[1] for key in EpochSampler(length, batch_size=4, seed=2)] != orders[0]


@pytest.mark.parametrize(("world", "batch"), [(2, 3), (3, 2), (6, 1)])
def test_ranks_concatenate_to_the_batches_of_one_process(world: int, batch: int) -> None:
    whole, ranks = EpochSampler(20, batch_size=6, seed=3), []
    for rank in range(world):
        ranks.append(EpochSampler(20, batch_size=batch, seed=3, rank=rank, world_size=world))
    for epoch in range(2):
        for sampler in (whole, *ranks):
            sampler.set_epoch(epoch)
        expected, parts = list(whole), [list(sampler) for sampler in ranks]
        assert len(expected) == 18
        for step in range(3):
            joined = [key for part in parts for key in part[step * batch:(step + 1) * batch]]
            assert joined == expected[step * 6:(step + 1) * 6]


def test_too_few_pictures_for_a_batch_is_said() -> None:
    assert len(EpochSampler(8, batch_size=4, world_size=2)) == 4
    with pytest.raises(UserError, match="7 training pictures are fewer .* 8: .*data.batch_size=3 or less"):
        EpochSampler(7, batch_size=4, world_size=2)
    assert len(EpochSampler(7, batch_size=3, world_size=2)) == 3  # what the message advises works


@pytest.mark.parametrize(("resize", "size", "shape"), [  # both are (width, height)
    ("square", (40, 20), (10, 10)), ("square", (5, 300), (10, 10)), ("short", (40, 20), (20, 10)),
    ("short", (20, 41), (10, 20)), ("short", (7, 5), (14, 10)),
    ("short", (8, 15), (10, 18)), ("short", (33, 33), (10, 10)),
    ("short", (1, 3), (10, 30)), ("long", (40, 20), (10, 5)), ("long", (20, 41), (5, 10)), ("long", (5, 5), (10, 10)),
    ("long", (3, 48), (1, 10)), ("long", (20, 31), (6, 10)), ("long", (20, 30), (7, 10))])
def test_resizing(picture, tmp_path: Path, resize: str, size: tuple, shape: tuple) -> None:
    made = picture(0, *size)
    made.save(tmp_path / "a.png")
    index, found = Pictures(Manifest.of_folder(tmp_path), size=10, resize=resize)[0]
    assert index == 0
    assert torch.equal(found, to_tensor(made.resize(shape, Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("size", [288, 224, 97, 1])
def test_the_short_side_is_exact_and_the_long_one_is_torchvisions(size: int) -> None:
    rule, resize = Pictures(Manifest("x", []), size=size, resize="short"), Resize(size)
    rng = np.random.default_rng(0)
    shapes = [(640, 427), (427, 640), (1, 1), (1, 99), (4000, 97), *rng.integers(1, 3000, (500, 2)).tolist()]
    for width, height in shapes:
        found = rule._target((width, height))
        assert found == tuple(resize(torch.empty(1, height, width, device="meta")).shape[:0:-1])
        assert min(found) == size and max(found) == int(size * max(width, height) / min(width, height))


def test_a_bad_picture_comes_out_as_its_error(holed: Manifest) -> None:
    dataset = Pictures(holed, size=8)
    index, found = dataset[2]
    assert len(dataset) == 8 and index == 2
    assert isinstance(found, BadImage) and found.path == str(holed.path(2))


def test_unknown_resize_is_said(pictures: Manifest) -> None:
    with pytest.raises(UserError, match="resize='crop': expected one of square, short, long"):
        Pictures(pictures, size=8, resize="crop")


def test_reduced_decoding_keeps_shapes_and_nearly_pixels(picture, tmp_path: Path) -> None:
    for seed, (size, orientation) in enumerate([((203, 150), 1), ((150, 203), 6), ((97, 400), 1), ((30, 20), 3)]):
        exif = Image.Exif()
        exif[0x0112] = orientation
        smooth = picture(seed, 24, 24).resize(size, Image.Resampling.BICUBIC)
        smooth.save(tmp_path / f"{seed}.jpg", quality=95, exif=exif)
    pictures = Manifest.of_folder(tmp_path)
    for resize in ("square", "short", "long"):
        for index in range(4):
            exact, reduced = (Pictures(pictures, size=20, resize=resize, decode=decode)[index][1].float()
                              for decode in ("exact", "reduced"))
            assert exact.shape == reduced.shape
            assert (exact - reduced).abs().mean() < 4


def test_shapes_are_rounded_to_buckets() -> None:
    for resize, kept in (("short", min), ("long", max)):
        rule = Pictures(Manifest("x", []), size=288, resize=resize, bucket=32)
        assert Pictures(Manifest("x", []), size=288, resize="square", bucket=32)._target((640, 480)) == (288, 288)
        for shape in ((640, 480), (480, 640), (1000, 333), (500, 500), (4000, 251)):
            found = rule._target(shape)
            scale = 288 / kept(shape)
            assert kept(found) == 288 or resize == "long"
            for side, before in zip(found, shape, strict=True):
                assert side == 288 or side % 32 == 0 and (abs(side - before * scale) <= 16 or side == 32)
    with pytest.raises(UserError, match="bucket=0"):
        Pictures(Manifest("x", []), size=288, bucket=0)


def test_unknown_decode_is_said(pictures: Manifest) -> None:
    with pytest.raises(UserError, match="decode='half': expected one of exact, reduced"):
        Pictures(pictures, size=8, decode="half")


@pytest.mark.parametrize("device", [None, "cpu"])
def test_fast_views_are_the_same_for_any_number_of_workers(pictures: Manifest, device: str | None) -> None:
    dataset = TwoViews(pictures, strong_blur(16, device=device), seed=4)
    keys = [(2, i) for i in range(8)]
    alone, shared = ([batch for batch in DataLoader(dataset, sampler=keys, batch_size=4, collate_fn=collate_views,
                                                    num_workers=number)] for number in (0, 2))
    names = ["query", "key", "index", *(["query_edits", "key_edits"] if device else [])]
    for one, other in zip(alone, shared, strict=True):
        assert sorted(one) == sorted([*names, "bad"])
        assert all(torch.equal(one[name], other[name]) for name in names)
