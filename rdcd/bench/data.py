"""Training views as the loader makes them against the plain recipe, and against bare decoding (`rdcd bench data`)."""

import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from rich.table import Table
from torch.utils.data import DataLoader

from rdcd.augment import assets, colours, fast, ops, recipes
from rdcd.bench.extract import make_photographs
from rdcd.data.encoded import Encoded
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import end_with_parent, own_cores, reuse_freed_memory, start_worker
from rdcd.data.synthetic import MAX_SIZE, MIN_SIZE
from rdcd.data.views import EpochSampler, TwoViews, collate_views, to_tensor
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.tables import wide_console
from rdcd.files import check_output, write_json
from rdcd.provenance import provenance

RECIPES = {"advanced": recipes.advanced, "strong_blur": recipes.strong_blur, "simclr": recipes.simclr}
WAYS = ("plain", "fast", "geometry", "decoding")
STAGES = ("header", "drawing", "decoding", "crop", "overlays", "jitter", "grey", "blur", "jpeg", "tensor")
_STAGE_OF = {"Jittered": "jitter", "Grey": "grey", "Blurred": "blur", "Reencoded": "jpeg", "Mirrored": "crop"}


def bench_data(*, images: str | None = None, recipe: str = "advanced", size: int = 224,
               sides: Sequence[int] = (500, 1024), turn: int = 32, turns: int = 7, workers: Sequence[int] = (1, 2),
               batch_size: int = 32, seed: int = 0, out: str | None = None) -> dict:
    """Time two views of every picture, made plainly, as training makes them, and their bare decoding, in turns.

    Each in a process of one thread, by turns. The plain way decodes by Pillow once for both views, then takes the
    recipe's edits one by one at full size; `geometry` is what `augment.device=cuda` leaves to a loader worker; bare
    decoding is libjpeg-turbo's, of the whole picture. What a stage costs is measured apart, with a clock between the
    stages. Loader workers are measured through the loader of training.

    Args:
        images: folder of photographs; those smaller than `sides` are laid side by side, since enlarging one would leave
            no detail to decode; None: drawn pictures.
        recipe: of the views: advanced, strong_blur or simclr.
        size: side of the views, pixels.
        sides: longer sides of the JPEGs that are read, of quality 90; each is measured for itself.
        turn: pictures of a turn.
        turns: timed turns of each, after one that warms up.
        workers: numbers of loader processes to measure.
        batch_size: pictures a batch of the loader.
        seed: of views, and of the choice of photographs.
        out: JSON file for the result; None: none.

    Raises:
        UserError: settings that cannot work.
    """
    for key, value in (("size", size), ("turn", turn), ("turns", turns), ("batch_size", batch_size)):
        check_number(key, value, 1)
    for side in sides:
        check_number("sides", side, MIN_SIZE, None if images else MAX_SIZE)
    for count in workers:
        check_number("workers", count, 1)
    check_number("seed", seed, 0)
    if recipe not in RECIPES:
        raise UserError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES)}")
    check_path("images", images, null="drawn pictures")
    check_path("out", out, null="no file")
    if out:
        check_output(out)
    torch.set_num_threads(1)
    reuse_freed_memory()  # as a loader worker does
    augment = RECIPES[recipe](size)
    rows = []
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            pictures = make_photographs(Path(folder) / "photographs", turn * (turns + 1), images=images, side=side,
                                        seed=seed)
            rows.append({"side": side, **_turns(pictures, augment, turn=turn, seed=seed),
                         **stages(pictures, augment, seed=seed)})
            for count in workers:
                rows[-1][f"pictures_per_s_{count}_workers"] = _loaded(pictures, augment, workers=count,
                                                                      batch_size=batch_size, seed=seed)
    result = {"rows": rows, "recipe": recipe, "size": size, "images": images or "drawn", "turn": turn, "turns": turns,
              "workers": list(workers), "cores": own_cores(), "provenance": provenance(seed=seed)}
    if out:
        write_json(out, result)
    _show(result)
    return result


class Way:
    """One way of making views, in a process of its own: what a loader worker does about freed memory is its alone."""

    def __init__(self, name: str, pictures: Manifest, augment: recipes.Recipe, *, seed: int) -> None:
        self.name, self.pictures = name, pictures
        how = {"plain": {"path": "plain", "device": None}, "geometry": {"device": "cpu"}}.get(name, {"device": None})
        self.views = TwoViews(pictures, replace(augment, **how), seed=seed)

    def start(self) -> None:
        """Prepare the process: a worker reads each emoji once in its life, no matter how it makes views."""
        end_with_parent()
        torch.set_num_threads(1)
        if self.name != "plain":
            reuse_freed_memory()
        if any(isinstance(op, ops.OverlayEmoji) for _, op in self.views.augment.steps):
            for path in assets.emoji_files():
                assets.read_emoji(path)

    def turn(self, indices: range) -> float:
        """Return the seconds that each of some pictures takes."""
        begun = time.perf_counter()
        for index in indices:
            if self.name == "decoding":
                simplejpeg.decode_jpeg(self.pictures.path(index).read_bytes())
            else:
                self.views[0, index]
        return (time.perf_counter() - begun) / len(indices)


def _turns(pictures: Manifest, augment: recipes.Recipe, *, turn: int, seed: int) -> dict:
    seconds: dict[str, list[float]] = defaultdict(list)
    ways = [Way(name, pictures, augment, seed=seed) for name in WAYS]
    with ExitStack() as stack:
        processes = {way: stack.enter_context(ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=way.start)) for way in ways}
        for start in range(0, len(pictures), turn):
            for way, process in processes.items():
                seconds[way.name].append(process.submit(way.turn, range(start, start + turn)).result())
    each = {name: np.array(values[1:]) for name, values in seconds.items()}  # the first turn warms up
    row: dict[str, float] = {}
    for name, values in each.items():
        row[f"ms_{name}"] = 1000 * float(np.median(values))
    row["pictures_per_s"], row["plain_pictures_per_s"] = 1000 / row["ms_fast"], 1000 / row["ms_plain"]
    for name, ratios in (("ratio", each["plain"] / each["fast"]), ("geometry_ratio", each["plain"] / each["geometry"]),
                         ("bound", each["decoding"] / each["fast"])):
        row |= {name: statistics.median(ratios.tolist()), f"{name}_low": float(ratios.min()),
                f"{name}_high": float(ratios.max())}
    return row


def stages(pictures: Manifest, augment: recipes.Recipe, *, seed: int) -> dict[str, float]:
    """Return the milliseconds that each stage takes of a picture with its two views, `stage_NAME`."""
    spent = dict.fromkeys(STAGES, 0.0)
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[stage] += now - last
        last = now

    for index in range(len(pictures)):
        last = time.perf_counter()
        encoded = Encoded(pictures.path(index))
        lap("header")
        drawn = [augment.draw(encoded.width, encoded.height, np.random.default_rng((seed, 0, index, view)))
                 for view in range(2)]
        plans = [fast.plan(some, encoded.width, encoded.height) for some in drawn]
        lap("drawing")
        pixels = encoded.pixels(fast.reduction(plans))
        lap("decoding")
        for plan in plans:
            view = fast.geometry(pixels, replace(plan, overlays=()))
            lap("crop")
            if plan.overlays:  # again with them, less what it takes again without
                begun = time.perf_counter()
                view = fast.geometry(pixels, plan)
                middle = time.perf_counter()
                fast.geometry(pixels, replace(plan, overlays=()))
                last = time.perf_counter()
                spent["overlays"] += max(middle - begun - (last - middle), 0.0)
            for step in plan.edits:
                view = colours.edited(view, step)
                lap(_STAGE_OF[type(step).__name__])
            to_tensor(view)
            lap("tensor")
    return {f"stage_{stage}": 1000 * total / len(pictures) for stage, total in spent.items()}


def _loaded(pictures: Manifest, augment: recipes.Recipe, *, workers: int, batch_size: int, seed: int) -> float:
    """Return the pictures that loader workers make in a second, from their first batches on."""
    batch_size = max(1, min(batch_size, len(pictures) // (4 * workers)))
    sampler = EpochSampler(len(pictures), batch_size=batch_size, seed=seed)
    loader = DataLoader(TwoViews(pictures, augment, seed=seed), sampler=sampler, batch_size=batch_size,
                        num_workers=workers, collate_fn=collate_views, worker_init_fn=start_worker, drop_last=True,
                        persistent_workers=True)
    for _ in loader:  # workers start, and what they read once is read
        pass
    begun, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["index"])
    return count / (time.perf_counter() - begun)


def _show(result: dict) -> None:
    table = Table(title=f"{result['recipe']}, two views of {result['size']} px, {result['images']}, one core")
    for head in ("longer side", "plain, ms", "training, ms", "geometry, ms", "bare decoding, ms", "plain/training",
                 "over turns", "plain/geometry", "decoding/training",
                 *(f"pictures/s, {count} workers" for count in result["workers"])):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(f"{row['side']} px", *(f"{row[f'ms_{name}']:.2f}" for name in WAYS),
                      f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
                      f"{row['geometry_ratio']:.2f}", f"{row['bound']:.0%}",
                      *(f"{row[f'pictures_per_s_{count}_workers']:.0f}" for count in result["workers"]))
    wide_console().print(table)
    table = Table(title="where a picture's milliseconds go, both views")
    for head in ("longer side", *STAGES):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(f"{row['side']} px", *(f"{row[f'stage_{stage}']:.2f}" for stage in STAGES))
    wide_console().print(table)
