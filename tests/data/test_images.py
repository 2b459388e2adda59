"""Real files of every kind, each with its defined outcome."""

import csv
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdcd.data.images import find_images, open_image, write_ledger
from rdcd.errors import BadImage, UserError

ORIENTATION = 0x0112
RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(path) -> np.ndarray:
    picture = open_image(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.fixture
def plain(picture: Callable[..., Image.Image]) -> Image.Image:
    return picture(0)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp"])
def test_lossless_formats_keep_every_pixel(plain: Image.Image, tmp_path: Path, suffix: str) -> None:
    plain.save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(pixels(tmp_path / f"a{suffix}"), np.asarray(plain))


def test_path_text_and_bytes_give_one_picture(plain: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    plain.save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(pixels(source), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(plain: Image.Image, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    plain.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(plain)  # by the table of the EXIF standard: which side row 0 and column 0 are
    expected = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
                5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[:, ::-1],
                7: upright.transpose(1, 0, 2)[::-1, ::-1], 8: upright.transpose(1, 0, 2)[::-1]}[orientation]
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)


def test_broken_exif_is_ignored(plain: Image.Image, tmp_path: Path) -> None:
    plain.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff")
    assert pixels(tmp_path / "a.jpg").shape == (24, 32, 3)


def test_palette(plain: Image.Image, tmp_path: Path) -> None:
    paletted = plain.quantize(16)
    paletted.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(paletted.convert("RGB")))


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([*RED, *BLUE])
    paletted.putdata([0, 1])
    paletted.save(tmp_path / "a.png", transparency=0)
    assert pixels(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], list(BLUE)]


def test_alpha_is_composed_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [200, 0, 100, 51]]], dtype=np.uint8)
                    ).save(tmp_path / "a.png")
    opaque, clear, fifth = pixels(tmp_path / "a.png")[0].tolist()
    assert opaque == [200, 0, 100] and clear == [255, 255, 255]
    np.testing.assert_allclose(fifth, [255 + (value - 255) / 5 for value in (200, 0, 100)], atol=1)


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA").save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[10] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white(plain: Image.Image, tmp_path: Path, mode: str) -> None:
    grey = plain.convert(mode)
    grey.save(tmp_path / "a.png")
    expected = np.asarray(grey.convert("L"))
    assert np.array_equal(pixels(tmp_path / "a.png"), np.stack([expected] * 3, axis=2))


def test_cmyk(tmp_path: Path) -> None:
    plain = Image.new("RGB", (32, 32), (200, 40, 90))
    plain.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    np.testing.assert_allclose(pixels(tmp_path / "a.jpg")[16, 16], (200, 40, 90), atol=4)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("values", [[0, 257, 32768, 65535], [0, 10, 100, 255]])  # the second: a very dark one
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str, values: list[int]) -> None:
    Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / f"a{suffix}")
    expected = [int(value / 65535 * 255) for value in values]
    assert pixels(tmp_path / f"a{suffix}")[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(("values", "expected"), [
    ([0, 128, 255], [0, 128, 255]), ([0, 32896, 65535], [0, 128, 255]), ([-5, 70000, 0], [0, 255, 0])])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_greys_are_taken_as_eight_or_sixteen_bits(tmp_path: Path, values, expected, dtype) -> None:
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(tmp_path / f"a{suffix}"), np.asarray(frames[0]))


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), BLUE).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[list(BLUE)]]


def truncated_jpeg(plain: Image.Image) -> bytes:
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG")
    return buffer.getvalue()[:-60]


def truncated_png(plain: Image.Image) -> bytes:
    buffer = io.BytesIO()
    plain.save(buffer, "PNG")
    return buffer.getvalue()[:-60]


@pytest.mark.parametrize(("content", "said"), [
    (truncated_jpeg, "truncated"), (truncated_png, "truncated|incomplete"),
    (lambda plain: b"", "the file is empty"), (lambda plain: b"I am a text\n", "no sound file"),
    (lambda plain: b"\xff\xd8\xff\xe0" + bytes(200), ""), (lambda plain: b"GIF89a" + bytes(4), ""),
], ids=["jpeg", "png", "empty", "text", "jpeg header", "gif header"])
def test_what_does_not_decode_is_a_bad_image(plain: Image.Image, tmp_path: Path, content, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content(plain))
    with pytest.raises(BadImage, match=f"cannot read picture {path}: .*({said})") as error:
        open_image(path)
    assert error.value.path == str(path) and error.value.reason and "\n" not in error.value.reason
    with pytest.raises(BadImage, match="cannot read picture <bytes>: "):
        open_image(path.read_bytes())


def smooth(width: int, height: int) -> Image.Image:
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return Image.fromarray(np.stack([np.add.outer(y, x) / 2, np.add.outer(y, 0 * x), np.add.outer(0 * y, x)],
                                    axis=2).astype(np.uint8))


@pytest.mark.parametrize(("at_least", "scale"), [
    (None, 1), ((300, 200), 1), ((150, 100), 2), ((151, 100), 1), ((150, 101), 1), ((75, 40), 4), ((37, 25), 8),
    ((1, 1), 8), ((900, 900), 1)])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_decoded_at_the_smallest_scale_asked_for(at_least, scale, progressive) -> None:
    buffer = io.BytesIO()
    smooth(300, 200).save(buffer, "JPEG", quality=95, progressive=progressive)
    found, whole = open_image(buffer.getvalue(), at_least=at_least), open_image(buffer.getvalue())
    assert found.size == (-(-300 // scale), -(-200 // scale)) and found.mode == "RGB"
    reduced = np.asarray(whole.reduce(scale), dtype=int)
    assert np.abs(np.asarray(found, dtype=int) - reduced).mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_least_size_is_that_of_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    smooth(300, 200).save(tmp_path / "a.jpg", exif=exif, quality=95)
    size = (100, 150) if orientation > 4 else (150, 100)
    found = open_image(tmp_path / "a.jpg", at_least=size)
    assert found.size == size
    whole = np.asarray(open_image(tmp_path / "a.jpg").reduce(2), dtype=int)
    assert np.abs(np.asarray(found, dtype=int) - whole).mean() < 1.5


def test_reduced_decode_keeps_the_rules(plain: Image.Image, tmp_path: Path) -> None:
    plain.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", at_least=(4, 4)).size == plain.size  # no scale to choose
    Image.new("CMYK", (64, 64), (10, 200, 90, 20)).save(tmp_path / "b.jpg", quality=95)
    colour = np.asarray(open_image(tmp_path / "b.jpg"))[32, 32].astype(int)
    reduced = open_image(tmp_path / "b.jpg", at_least=(16, 16))
    assert reduced.size == (16, 16) and np.abs(np.asarray(reduced)[8, 8] - colour).max() <= 2
    with pytest.raises(BadImage, match="truncated"):
        open_image(truncated_jpeg(plain), at_least=(1, 1))


def test_absent_files_and_folders_are_bad_images(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="a folder, not a file"):
        open_image(tmp_path)


def test_too_many_pixels_are_refused_before_decoding(plain: Image.Image, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    plain.save(path)
    assert open_image(path, max_pixels=32 * 24).size == (32, 24)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda picture: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="32x24 pixels, more than max_pixels=767 allows"):
        open_image(path, max_pixels=32 * 24 - 1)
    header = bytearray(path.read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # a header that claims 3.6 thousand million pixels
    path.write_bytes(header)
    with pytest.raises(BadImage):
        open_image(path)


def test_bad_image_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "broken", "cannot read picture a.jpg: broken")
    assert isinstance(error, UserError)


def test_find_images_sorted_nested_and_without_others(plain: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("z.jpg", "b/c/a.PNG", "b/y.WebP", "a.txt", ".hidden.jpg", "b/noext"):
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["b/c/a.PNG", "b/y.WebP", "z.jpg"]


def test_find_images_follows_links_once(tmp_path: Path) -> None:
    """Shards are often linked from other disks; a link back up must not go round for ever."""
    (tmp_path / "disk" / "shard").mkdir(parents=True)
    (tmp_path / "disk" / "shard" / "a.jpg").write_bytes(b"")
    root = tmp_path / "root"
    (root / "refs_0").mkdir(parents=True)
    (root / "refs_0" / "b.jpg").write_bytes(b"")
    (root / "refs_0" / "up").symlink_to(root)
    (root / "refs_1").symlink_to(tmp_path / "disk" / "shard")
    (root / "refs_1_again").symlink_to(tmp_path / "disk" / "shard")
    (root / "c.jpg").symlink_to(tmp_path / "disk" / "shard" / "a.jpg")
    found = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert found == ["c.jpg", "refs_0/b.jpg", "refs_1/a.jpg"]


def test_find_images_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder {tmp_path}/no: expected a folder of pictures"):
        find_images(tmp_path / "no")
    with pytest.raises(UserError, match=f"no pictures under {tmp_path}: expected files ending in .jpg"):
        find_images(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no folder"):
        find_images(tmp_path / "a.jpg")


def test_ledger_has_one_sorted_row_a_file(tmp_path: Path) -> None:
    bad = [BadImage("b,1.jpg", 'not "a" picture'), BadImage("a.jpg", "empty"), BadImage("a.jpg", "empty")]
    write_ledger(tmp_path / "new" / "bad.csv", bad)
    with open(tmp_path / "new" / "bad.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["path", "reason"], ["a.jpg", "empty"], ["b,1.jpg", 'not "a" picture']]


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="cannot look into .*closed .Permission denied"):
        find_images(tmp_path)
