"""Pictures that nobody would expect, and those made to hurt: what becomes of each."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rdcd
from rdcd.data.images import find_images, open_image
from rdcd.errors import BadImage

WHITE = [255, 255, 255]


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    picture = open_image(data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def refusal(source: bytes | Path, **options: int) -> str:
    with pytest.raises(BadImage) as error:
        open_image(source, **options)
    return error.value.reason


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (2, 1), depth: int = 8, colour: int = 2) -> bytes:
    """A PNG by hand; colour 0: grey, 2: RGB, 3: palette."""
    head = b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (head, *chunks, (b"IEND", b"")))


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian grey TIFF by hand: `data` is its one strip or tile."""
    tiled = 322 in tags
    tags = {258: 8, 259: 1, 262: 1, 277: 1, 325 if tiled else 279: len(data)} | tags
    tags[324 if tiled else 273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(kind: str, orientation: int) -> None:
    corner = np.zeros((32, 48, 3), dtype=np.uint8)
    corner[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encode(Image.fromarray(corner), kind, exif=exif)) > 128
    assert found.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)  # where the standard puts the corner
    assert found[-8 if bottom else 8, -8 if right else 8].all() and found.mean() == pytest.approx(1 / 6, abs=0.02)


@pytest.mark.parametrize("exif", [
    b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01A\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(99),
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x12\1\5\0\1\0\0\0\0\0\0\0"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_broken_exif_spoils_no_picture(kind: str, exif: bytes) -> None:
    plain = Image.new("RGB", (16, 8), (200, 40, 90))
    np.testing.assert_allclose(pixels(encode(plain, kind, exif=exif))[4, 8], (200, 40, 90), atol=4)


def test_ycck_as_adobe_writes_it() -> None:
    """Photoshop's CMYK JPEGs: the inks cyan, magenta and yellow as YCbCr, and black inverted."""
    red, green, blue = 200, 40, 90
    inks = Image.new("RGB", (16, 16), (255 - red, 255 - green, 255 - blue)).convert("YCbCr")
    channels = [Image.eval(channel, lambda value: 255 - value) for channel in inks.split()]  # saved inverted
    data = bytearray(encode(Image.merge("CMYK", [*channels, Image.new("L", (16, 16), 0)]), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    data[marker + 11] = 2  # what the channels are: YCCK
    np.testing.assert_allclose(pixels(bytes(data))[8, 8], (red, green, blue), atol=4)


def test_transparency_of_palettes_and_of_single_colours() -> None:
    palette = (b"PLTE", bytes([200, 0, 100, 10, 20, 30]))
    row = (b"IDAT", zlib.compress(bytes([0, 0, 1])))
    found = pixels(png(palette, (b"tRNS", bytes([0, 255])), row, colour=3))
    assert found.tolist() == [[WHITE, [10, 20, 30]]]
    half = pixels(png(palette, (b"tRNS", bytes([51])), row, colour=3))[0]
    assert half[0].tolist() == [244, 204, 224] and half[1].tolist() == [10, 20, 30]
    rgb = (b"IDAT", zlib.compress(bytes([0, 1, 2, 3, 4, 5, 6])))
    assert pixels(png((b"tRNS", bytes([0, 1, 0, 2, 0, 3])), rgb)).tolist() == [[WHITE, [4, 5, 6]]]
    grey = (b"IDAT", zlib.compress(bytes([0, 7, 8])))
    assert pixels(png((b"tRNS", bytes([0, 7])), grey, colour=0)).tolist() == [[WHITE, [8, 8, 8]]]
    wide = (b"IDAT", zlib.compress(bytes([0, 1, 1, 0x80, 0x80])))
    assert pixels(png((b"tRNS", bytes([1, 1])), wide, colour=0, depth=16)).tolist() == [[WHITE, [128] * 3]]


def test_palette_with_alpha_channel() -> None:
    picture = Image.new("PA", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 100])
    picture.putdata([(1, 255), (1, 0)])
    assert pixels(encode(picture.convert("RGBA"), "PNG")).tolist() == [[[200, 0, 100], WHITE]]
    assert pixels(encode(picture.convert("LA"), "TIFF")).tolist()[0][1] == WHITE


def test_sixteen_bits_of_every_byte_order_and_in_colour() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(pixels(encode(Image.fromarray(values), "PNG")), expected)
    for order in "<>":
        data = encode(Image.frombytes("I;16" + "B" * (order == ">"), (256, 256), values.astype(order + "u2").tobytes()),
                      "TIFF")
        assert np.array_equal(pixels(data), expected)
    colour = (b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 0, 257, 65535, 32896, 255, 256)))
    assert pixels(png(colour, depth=16)).tolist() == [[[0, 1, 255], [128, 0, 1]]]  # the upper bytes


@pytest.mark.parametrize(("values", "expected"), [
    ([np.nan, 0, 255], [0, 0, 255]), ([np.inf, -np.inf, 128], [255, 0, 128]), ([0, 0.5, 1], [0, 127, 255]),
    ([np.nan, np.nan, np.nan], [0, 0, 0]), ([3e38, -3e38, 0], [255, 0, 0])])
def test_floats(values: list[float], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


def test_a_telephones_two_pictures_are_its_first() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_allclose(pixels(data)[8, 8], (255, 0, 0), atol=4)


def gif(transparent: bool) -> bytes:
    """A screen of 4 x 4 whose first picture, all of colour 2, has 2 x 2 pixels in the middle."""
    control = b"!\xf9\x04\x01\0\0\x03\0" if transparent else b""
    return (b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x81\1\0" + bytes([*[9] * 3, *[50] * 3, *[70] * 3, *[90] * 3])
            + control + b"," + struct.pack("<HHHH", 1, 1, 2, 2) + b"\0\x02\x04\x14\x45\x51\x05\0;")


@pytest.mark.parametrize("transparent", [True, False])
def test_first_frame_that_covers_a_part(transparent: bool) -> None:
    found = pixels(gif(transparent))[..., 0]  # around it nothing is drawn, whatever the first colour
    expected = np.full((4, 4), 255)
    expected[1:3, 1:3] = 70
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_after_the_first_may_be_anything(kind: str) -> None:
    frames = [Image.new("RGBA", (16, 16), (255, 0, 0, 255)), Image.new("RGBA", (16, 16), (0, 0, 0, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], disposal=2, **options)
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (20_000, 20), (20, 20_000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_thin_and_long(kind: str, size: tuple[int, int]) -> None:
    assert open_image(encode(Image.new("RGB", size, "navy"), kind)).size == size


def test_twenty_thousand_squared_is_refused_by_its_header() -> None:
    for data in (png((b"IDAT", zlib.compress(bytes(100))), size=(20_000, 20_000)),
                 tiff({256: 20_000, 257: 20_000}, bytes(100)),
                 b"P6 20000 20000 255 " + bytes(100),
                 b"GIF89a" + struct.pack("<HH", 20_000, 20_000) + gif(False)[10:]):
        assert "pixels" in refusal(data) and len(data) < 300
    said = refusal(encode(Image.new("L", (300, 300)), "PNG"), max_pixels=80_000)
    assert said == "300x300 pixels, more than max_pixels=80000 allows"


@pytest.mark.parametrize("kind", ["JPEG", "PROGRESSIVE", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF",
                                  "JPEG2000", "QOI"])
def test_cut_short_anywhere(kind: str, picture) -> None:
    data = encode(picture(0, 64, 48), *(("JPEG",) if kind == "PROGRESSIVE" else (kind,)),
                  **({"progressive": True} if kind == "PROGRESSIVE" else {}))
    for length in np.linspace(0, 0.9 * len(data), 10).astype(int):
        assert refusal(data[:length])


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    for kind in ("PNG", "GIF", "WEBP", "BMP"):
        (tmp_path / "a.jpg").write_bytes(encode(Image.new("RGB", (8, 8), (0, 0, 255)), kind, lossless=True))
        assert np.asarray(open_image(tmp_path / "a.jpg"))[4, 4].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "PDF", "SGI", "IM"])
def test_other_formats_are_not_even_tried(kind: str) -> None:
    """Of EPS, Pillow would start Ghostscript."""
    assert refusal(encode(Image.new("RGB", (32, 32)), kind)) == (
        "no sound file of the formats JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, QOI, JPEG2000, AVIF, HEIF")


def test_what_is_no_file_is_listed_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(tmp_path / "socket.jpg"))  # a longer name would not do
        reasons = {path.name: refusal(path) for path in find_images(tmp_path)}
    assert reasons == {"device.jpg": "a device or socket, not a file", "gone.jpg": "No such file or directory",
                       "pipe.jpg": "a pipe, not a file", "round.jpg": "Too many levels of symbolic links",
                       "socket.jpg": "a device or socket, not a file"}
    assert refusal(tmp_path / "a\0b.jpg") and refusal(tmp_path / ("x" * 300)) == "File name too long"


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")

    def closed(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", closed)  # root may open anything
    assert refusal(tmp_path / "a.jpg") == "Permission denied"


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encode(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


METADATA = {"text", "many texts", "international text", "profile"}  # which is passed over


def bombs() -> dict[str, bytes]:
    """Small files that would become gigabytes, or take hours; of METADATA, the pixels are sound.

    AVIF and JPEG 2000 that hold less than they claim are filled up by their decoders.
    """
    squeeze = zlib.compressobj(9)
    block = squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    much = block + block[2:] * 95 + squeeze.flush()  # 1.5 GB
    image = b"IDAT", zlib.compress(bytes(7))
    plain = encode(Image.new("L", (64, 64)), "GIF")
    stream = encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True)
    wide = struct.pack(">2I", 9500, 9500)
    return {
        "tile of JPEG 2000": stream[:8] + wide + stream[16:24] + wide + stream[32:],
        "pixels of JPEG 2000": stream[:8] + wide + stream[16:],
        "box of JPEG 2000": encode(Image.new("RGB", (64, 64)), "JPEG2000").replace(stream[8:16], wide, 1),
        "box past the end of JPEG 2000": encode(Image.new("RGB", (64, 64)), "JPEG2000").replace(
            (45).to_bytes(4, "big") + b"jp2h", (2**31 - 1).to_bytes(4, "big") + b"jp2h"),
        "pixels of QOI": b"qoif" + wide + b"\3\0" + b"\xfd" * 100,
        "pixels of AVIF": encode(Image.new("RGB", (64, 64)), "AVIF").replace(
            b"ispe" + struct.pack(">3I", 0, 64, 64), b"ispe\0\0\0\0" + wide),
        "text": png((b"zTXt", b"a\0\0" + much), image),
        "many texts": png(*[(b"zTXt", b"a%d\0\0" % i + zlib.compress(bytes(2**20 - 9))) for i in range(99)], image),
        "international text": png((b"iTXt", b"a\0\1\0\0\0" + much), image),
        "profile": png((b"iCCP", b"a\0\0" + much), image),
        "tile": tiff({256: 100, 257: 100, 259: 8, 322: 40_000, 323: 40_000}, much),
        "tile without end": tiff({256: 100, 257: 100, 259: 8, 322: 2**31 - 16, 323: 2**31 - 16}, much),
        "strip": tiff({256: 100, 257: 100, 259: 8, 278: 2**31, 279: 2**32 - 1}, much[:1000]),
        "strip past the end": tiff({256: 9000, 257: 9000, 259: 8, 278: 9000}, much[:1000]),
        "tags past the end": b"II*\0\xf0\xff\xff\xff" + bytes(100), "tags in a circle": b"II*\0\4\0\0\0" + bytes(100),
        "pixels": png((b"IDAT", zlib.compress(bytes(100))), size=(9000, 9000)),
        "pixels of WebP": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + (16382).to_bytes(3, "little") * 2,
        "frame": plain.replace(b",\0\0\0\0\x40\0\x40\0", b",\0\0\0\0\xff\xff\xff\xff"), "scans": scans(5000)}


def test_more_data_than_pixels_is_not_inflated() -> None:
    """What IDAT has beyond the last row is not read."""
    much = zlib.compress(bytes(2**26))
    assert pixels(png((b"IDAT", much), size=(2, 1))).tolist() == [[[0, 0, 0]] * 2]


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_bombs_are_bad_images_or_passed_over_within_half_a_gigabyte(tmp_path: Path) -> None:
    made = bombs()
    for name, data in made.items():
        assert len(data) < 2_000_000, name
        (tmp_path / f"{name}.jpg").write_bytes(data)
    program = """
import resource, signal, sys
from pathlib import Path
from rdcd.data.images import open_image
from rdcd.errors import BadImage
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.alarm(20)
    try:
        print(path.stem, open_image(path).size)
    except BadImage as error:
        print(path.stem, "bad", error.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(rdcd.__file__).resolve().parent.parent)})
    assert done.returncode == 0, done.stderr[-2000:]
    before, *lines, most = done.stdout.splitlines()
    assert len(lines) == len(made)
    assert {line for line in lines if " bad " not in line} == {
        *(f"{name} (2, 1)" for name in METADATA), *(f"pixels of {kind} (9500, 9500)" for kind in ("AVIF", "JPEG 2000"))}
    assert int(most) < int(before) + 512 * 1024
    said = {line.partition(" bad ")[0]: line.partition(" bad ")[2] for line in lines}
    assert said["scans"] == "a progressive JPEG of 5005 scans, at most 100 allowed"
    assert said["tile of JPEG 2000"] == "tiles of 9500x9500 pixels in 3 colours, at most 200000000 numbers allowed"
    assert said["box of JPEG 2000"] == "a JPEG 2000 of 9500x9500 pixels that holds 64x64"
    assert said["box past the end of JPEG 2000"] == "ValueError: a JPEG 2000 with a box past its end"
    assert said["pixels of QOI"] == "a QOI of 9500x9500 pixels, at most 10000000 allowed"
    assert said["tile"] == "tiles of 40000x40000 pixels make 40000x40000, at most 100000000 allowed"


def test_a_file_longer_than_any_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(encode(Image.new("RGB", (8, 8)), "BMP"))
    os.truncate(path, 2**31)  # a hole, which takes no disk
    assert refusal(path) == "a file of 2147483648 bytes, at most 816777216 allowed"
