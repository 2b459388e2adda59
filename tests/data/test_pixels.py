"""What sound files show: each image beside the pixels that its format's own rules give it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from test_hostile import encode, gif, pixels, png, scans, tiff

from rdcd.augment.recipes import strong_blur
from rdcd.data import found, sound
from rdcd.data.encoded import Encoded
from rdcd.data.images import open_image, upright_size
from rdcd.data.manifest import Manifest
from rdcd.data.views import Pictures, TwoViews, to_tensor
from rdcd.errors import BadImage

ORIENTATION = 0x0112


def oriented(orientation: int, kind: str, size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    """A smooth image, so that JPEGs at any scale are near it, with an orientation to apply."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    across, down = np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])
    image = Image.fromarray(np.stack([np.add.outer(down, across) / 2, np.add.outer(down, 0 * across),
                                      np.add.outer(0 * down, across)], axis=2).astype(np.uint8))
    return encode(image, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["TIFF", "LZW", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_every_reader_has_the_sides_of_the_upright_image(kind: str, orientation: int, tmp_path: Path) -> None:
    """Pillow exchanges the sides of a TIFF by itself, its newer versions even before it is decoded."""
    options = {"compression": "tiff_lzw"} if kind == "LZW" else {"lossless": True} if kind == "WEBP" else {}
    data = oriented(orientation, "TIFF" if kind == "LZW" else kind, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert open_image(data).size == upright_size(data) == upright.size
    assert np.array_equal(pixels(data), np.asarray(upright))
    encoded = Encoded(data)
    assert (encoded.width, encoded.height) == upright.size
    assert encoded.pixels().shape == (upright.height, upright.width, 3)
    (tmp_path / "a").write_bytes(data)
    images = Manifest(tmp_path, [tmp_path / "a"])
    sides = {"square": (16, 16), "short": tuple(16 * side // min(upright.size) for side in upright.size),
             "long": tuple(round(16 * side / max(upright.size)) for side in upright.size)}
    for resize, side in sides.items():
        expected = to_tensor(upright.resize(side, Image.Resampling.BILINEAR)).int()
        for decode in ("exact", "reduced"):
            found = Pictures(images, size=16, resize=resize, decode=decode)[0][1]
            assert found.shape == expected.shape, (resize, decode)
            assert (found.int() - expected).abs().float().mean() < (4 if decode == "reduced" else 1)


@pytest.mark.parametrize("orientation", [6, 7])
def test_views_of_a_lying_tiff_are_those_of_its_upright_pixels(orientation: int, tmp_path: Path) -> None:
    data = oriented(orientation, "TIFF", (300, 200))
    (tmp_path / "lying.tif").write_bytes(data)
    open_image(data).save(tmp_path / "upright.png")
    for path in ("fast", "plain"):
        recipe = strong_blur(size=32, path=path)
        lying, upright = (TwoViews(Manifest(tmp_path, [tmp_path / name]), recipe, seed=3)
                          for name in ("lying.tif", "upright.png"))
        for epoch in range(6):
            for view in ("query", "key"):
                assert (lying[epoch, 0][view] == upright[epoch, 0][view]).all(), (path, epoch, view)


def test_tiles_are_measured_before_the_sides_are_exchanged() -> None:
    tall = tiff({256: 8, 257: 3200, 322: 16, 323: 3200, ORIENTATION: 6}, bytes(16 * 3200))
    assert open_image(tall, max_pixels=60_000).size == (3200, 8)


GREYS = [0, 1, 50, 128, 254, 255]


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 32])
def test_white_is_zero(bits: int) -> None:
    """PhotometricInterpretation 0 of a TIFF: the largest value is black."""
    values = {1: [0, 1] * 3, 4: [0, 1, 5, 7, 14, 15]}.get(bits, GREYS)
    if bits < 8:
        data = np.packbits([int(bit) for value in values for bit in f"{value:0{bits}b}"]).tobytes()
    else:
        data = {8: np.array(values, np.uint8), 16: np.array(values, "<u2") * 257,
                32: np.array(values, "<f4") / 255}[bits].tobytes()
    tags = {256: 6, 257: 1, 258: bits, 262: 0} | ({339: 3} if bits == 32 else {})
    most = {1: 1, 4: 15}.get(bits, 255)
    expected = [255 - round(value * 255 / most) for value in values]
    np.testing.assert_allclose(pixels(tiff(tags, data))[0, :, 0], expected, atol=bits == 32)


@pytest.mark.parametrize(("top", "dtype"), [(1, np.float32), (255, np.float32), (255, np.int32)])
@pytest.mark.parametrize("outliers", ["one pixel", "much larger", "every tenth"])
def test_a_few_values_above_do_not_choose_the_range(top: int, dtype: type, outliers: str) -> None:
    values = np.linspace(0, top, 4096).reshape(64, 64).astype(dtype)
    expected = pixels(encode(Image.fromarray(values), "TIFF"))
    assert expected.max() == 255
    above = values.copy()
    if outliers == "every tenth":  # as sharpening overshoots
        above.ravel()[::10] = np.ceil(top * 1.05) if dtype == np.int32 else top * 1.05
    else:
        above[5, 5] = (top * 1.01 if dtype == np.float32 else top + 1) if outliers == "one pixel" else 60000
    found = pixels(encode(Image.fromarray(above), "TIFF"))
    unlike = above != values
    assert np.array_equal(found[~unlike], expected[~unlike])
    assert (found[unlike] == 255).all()


def test_ranges_of_dark_images_and_of_no_numbers() -> None:
    dark = np.linspace(0, 20, 4096).reshape(64, 64).astype(np.float32)  # of 255
    assert pixels(encode(Image.fromarray(dark), "TIFF")).max() == 20
    hot = np.full((64, 64), 0.5, np.float32)
    hot[:2], hot[2] = np.nan, np.inf
    hot[3, 3] = -np.inf
    found = pixels(encode(Image.fromarray(hot), "TIFF"))[..., 0]
    assert (found[:2] == 0).all() and (found[2] == 255).all() and found[3, 3] == 0 and (found[4:] == 127).all()


def test_bits_of_wide_greys_that_are_fewer_than_their_words() -> None:
    """A dark image of 16 bits is none of 8, and a white one of 12 bits is white."""
    dark = b"P5 2 1 65535 " + struct.pack(">2H", 0, 255)
    assert pixels(dark)[0, :, 0].tolist() == [0, 0]
    assert pixels(b"P5 2 1 1023 " + struct.pack(">2H", 0, 1023))[0, :, 0].tolist() == [0, 255]
    packed = bytes([0xFF, 0xF8, 0x00])  # 4095, 2048
    assert pixels(tiff({256: 2, 257: 1, 258: 12}, packed))[0, :, 0].tolist() == [255, 127]


def webp(alpha: bool) -> bytes:
    """An animation of 48 x 32 whose frames have 16 x 16 pixels at (8, 8); opaque, so that no alpha need be said."""
    frame = encode(Image.new("RGB", (16, 16), (200, 40, 90)), "WEBP", lossless=True)[12:]

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    frame = chunk(b"ANMF", number(4) + number(4) + number(15) + number(15) + number(50) + b"\2" + frame)
    body = (b"WEBP" + chunk(b"VP8X", bytes([2 + 16 * alpha, 0, 0, 0]) + number(47) + number(31))
            + chunk(b"ANIM", bytes([10, 20, 30, 255, 0, 0])) + frame + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("alpha", [False, True])
def test_around_the_first_frame_of_a_webp_it_is_white(alpha: bool) -> None:
    found = pixels(webp(alpha))
    expected = np.full((32, 48, 3), 255)
    expected[8:24, 8:24] = (200, 40, 90)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_gif_of_many_colours_keeps_its_first_frame(orientation: int) -> None:
    frame = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB").quantize(64)
    assert np.array_equal(pixels(encode(frame, "GIF")), np.asarray(frame.convert("RGB")))
    assert pixels(gif(False))[0, 0].tolist() == [255] * 3


def metadata(size: int = 2**20 + 9) -> dict[str, list[tuple[bytes, bytes]]]:
    """Chunks of a PNG that Pillow refuses and no pixel needs."""
    much = zlib.compress(np.random.default_rng(0).bytes(size))
    return {"text": [(b"tEXt", b"a\0" + bytes([65]) * size)] * 66, "compressed text": [(b"zTXt", b"a\0\0" + much)],
            "international text": [(b"iTXt", b"a\0\1\0\0\0" + much)], "profile": [(b"iCCP", b"a\0\0" + much)],
            "short": [(kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP", b"zTXt", b"acTL", b"fcTL")],
            "one byte": [(kind, b"\0") for kind in (b"gAMA", b"pHYs", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"tRNS")],
            "unknown": [(b"vpAg", b""), (b"cICP", b"1"), (b"orNT", b"")]}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", metadata(9))
def test_metadata_of_a_png_spoils_no_pixel(kind: str, after: bool) -> None:
    image = b"IDAT", zlib.compress(bytes([0, 1, 2, 3, 4, 5, 6]))
    chunks = metadata()[kind]
    assert pixels(png(*((image, *chunks) if after else (*chunks, image)))).tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", [b"tEXt", b"pHYs", b"gAMA", b"eXIf", b"tRNS", b"iCCP"])
def test_a_wrong_checksum_of_metadata_spoils_no_pixel(kind: bytes, after: bool) -> None:
    image = b"IDAT", zlib.compress(bytes([0, 1, 2, 3, 4, 5, 6]))
    chunk = kind, b"a\0\0\1\0\2"
    data = png(*((image, chunk) if after else (chunk, image)))
    place = data.index(kind)
    data = data[:place + 10] + bytes([data[place + 10] ^ 1]) + data[place + 11:]
    assert pixels(data).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_what_png_chunks_say_of_the_pixels_is_kept() -> None:
    data = oriented(6, "PNG")
    assert np.array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    exif = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[exif:exif + 4])[0]
    late = data[:exif] + data[exif + length:-12] + data[exif:exif + length] + data[-12:]  # behind the pixels
    assert upright_size(late) == (64, 96) and np.array_equal(pixels(late), pixels(data))
    image = Image.open(io.BytesIO(data))
    for key, text in (("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>'),
                      ("Raw profile type exif", f"\nexif\n 9\n{image.info['exif'].hex()}\n")):
        for zipped in (False, True):
            said = PngImagePlugin.PngInfo()
            said.add_itxt(key, text, zip=zipped) if key.startswith("XML") else said.add_text(key, text, zip=zipped)
            found = encode(Image.open(io.BytesIO(data)).copy(), "PNG", pnginfo=said, exif=b"")
            assert upright_size(found) == (64, 96) and np.array_equal(pixels(found), pixels(data)), (key, zipped)


def test_the_size_of_a_png_is_told_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = oriented(6, "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    assert upright_size(data) == (64, 96)


def test_pixels_of_a_png_must_be_sound() -> None:
    """A wrong checksum of IHDR or PLTE is refused; of IDAT it is zlib's own that counts, as it covers the pixels."""
    data = encode(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)), "PNG")
    for kind in (b"IHDR", b"IDAT"):
        place = data.index(kind)
        length = struct.unpack(">I", data[place - 4:place])[0]
        spoilt = bytearray(data)
        spoilt[place + 4 + length] ^= 1  # the checksum
        if kind == b"IHDR":
            with pytest.raises(Exception, match="cannot read picture"):
                open_image(bytes(spoilt))
        else:
            assert np.array_equal(pixels(bytes(spoilt)), pixels(data))
        spoilt = bytearray(data)
        spoilt[place + 4 + length // 2] ^= 0xFF  # what it covers
        with pytest.raises(Exception, match="cannot read picture"):
            open_image(bytes(spoilt))


def segment(kind: int, content: bytes = b"", *, length: int | None = None) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2 if length is None else length) + content


SHORT = {"nothing": b"".join(segment(kind) for kind in range(0xE0, 0xF0)), "comment": segment(0xFE),
         "JFIF": segment(0xE0, b"JFIF\0"), "Adobe": segment(0xEE, b"Adobe"), "Adobe of 7": segment(0xEE, b"Adobe\0d"),
         "profile": segment(0xE2, b"ICC_PROFILE\0"), "Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
         "Exif": segment(0xE1, b"Exif\0\0"), "Exif of 8": segment(0xE1, b"Exif\0\0MM"), "MPF": segment(0xE2, b"MPF\0"),
         "MPF of 8": segment(0xE2, b"MPF\0II*\0")}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", SHORT)
def test_short_segments_of_a_jpeg_spoil_no_pixel(kind: str, progressive: bool) -> None:
    data = encode(Image.open(io.BytesIO(oriented(1, "JPEG"))), "JPEG", progressive=progressive, exif=b"")
    spoilt = data[:2] + SHORT[kind] + data[2:]
    assert np.array_equal(pixels(spoilt), pixels(data))
    assert np.array_equal(Encoded(spoilt).pixels(), Encoded(data).pixels())
    behind = data[:20] + SHORT[kind] + data[20:]  # behind its JFIF
    assert np.array_equal(pixels(behind), pixels(data))


def test_segments_that_tell_of_the_pixels_are_kept() -> None:
    """Adobe's says what the channels are, and Exif may come after others."""
    data = encode(Image.new("CMYK", (16, 16), (10, 200, 90, 20)), "JPEG")
    assert b"Adobe" in data and np.array_equal(pixels(data[:2] + SHORT["Adobe"] + data[2:]), pixels(data))
    data = oriented(6, "JPEG")
    assert upright_size(data[:2] + SHORT["nothing"] + data[2:]) == (64, 96)


def test_scans_are_counted_up_to_the_end_of_the_image() -> None:
    """A telephone appends a film, in which any two bytes occur."""
    data = encode(Image.open(io.BytesIO(oriented(1, "JPEG"))), "JPEG", progressive=True)
    film = b"\xff\xda\0\0" * 500
    assert np.array_equal(pixels(data + film), pixels(data))
    assert np.array_equal(Encoded(data + film).pixels(), Encoded(data).pixels())
    inside = data[:2] + segment(0xE5, film) + data[2:]
    assert np.array_equal(pixels(inside), pixels(data))
    with pytest.raises(Exception, match="a progressive JPEG of 105 scans"):
        open_image(scans(100) + film)


def test_scans_of_a_jpeg_that_is_not_progressive_are_counted() -> None:
    """Colours in scans of their own may come again and again, too."""
    data = encode(Image.open(io.BytesIO(oriented(1, "JPEG"))), "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    apart = data[:scan] + b"".join(segment(0xDA, bytes([1, part, 0, 0, 63, 0])) + b"\0" * 40 for part in (1, 2, 3)) * 50
    assert frame < scan
    for read in (open_image, Encoded):
        with pytest.raises(Exception, match="a JPEG of 150 scans, at most 100 allowed"):
            read(apart + b"\xff\xd9")


def test_parts_of_a_file_are_read_as_one() -> None:
    whole = bytes(range(200))
    spans = [(3, 10), (20, 21), (50, 200)]
    expected = b"".join(whole[start:stop] for start, stop in spans)
    parts = sound.Parts(io.BytesIO(whole), spans)
    assert parts.read() == expected and parts.read() == b"" and parts.tell() == len(expected)
    rng = np.random.default_rng(0)
    for _ in range(200):
        place, size = (int(number) for number in rng.integers(0, 180, 2))
        assert parts.seek(place) == place
        assert parts.read(size) == expected[place:place + size]
        assert parts.tell() == min(place + size, max(place, len(expected)))


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "JPEG2000 without box", "QOI", "PGM", "PBM", "HEIF"])
def test_newer_and_rarer_formats_are_read(kind: str, tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(oriented(1, "PNG")))
    options = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "JPEG2000 without box": {"no_jp2": True},
               "HEIF": {"quality": -1, "chroma": 444}}.get(kind, {})
    if kind in ("AVIF", "QOI") and kind not in Image.SAVE:
        pytest.skip("an older Pillow")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind in ("PGM", "PBM"):
        image = image.convert("L" if kind == "PGM" else "1")
    data = encode(image, {"PGM": "PPM", "PBM": "PPM"}.get(kind, kind.split()[0]), **options)
    expected = np.asarray(image.convert("RGB"), dtype=int)
    assert np.abs(pixels(data).astype(int) - expected).mean() < (2 if kind in ("AVIF", "HEIF") else 0.01)
    assert upright_size(data) == image.size and (Encoded(data).width, Encoded(data).height) == image.size
    assert np.array_equal(Encoded(data).pixels(), pixels(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.skipif(".avif" not in found.EXTENSIONS, reason="this Pillow has none")
def test_an_avif_is_upright(orientation: int) -> None:
    data = oriented(orientation, "AVIF", quality=100)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert upright_size(data) == upright.size and np.array_equal(pixels(data), np.asarray(upright))


class Counted(io.BytesIO):
    """Bytes that count how often they are read."""

    reads = 0

    def read(self, *size: int) -> bytes:
        self.reads += 1
        return super().read(*size)


@pytest.mark.parametrize("before", [0, 1, 3, 63, 64, 65, 200_000])
def test_fill_before_a_marker_of_a_jpeg_is_passed_over_at_once(before: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", comment=b"a comment")
    plain = file.getvalue()
    place = plain.index(b"\xff\xdb")
    filled = Counted(plain[:place] + before * b"\xff" + plain[place:])
    parts, whole = sound.jpeg(filled, len(filled.getvalue()))
    assert filled.reads < 60 and whole and parts.read() == sound.jpeg(io.BytesIO(plain), len(plain))[0].read()
    assert np.array_equal(open_image(filled.getvalue()), open_image(plain))


def test_a_jpeg_of_more_segments_than_any_image_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MAX_CHUNKS", 50)
    with pytest.raises(BadImage, match="a JPEG of more than 50 segments"):
        open_image(b"\xff\xd8" + 60 * b"\xff\xfe\0\2")
