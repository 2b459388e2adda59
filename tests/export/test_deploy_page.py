"""The Python of docs/deploy.md does what the page says: without torch, and in a database."""

import io
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rdcd.data.images import open_image
from rdcd.evaluation.extract import extract
from rdcd.models.exported import card_of
from rdcd.retrieval.descriptors import Descriptors, read_descriptors, write_descriptors
from rdcd.retrieval.knn import search
from rdcd.retrieval.score_norm import background_products, parse_score_norm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
ALONE, DATABASE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_file_runs_without_torch(onnx_file: Path, drawn: Path, tmp_path: Path) -> None:
    for path in (onnx_file, card_of(onnx_file)):
        shutil.copy(path, tmp_path)
    (tmp_path / "alone.py").write_text(
        ALONE + "\nassert not {'torch', 'rdcd', 'timm'} & set(sys.modules), 'the page says without'\n")
    pictures = sorted(drawn.iterdir())
    done = subprocess.run([sys.executable, "alone.py", onnx_file.name, *map(str, pictures)], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extract(images=str(drawn), model=str(onnx_file), out=str(tmp_path / "d.h5"), decode="exact", device="cpu")
    np.testing.assert_allclose(np.load(tmp_path / "descriptors.npy"), read_descriptors(tmp_path / "d.h5").vectors,
                               atol=1e-5)


def deployed() -> dict[str, bytes]:
    """Images that simple readers get wrong."""
    cells = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    rgba, made = Image.fromarray(cells), {}

    def add(name: str, image: Image.Image, kind: str, **options: object) -> None:
        made[name] = io.BytesIO()
        image.save(made[name], kind, **options)

    wide = Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 340)
    add("16 bits", wide, "PNG")
    add("16 bits, one clear", wide, "PNG", transparency=3400)
    add("16 bits of a TIFF", wide, "TIFF")
    add("alpha", rgba, "PNG")
    add("grey with alpha", rgba.convert("LA"), "PNG")
    add("palette", rgba.convert("RGB").quantize(8), "PNG", transparency=1)
    add("black and white", rgba.convert("1"), "PNG")
    add("inks", rgba.convert("RGB").convert("CMYK"), "JPEG")
    add("first frame", rgba.convert("RGB"), "GIF", save_all=True, append_images=[rgba.convert("RGB").rotate(180)])
    fractions = np.linspace(0, 1, 6000, dtype=np.float32).reshape(60, 100)
    fractions[3, 4], fractions[5, 6] = 1.01, np.nan
    add("fractions", Image.fromarray(fractions), "TIFF")
    add("floats", Image.fromarray(fractions * 200), "TIFF")
    add("integers", Image.fromarray(np.nan_to_num(fractions * 60_000).astype(np.int32)), "TIFF")
    for kind in ("JPEG", "PNG", "TIFF"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            add(f"{kind} {orientation}", rgba.convert("RGB"), kind, exif=exif)
    found = {name: data.getvalue() for name, data in made.items()}
    values = np.arange(192, dtype="<u2") * 340
    found["white is zero"] = tiff({256: 16, 257: 12, 258: 16, 262: 0}, values.tobytes())
    found["fractions, white is zero"] = tiff({256: 16, 257: 12, 258: 32, 262: 0, 339: 3},
                                             (values / 65535).astype("<f4").tobytes())
    found["12 bits"] = tiff({256: 2, 257: 1, 258: 12}, bytes([0xFF, 0xF8, 0x00]))
    found["a part"] = (b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x81\1\0" + bytes(range(12)) + b"," +
                       struct.pack("<HHHH", 1, 1, 2, 2) + b"\0\x02\x04\x14\x45\x51\x05\0;")
    found["10 bits"] = b"P5 2 1 1023 " + struct.pack(">2H", 5, 1023)
    return found


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian grey TIFF by hand."""
    tags = {259: 1, 262: 1, 273: 0, 277: 1, 279: len(data)} | tags
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_the_printed_reader_gives_the_pixels_that_rdcd_gives(tmp_path: Path) -> None:
    page: dict = {"side": 8}
    start, stop = ALONE.index("def grey("), ALONE.index("descriptors = session")
    head = "import numpy as np\nfrom PIL import Image\n"
    exec(compile(head + ALONE[start:stop], PAGE.name, "exec"), page)  # noqa: S102  (the page's own block)
    for name, data in deployed().items():
        (tmp_path / "a").write_bytes(data)
        ours = open_image(tmp_path / "a")
        assert np.array_equal(np.asarray(page["decode"](tmp_path / "a")), np.asarray(ours)), name
        small = np.asarray(ours.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(page["read"](tmp_path / "a"), small), name


def directions(count: int, seed: int) -> np.ndarray:
    """Unit vectors [count, 24] around a common mean, so that background products differ from query to query."""
    vectors = np.random.default_rng(seed).normal(size=(count, 24)) + 0.4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_vector_database_gives_normalized_scores(tmp_path: Path, monkeypatch) -> None:
    references = Descriptors(names=np.array([f"R{i:03}" for i in range(200)]), vectors=directions(200, 0))
    background = Descriptors(names=np.array([f"B{i:03}" for i in range(50)]), vectors=directions(50, 1))
    queries = Descriptors(names=np.array([f"Q{i:03}" for i in range(20)]), vectors=directions(20, 2))
    write_descriptors(tmp_path / "references.h5", references)
    write_descriptors(tmp_path / "background.h5", background)
    monkeypatch.chdir(tmp_path)
    page: dict = {}
    exec(compile(DATABASE, PAGE.name, "exec"), page)  # noqa: S102  (the page's own block)
    norm = parse_score_norm("1.0[0,2]")
    bias = norm.bias(background_products(queries.vectors, background.vectors, norm.last + 1))
    assert np.ptp(bias) > 0.05
    expected = search(queries, references, k=10, biases=(bias,))[0]
    for row, name in enumerate(queries.names.tolist()):
        found = page["search"](queries.vectors[row], limit=10)
        ours = expected.queries == name
        assert [one for one, _ in found] == expected.references[ours].tolist()
        np.testing.assert_allclose([score for _, score in found], expected.scores[ours], atol=1e-5)
    page["client"].close()
