"""Extraction as `rdcd extract` does it against the plain loop anyone would write (`rdcd bench extract`)."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from rdcd.data.images import find_images, open_image
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import own_cores, return_freed_memory
from rdcd.data.progress import track
from rdcd.data.synthetic import MAX_SIZE, MIN_SIZE, draw_picture
from rdcd.data.views import DECODES, RESIZES, Pictures
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.batches import decoded
from rdcd.evaluation.extract import check_device, cut, embedded, take_cores, timed, worker_count
from rdcd.evaluation.networks import load_network
from rdcd.evaluation.shards import Shards
from rdcd.evaluation.tables import wide_console
from rdcd.files import check_output, write_json
from rdcd.models.inference import PRECISIONS, make_embed
from rdcd.models.student import Student, check_size
from rdcd.provenance import provenance
from rdcd.retrieval.descriptors import read_descriptors

PLAIN = "plain loop"


def bench_extract(*, images: str | None = None, model: str | None = None, trunk: str = "efficientnet_b0",
                  size: int = 288, resize: str = "square", side: int = 1024, turn: int = 32, turns: int = 5,
                  batch_size: int = 32, precision: str = "fp32", compile: bool = False, workers: int | None = None,
                  device: str | None = None, seed: int = 0, out: str | None = None) -> dict:
    """Time the plain loop and `rdcd extract`, with either decoding, in turns over the same pictures; return the result.

    The plain loop is one process that opens, decodes and resizes a batch with Pillow, then embeds it in fp32, eager,
    channels first. Each has the same cores and batches; a turn of `rdcd extract` includes its shard on disk.

    Args:
        images: folder of photographs; those smaller than `side` are laid side by side, since enlarging one would leave
            no detail to decode; None: drawn pictures.
        model: see `load_network`; None: a student of random weights.
        trunk: of that student.
        size, resize, precision, compile, workers, device: see `extract`.
        side: longer side of the JPEGs that are read, of quality 90.
        turn: pictures of a turn.
        turns: timed turns of each, after one that warms up.
        seed: of weights, and of the choice of photographs.
        out: JSON file for the result; None: none.

    Raises:
        UserError: settings that cannot work.
    """
    for key, value in (("turn", turn), ("turns", turns), ("batch_size", batch_size), ("size", size)):
        check_number(key, value, 1)
    check_number("side", side, MIN_SIZE, None if images else MAX_SIZE)
    check_number("seed", seed, 0)
    for name, value, known in (("resize", resize, RESIZES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise UserError(f"{name}={value!r}: expected one of {', '.join(known)}")
    check_path("images", images, null="drawn pictures")
    check_path("out", out, null="no file")
    if out:
        check_output(out)
    if compile and resize != "square":
        raise UserError(f"compile=true, resize={resize}: every shape would be compiled by itself; take resize=square")
    device = check_device(device)
    take_cores(device, workers)
    torch.manual_seed(seed)
    network = load_network(model)[0] if model else Student(trunk=trunk)
    network.eval().requires_grad_(False)
    check_size(network, size, name=model or trunk, key="size")
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_photographs(Path(folder) / "photographs", turn * (turns + 1), images=images, side=side,
                                    seed=seed)
        embed = make_embed(network, device=device, precision=precision,
                           compile=(batch_size, size) if compile else None)
        plain = PlainLoop(network.to(device), pictures, size=size, resize=resize, batch_size=batch_size, device=device)
        paths: dict[str, PlainLoop | Production] = {PLAIN: plain}
        for decode in DECODES:
            paths[f"rdcd extract, decode={decode}"] = Production(
                embed, Pictures(pictures, size=size, resize=resize, decode=decode), dim=network.dim, turn=turn,
                batch_size=batch_size, workers=worker_count(workers, device=device), device=device,
                out=Path(folder) / f"{decode}.h5")
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(turns + 1):
            for name, path in paths.items():
                start = time.perf_counter()
                path.turn(number, range(number * turn, (number + 1) * turn))
                seconds[name].append(time.perf_counter() - start)
        descriptors = {name: path.descriptors() for name, path in paths.items()}
    rows = [_row(name, seconds, paths[name].decoding, descriptors, turn=turn) for name in paths]
    result = {"rows": rows, "model": model or f"{trunk}, random weights", "size": size, "resize": resize,
              "side": side, "images": images or "drawn", "batch_size": batch_size, "pictures": turn * turns,
              "precision": precision, "compile": compile, "threads": torch.get_num_threads(), "cores": own_cores(),
              "provenance": provenance(seed=seed, device=device)}
    if out:
        write_json(out, result)
    _show(result)
    return result


class PlainLoop:
    """Pillow decodes and resizes, a picture at a time; the network is eager, fp32 and channels first."""

    def __init__(self, network: torch.nn.Module, pictures: Manifest, *, size: int, resize: str, batch_size: int,
                 device: str) -> None:
        self.network, self.pictures, self.batch_size, self.device = network, pictures, batch_size, device
        self.resize, self.shape = resize, Pictures(pictures, size=size, resize=resize)._target
        self.decoding: list[float] = []  # seconds of each turn
        self._found: list[np.ndarray] = []

    def turn(self, number: int, rows: range) -> None:
        """Embed pictures."""
        return_freed_memory()  # as in any process; `rdcd extract` asks the C library to keep it
        decoding, parts = 0.0, []
        for some in cut(rows, self.batch_size if self.resize == "square" else 1):
            start = time.perf_counter()
            batch = []
            for index in some:
                picture = Image.open(self.pictures.path(index)).convert("RGB")
                picture = picture.resize(self.shape(picture.size), Image.Resampling.BILINEAR)
                batch.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            stacked = torch.stack(batch).contiguous()
            decoding += time.perf_counter() - start
            with torch.inference_mode():
                parts.append(self.network.embed(stacked.to(self.device).float() / 255).cpu().numpy())
        self.decoding.append(decoding)
        self._found.append(np.concatenate(parts))

    def descriptors(self) -> np.ndarray:
        """Return those of all turns."""
        return np.concatenate(self._found)


class Production:
    """What `rdcd extract` does for a shard, with one network for all turns."""

    def __init__(self, embed: Callable, dataset: Pictures, *, dim: int, turn: int, batch_size: int, workers: int,
                 device: str, out: Path) -> None:
        self.embed, self.dataset, self.batch_size = embed, dataset, batch_size
        self.workers, self.device = workers, device
        self.shards = Shards(out, plan={}, pictures=dataset.pictures, dim=dim, shard=turn)
        self.decoding: list[float] = []

    def turn(self, number: int, rows: range) -> None:
        """Write the shard of these pictures."""
        take_cores(self.device, self.workers)
        waited: list[float] = []
        bad: dict = {}
        batches = timed(decoded(self.dataset, cut(rows, self.batch_size), workers=self.workers,
                                pin=self.device == "cuda"), waited)
        self.shards.write(number, embedded(self.embed, batches, batch_size=self.batch_size, bad=bad,
                                           advance=lambda count: None), bad)
        self.decoding.append(sum(waited))

    def descriptors(self) -> np.ndarray:
        """Return those of the file that all shards make."""
        self.shards.merge()
        return read_descriptors(self.shards.out).vectors


def make_photographs(folder: Path, count: int, *, images: str | None, side: int, seed: int) -> Manifest:
    """Write JPEGs of quality 90 whose longer side is `side`, as good as photographs of that size; return them."""
    folder.mkdir(parents=True)
    sources = None
    if images is not None:
        sources = find_images(images)
        np.random.default_rng(seed).shuffle(sources)
    with track(count, "photographs") as advance:
        for number in range(count):
            if sources is None:
                picture = draw_picture(seed * 1_000_000 + number, size=side)
            else:
                picture = open_image(sources[number % len(sources)])
                if max(picture.size) >= side:
                    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
                else:
                    picture = _side_by_side(sources, number, side)
            picture.save(folder / f"{number:05d}.jpg", quality=90)
            advance(1)
    return Manifest.of_folder(folder)


def _side_by_side(sources: list[Path], number: int, side: int) -> Image.Image:
    """Fill a picture of 4:3 or 3:4 with photographs of their own sizes, row by row."""
    width, height = (side, side * 3 // 4) if number % 3 else (side * 3 // 4, side)
    canvas = Image.new("RGB", (width, height))
    take, y = number * 20, 0
    while y < height:
        x = tallest = 0
        while x < width:
            piece = open_image(sources[take % len(sources)])
            canvas.paste(piece, (x, y))
            take, x, tallest = take + 1, x + piece.width, max(tallest, piece.height)
        y += tallest
    return canvas


def _row(name: str, seconds: dict[str, list[float]], decoding: list[float], descriptors: dict[str, np.ndarray], *,
         turn: int) -> dict:
    own, plain = (np.array(seconds[key][1:]) for key in (name, PLAIN))  # the first turn warms up
    ratios = (plain / own).tolist()
    pair = [descriptors[key] for key in (name, PLAIN)]
    raw = _cosines(*pair)
    centred = _cosines(*(vectors - pair[1].mean(axis=0) for vectors in pair))
    return {"what": name, "images_per_s": turn / statistics.median(own), "median": statistics.median(own) / turn,
            "low": float(own.min()) / turn, "high": float(own.max()) / turn, "turns": len(own),
            "decode_share": float(sum(decoding[1:]) / own.sum()), "ratio": statistics.median(ratios),
            "ratio_low": min(ratios), "ratio_high": max(ratios),
            "cosine_mean": float(raw.mean()), "cosine_min": float(raw.min()),
            "centred_cosine_mean": float(centred.mean()), "centred_cosine_min": float(centred.min())}


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = (vectors.astype(np.float64) for vectors in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.maximum(lengths, 1e-30)


def _show(result: dict) -> None:
    table = Table(title=f"{result['model']}, {result['size']} px {result['resize']}, JPEGs of {result['side']} px, "
                        f"batches of {result['batch_size']}, {result['precision']}"
                        f"{', compiled' * result['compile']}, {result['provenance']['device']}")
    for head in ("extraction", "images/s", "ms a picture", "over turns", "decoding", "plain/this", "over turns",
                 "cosine, min", "centred, min"):
        table.add_column(head, justify="left" if head == "extraction" else "right")
    for row in result["rows"]:
        table.add_row(row["what"], f"{row['images_per_s']:.1f}", f"{1000 * row['median']:.1f}",
                      f"{1000 * row['low']:.1f}–{1000 * row['high']:.1f}", f"{row['decode_share']:.0%}",
                      f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
                      f"{row['cosine_min']:.5f}", f"{row['centred_cosine_min']:.5f}")
    wide_console().print(table)
    for row in result["rows"][1:]:
        print(f"{row['what']}: {row['ratio']:.2f} times the plain loop (spread {row['ratio_low']:.2f}–"
              f"{row['ratio_high']:.2f} over {row['turns']} turns), cosine with it {row['cosine_mean']:.5f} on "
              f"average, {row['cosine_min']:.5f} at least")
