"""Images of more pixels than are allowed: JPEGs at a reduced scale, others by a key."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_hostile import encode

from rdcd.data.check import check_data
from rdcd.data.encoded import Encoded
from rdcd.data.images import open_image, pixel_limit, reads_images, upright_size
from rdcd.data.manifest import Manifest
from rdcd.data.views import Pictures
from rdcd.errors import BadImage, UserError


def smooth(width: int, height: int) -> Image.Image:
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return Image.fromarray(np.add.outer(down, across).astype(np.uint16).__rshift__(1).astype(np.uint8)).convert("RGB")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RDCD_MAX_PIXELS", "10000")
    yield


@pytest.mark.parametrize(("size", "scale"), [((100, 100), 1), ((200, 100), 2), ((101, 100), 2), ((300, 200), 4),
                                             ((640, 600), 8)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_too_many_pixels_is_decoded_smaller(few, tmp_path: Path, size, scale, orientation,
                                                      progressive) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(*size), "JPEG", exif=exif, quality=95, progressive=progressive)
    whole = open_image(data, max_pixels=10**6)
    expected = tuple(-(-side // scale) for side in whole.size)
    if progressive and size[0] * size[1] > 30_000:  # its coefficients are of the whole
        with pytest.raises(BadImage, match="several scans"):
            open_image(data)
        return
    found = open_image(data)
    assert found.size == upright_size(data) == expected
    near = np.asarray(whole.reduce(scale), dtype=int)
    assert np.abs(np.asarray(found, dtype=int) - near).mean() < 2
    encoded = Encoded(data)
    assert (encoded.width, encoded.height) == expected
    assert np.abs(encoded.pixels().astype(int) - near).mean() < 2
    assert encoded.pixels(8).shape[:2] == tuple(-(-side // 8) for side in whole.size[::-1])
    (tmp_path / "a.jpg").write_bytes(data)
    for resize in ("square", "short"):
        for decode in ("exact", "reduced"):
            shown = Pictures(Manifest(tmp_path, [tmp_path / "a.jpg"]), size=8, resize=resize, decode=decode)[0][1]
            assert not isinstance(shown, BadImage) and min(shown.shape[1:]) == 8


def test_other_formats_name_the_key(few) -> None:
    for kind in ("PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000"):
        with pytest.raises(BadImage, match="200x100 pixels, more than max_pixels=10000 allows"):
            open_image(encode(smooth(200, 100), kind))
    with pytest.raises(BadImage, match="more than max_pixels=10000 allows"):
        open_image(encode(smooth(800, 810), "JPEG"))  # at an eighth, too
    with pytest.raises(BadImage, match="more than max_pixels=10000 allows"):
        open_image(Image.open(io.BytesIO(encode(smooth(200, 100), "JPEG"))))  # stays as it is


def test_the_key_holds_within_a_command_and_its_processes(tmp_path: Path) -> None:
    smooth(200, 100).save(tmp_path / "a.png")
    verdicts = [{check.check: check.verdict for check in check_data(root=tmp_path, layout="folder", workers=2,
                                                                   max_pixels=most)}["folder: decoding"]
                for most in (10**6, 20_000)]
    assert verdicts == ["ok", "ok"] and "RDCD_MAX_PIXELS" not in os.environ
    with pytest.raises(UserError, match="folder: decoding"):
        check_data(root=tmp_path, layout="folder", max_pixels=19_999)
    with pytest.raises(UserError, match="max_pixels=0"):
        check_data(root=tmp_path, layout="folder", max_pixels=0)
    assert reads_images(lambda: pixel_limit())(max_pixels=5) == 5 and pixel_limit() == 100_000_000


def test_two_hundred_megapixels_of_a_telephone() -> None:
    """A header of 16,320 x 12,240 over the first few pixels, which the decoder fills up."""
    small = encode(Image.new("RGB", (16, 16), (200, 40, 90)), "JPEG")
    frame = small.index(b"\xff\xc0")
    large = small[:frame + 5] + (12_240).to_bytes(2, "big") + (16_320).to_bytes(2, "big") + small[frame + 9:]
    assert upright_size(large) == (8160, 6120)
    found = open_image(large)
    assert found.size == (8160, 6120)
    np.testing.assert_allclose(found.getpixel((3, 3)), (200, 40, 90), atol=4)
