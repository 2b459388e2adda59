"""Small pictures of every format and mode, and seeded ways to spoil their files; as a program it reads them.

    python tests/data/mutations.py SEED COUNT FOLDER

writes COUNT mutated files into FOLDER and reads each by `open_image`; afterwards all of them by the data sets of
training and of extraction. Its memory is limited and each file has a few seconds, so that bombs and hangs show as such.
"""

import io
import resource
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS, GIGABYTES = 10, 2  # a file may take, and all of this beside what there is at the start
_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def originals() -> dict[str, bytes]:
    """Return name with extension → file."""
    cells = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    rgba = Image.fromarray(cells).resize((45, 35), Image.Resampling.BILINEAR)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": 50}
    made = {
        "baseline.jpg": (rgb, {"exif": exif}), "progressive.jpg": (rgb, {"progressive": True}), "grey.jpg": (grey, {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}), "restart.jpg": (rgb, {"restart_marker_blocks": 2}),
        "rgb.png": (rgb, {"exif": exif}), "rgba.png": (rgba, {}), "palette.png": (rgb.quantize(8), {"transparency": 1}),
        "wide.png": (wide, {}), "bits.png": (grey.convert("1"), {}), "la.png": (rgba.convert("LA"), {}),
        "animated.png": (rgb, frames), "animated.gif": (rgb, frames), "palette.gif": (rgb.quantize(8), {}),
        "lossy.webp": (rgb, {"exif": exif}), "lossless.webp": (rgba, {"lossless": True}),
        "animated.webp": (rgb, frames), "alpha.webp": (rgba, {}), "rgb.bmp": (rgb, {}), "rgb.ppm": (rgb, {}),
        "palette.bmp": (rgb.quantize(8), {}), "rgb.avif": (rgb, {"exif": exif}), "rgb.jp2": (rgb, {}),
        "wide.pgm": (wide.convert("I"), {}), "rgba.qoi": (rgba, {}),
        "plain.tif": (rgb, {"exif": exif}), "wide.tif": (wide, {}), "float.tif": (grey.convert("F"), {}),
        "pages.tif": (rgb, frames | {"compression": "tiff_lzw"}), "alpha.tif": (rgba, {"compression": "tiff_lzw"}),
        "group4.tif": (grey.convert("1"), {"compression": "group4"}),
        "cmyk.tif": (rgb.convert("CMYK"), {"compression": "packbits"})}
    made |= {f"{name}.tif": (rgb, {"compression": name}) for name in ("tiff_adobe_deflate", "jpeg", "packbits", "zstd")}
    files = {}
    for name, (picture, options) in made.items():
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000"}
        picture.save(buffer, kind.get(name[-3:], name.rpartition(".")[2]), **options)
        files[name] = buffer.getvalue()
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Spoil a file in one or two ways."""
    for _ in range(rng.integers(1, 3)):
        ways = [_flip, _cut, _insert, _remove, _repeat, _extreme, _extreme]
        if data.startswith(b"\x89PNG"):
            ways += [_chunks] * 6
        data = ways[rng.integers(len(ways))](data, rng)
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Half of the time in the first 64 bytes, where headers are."""
    return int(rng.integers(max(min(len(data), 64) if rng.random() < 0.5 else len(data), 1)))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if spoilt:
            spoilt[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[:rng.integers(len(data) + 1)]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 65))) + data[at:]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 65)):]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at:at + int(rng.integers(1, 129))] * int(rng.integers(2, 9)) + data[at:]


def _extreme(data: bytes, rng: np.random.Generator) -> bytes:
    """Set a number of one, two or four bytes to an extreme."""
    size, value, at = int(rng.choice([1, 2, 4])), int(rng.choice(_EXTREMES)), _place(data, rng)
    return data[:at] + (value % 256**size).to_bytes(size, rng.choice(["little", "big"])) + data[at + size:]


def _chunks(data: bytes, rng: np.random.Generator) -> bytes:
    """Spoil, swap, repeat or drop the chunks of a PNG whose checksums are right again."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = struct.unpack(">I", data[at:at + 4])[0]
        chunks.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    one, other = (int(i) for i in rng.integers(len(chunks), size=2))
    kind, content = chunks[one]
    match rng.integers(5):
        case 0:
            chunks[one], chunks[other] = chunks[other], chunks[one]
        case 1:
            chunks.insert(other, chunks[one])
        case 2:
            del chunks[one]
        case 3:
            chunks[one] = kind, [_flip, _cut, _insert, _remove, _extreme][rng.integers(5)](content, rng)
        case 4:
            bomb = b"x\0\0" + zlib.compress(bytes(2**22))
            chunks.insert(other, [(b"zTXt", bomb), (b"iCCP", bomb), (b"IDAT", bomb[3:])][rng.integers(3)])
    return data[:8] + b"".join(struct.pack(">I", len(content)) + kind + content
                               + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks)


def main(seed: int, count: int, folder: Path) -> None:
    from rdcd.data.images import MAX_PIXELS, open_image
    from rdcd.data.manifest import Manifest
    from rdcd.data.views import Pictures, TwoViews
    from rdcd.errors import BadImage

    def late(number: int, frame: object) -> None:
        raise SystemExit(f"{path.name} of seed {seed} takes more than {SECONDS} seconds")

    files = sorted(originals().items())
    paths = []
    for i in range(count):
        name, data = files[i % len(files)]
        paths.append(folder / f"{i:05d}-{name}")
        paths[-1].write_bytes(mutate(data, np.random.default_rng((seed, i))))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + GIGABYTES * 2**30,) * 2)
    signal.signal(signal.SIGALRM, late)
    bad = set()
    for path in paths:
        (folder / "now").write_text(path.name)  # for who finds this process dead
        signal.alarm(SECONDS)
        try:
            picture = open_image(path)
            assert picture.mode == "RGB" and 0 < picture.width * picture.height <= MAX_PIXELS, picture
            assert picture.resize((1, 1)).tobytes()
            del picture  # of up to 400 MB
        except BadImage as error:
            assert error.path == str(path) and error.reason and "\n" not in error.reason, error
            bad.add(path)
        except Exception as error:
            raise SystemExit(f"{path.name} of seed {seed}: {type(error).__name__}: {error}") from error
    signal.alarm(0)

    pictures = Manifest(folder, paths)
    shown = [found for _, found in map(Pictures(pictures, size=8).__getitem__, range(count))]
    assert {Path(found.path) for found in shown if isinstance(found, BadImage)} == bad
    views = TwoViews(pictures, lambda picture, rng: picture.resize((8, 8)))
    for i in range(count):
        sample = views[0, i]
        assert sample["query"].shape == (3, 8, 8) and paths[sample["index"]] not in bad
        assert [Path(error.path) for error in sample["bad"]] == [
            paths[(i + k) % count] for k in range((sample["index"] - i) % count)], path
    print(f"{count - len(bad)} decoded, {len(bad)} bad")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
