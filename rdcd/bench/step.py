"""The training step, whole, against a bare loop over the same networks and losses (`rdcd bench step`)."""

import copy
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from rich.table import Table
from torch import nn

from rdcd.bench.bare import Bare
from rdcd.bench.costs import step_costs
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import share_cores
from rdcd.data.views import Augment
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.tables import wide_console
from rdcd.files import check_output, write_json
from rdcd.models.student import Student, check_size
from rdcd.models.teacher import Teacher
from rdcd.provenance import provenance
from rdcd.training.clock import Clock
from rdcd.training.console import Console
from rdcd.training.datamodule import Batches, DataModule, DataSettings
from rdcd.training.fit import TrainerSettings, _channels_last, device_of, make_trainer, seed_all
from rdcd.training.interruption import LastCheckpoint
from rdcd.training.module import CopyDetection

RECIPE = {"steps": 390_600, "batch_size": 256}  # docs/method.md §3: 100 epochs of DISC2021's training pictures
TRAINING, BARE, NETWORKS = "rdcd train", "bare loop", "networks alone"


def bench_step(*, student: partial | None, loss: Callable[..., nn.Module], data: DataSettings, augment: Augment,
               trainer: TrainerSettings, logger: dict[str, Callable[..., Logger]] | None = None,
               teacher_trunk: str | None = "resnet50", teacher_dim: int = 512, input: str = "memory", steps: int = 16,
               block: int = 2, seed: int = 0, out: str | None = None) -> dict:
    """Time the step of `rdcd train`, a bare loop and the networks alone, in turns of `block` steps; return the result.

    In turns, so that all see the same machine; figures are medians over turns, ratios are of turns side by side. Each
    has its own copies of networks and queues, and with pictures in memory the first two compute the same thing: how
    far their weights are apart in the end is part of the result.

    Args:
        student, loss, trainer, logger: as for `train`; of the trainer, all that concerns a step.
        data: size and number of pictures a step; with `input=loader`, where they come from.
        augment: recipe of their views.
        teacher_trunk: any timm model, with random weights; None: no teacher.
        teacher_dim: size of its descriptor.
        input: `memory`, the same few batches of random pixels again and again; `loader`, the batches of a training,
            for which the first two take turns at one loader, so that it works on steadily; the networks alone are then
            timed before.
        steps: timed steps of each, a multiple of `block`.
        block: steps a turn.
        seed: of weights and pictures.
        out: JSON file for the result; None: none.

    Raises:
        UserError: settings that cannot work.
    """
    _check(student, trainer, teacher_dim=teacher_dim, input=input, steps=steps, block=block, seed=seed, out=out)
    device = device_of(trainer)
    share_cores(device, threads=trainer.threads)
    seed_all(seed)
    teacher = teacher_trunk and Teacher(Student(trunk=teacher_trunk, dim=None, kd_dim=teacher_dim))
    made = student(kd_dim=student.keywords.get("kd_dim") or teacher_dim)
    check_size(made, data.size, name=made.architecture["trunk"], key="data.size")
    objective, total = loss(made, teacher), block + steps
    settings = replace(trainer, epochs=1, validate_every=0)
    numerics = {"device": device, "batch_size": data.batch_size, "channels_last": _channels_last(trainer, made),
                "total_steps": total, "warmup_steps": min(round(trainer.optimization.warmup_epochs * total), total)}

    def bare(**changes: object) -> Bare:
        return Bare(*copy.deepcopy((made, objective)), settings=replace(settings, **changes), **numerics)

    costs = step_costs(bare(compile=False, accumulate=1), size=data.size, algorithm=trainer.optimization.algorithm)
    watch = Stopwatch(device, block)
    watch.begin()
    loop = bare()
    watch.end(BARE, timed=False)
    watch.begin()
    networks = bare()
    views = networks.views(random_batches(1, data=data, seed=seed)[0])
    watch.end(NETWORKS, timed=False)
    if input == "memory":
        batches = random_batches(2, data=data, seed=seed, pin=device == "cuda")
        given, taken = itertools.cycle(batches), itertools.cycle(batches)
        modules = None
    else:
        modules = _real(data, augment, batches=2 * total, seed=seed)
        given = taken = stream(modules)
    others = {BARE: lambda: loop.step(next(taken)), NETWORKS: lambda: networks.networks(*views)}
    if modules is not None:
        for _ in range(total // block):
            watch.turn(NETWORKS, others[NETWORKS])
        del others[NETWORKS]
    console = Console("bench step", global_batch=data.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        module = CopyDetection(
            student=made, objective=objective, optimization=trainer.optimization, epochs=1, steps_per_epoch=total,
            global_batch=data.batch_size, card={}, channels_last=numerics["channels_last"],
            accumulate=trainer.accumulate)
        module.clock = Clock(device)
        if trainer.compile:
            module.compile_networks()
        turns = Turns(others, watch=watch, console=console)
        lightning = make_trainer(
            settings, objective, folder=Path(folder), steps=total,
            callbacks=[console, turns, LastCheckpoint(Path(folder), every=trainer.checkpoint_every, run=Path(folder))],
            logger=[make(save_dir=Path(folder) / "logs") for make in (logger or {}).values()])
        if modules is not None:
            modules.trainer = lightning
        watch.begin()
        lightning.fit(module, datamodule=Fed(given, total))
    if modules is not None:
        given.close()  # with it go the loader and its workers
    result = _result(watch, data=data, costs=costs, parts=turns.parts, accumulate=trainer.accumulate)
    result |= {"input": input, "size": data.size, "batch_size": data.batch_size, "steps": steps, "block": block,
               "precision": trainer.precision, "compile": trainer.compile,
               "student": made.architecture["trunk"], "teacher": teacher_trunk,
               "weights_apart": apart(made, loop.student) if modules is None else None,
               "provenance": provenance(seed=seed, device=device)}
    if out:
        write_json(out, result)
    _show(result)
    return result


def _check(student: partial | None, trainer: TrainerSettings, *, teacher_dim: int, input: str, steps: int, block: int,
           seed: int, out: str | None) -> None:
    for name, value in (("teacher_dim", teacher_dim), ("steps", steps), ("block", block)):
        check_number(name, value, 1)
    check_number("seed", seed, 0, 2**32 - 1)
    check_path("out", out, null="no file")
    if out:
        check_output(out)
    if student is None:
        raise UserError("student=none leaves no step to time: choose a student")
    if steps % block:
        raise UserError(f"steps={steps}: expected a multiple of block={block}, such as {-(-steps // block) * block}")
    if input not in ("memory", "loader"):
        raise UserError(f"input={input}: expected memory or loader")
    if trainer.devices * trainer.nodes > 1:
        raise UserError(f"trainer.devices={trainer.devices}, trainer.nodes={trainer.nodes}: the step of one process is "
                        f"timed; set both to 1")


def random_batches(count: int, *, data: DataSettings, seed: int, pin: bool = False) -> list[dict]:
    """Return batches of random pixels as `collate_views` makes them, on pinned pages if asked."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        views = torch.randint(0, 256, (2, data.batch_size, 3, data.size, data.size), dtype=torch.uint8,
                              generator=generator)
        query, key = views.pin_memory() if pin else views
        made.append({"query": query, "key": key, "bad": [],
                     "index": torch.arange(i * data.batch_size, (i + 1) * data.batch_size)})
    return made


def _real(data: DataSettings, augment: Augment, *, batches: int, seed: int) -> DataModule:
    """Open the training pictures, again and again if they are few: at an epoch's end loader workers have a rest."""
    _, pictures, _ = data.open(Protocol())
    count = data.batch_size * batches
    if count > len(pictures):
        pictures = Manifest(pictures.root, [pictures.path(i % len(pictures)) for i in range(count)],
                            names=list(map(str, range(count))))
    return DataModule(pictures, augment, settings=data, protocol=Protocol(), benchmark=None,
                      validation_size=data.size, seed=seed)


def stream(modules: DataModule) -> Iterator[dict]:
    """Yield the training batches of one epoch after the other."""
    loader = modules.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


class Fed(Batches):
    """Hands the trainer so many batches of an iterator that others may take from, too."""

    def __init__(self, batches: Iterator[dict], steps: int) -> None:
        super().__init__()
        self.batches, self.steps = batches, steps

    def train_dataloader(self) -> "Fed":
        return self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict]:
        return itertools.islice(self.batches, self.steps)

    def names(self, indices: torch.Tensor) -> list[str]:
        """Name pictures, for the message of a loss that is not finite."""
        return [f"number {i}" for i in indices.tolist()]


class Stopwatch:
    """Seconds of turns, and peaks of GPU memory, of several that share a process.

    Args:
        device: `cpu` or `cuda`.
        block: steps a turn.
    """

    def __init__(self, device: str, block: int) -> None:
        self.device, self.block = device, block
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, int] = defaultdict(int)
        self._own: dict[str, int] = defaultdict(int)  # bytes that stay between its turns

    def turn(self, name: str, step: Callable[[], None]) -> None:
        """Let `name` do its steps."""
        self.begin()
        for _ in range(self.block):
            step()
        self.end(name)

    def begin(self) -> None:
        """Begin a turn, or the preparation of one."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        self._start = time.perf_counter()

    def end(self, name: str, *, timed: bool = True) -> None:
        """End it, with nothing under way; not `timed`, only its memory counts."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        if timed:
            self.seconds[name].append((time.perf_counter() - self._start) / self.block)
        if self.device == "cuda":
            self.peaks[name] = max(self.peaks[name],
                                   self._own[name] + torch.cuda.max_memory_allocated() - self._before)
            self._own[name] += torch.cuda.memory_allocated() - self._before


class Turns(pl.Callback):
    """Ends the training's turn after every so many steps, lets the others have theirs, and begins its next.

    Args:
        others: name → what does one step.
        watch: times all.
        console: its speed leaves the turns of the others out.
    """

    def __init__(self, others: dict[str, Callable[[], None]], *, watch: Stopwatch, console: Console) -> None:
        self.others, self.watch, self.console = others, watch, console
        self.parts: dict[str, float] = {}  # name → seconds, the first turn left out

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: object,
                           batch_index: int) -> None:
        if (batch_index + 1) % self.watch.block:
            return
        self.watch.end(TRAINING)
        seconds = module.clock.seconds()
        if not self.parts:
            self._first = seconds
        self.parts = {name: value - self._first.get(name, 0.0) for name, value in seconds.items()}
        self.console.on_validation_start(trainer, module)
        for name, step in self.others.items():
            self.watch.turn(name, step)
        self.console.on_validation_end(trainer, module)
        self.watch.begin()


def apart(first: nn.Module, second: nn.Module) -> float:
    """Return the largest difference of two networks' weights, as a share of the largest weight."""
    pairs = [(a.detach().cpu(), b.detach().cpu()) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    return largest / max(float(a.abs().max()) for a, _ in pairs)


def _result(watch: Stopwatch, *, costs: dict, parts: dict[str, float], data: DataSettings, accumulate: int) -> dict:
    seconds = {name: watch.seconds[name][1:] for name in (NETWORKS, BARE, TRAINING)}  # the first turn warms up
    rows = [{"what": name, **_spread(turns), "images_per_s": data.batch_size / statistics.median(turns),
             "peak_bytes": watch.peaks.get(name)} for name, turns in seconds.items()]
    steps = len(seconds[TRAINING]) * watch.block
    of_step = {name: value / steps for name, value in parts.items() if name != "validation"}  # the turns of the others
    of_step["the rest"] = statistics.mean(seconds[TRAINING]) - sum(of_step.values())
    pictures, rate = RECIPE["steps"] * RECIPE["batch_size"], rows[-1]["images_per_s"]
    kept = -(-data.batch_size // accumulate) * costs["student_bytes"] + data.batch_size * costs["loss_bytes"]
    return {"rows": rows,
            "ratio": _spread([a / b for a, b in zip(seconds[TRAINING], seconds[BARE], strict=True)]),
            "bound_share": _spread([a / b for a, b in zip(seconds[NETWORKS], seconds[TRAINING], strict=True)]),
            "parts": of_step, "process_peak_bytes": _process_bytes(), "costs": costs,
            "counted_bytes": round(costs["network_bytes"] + costs["queue_bytes"] + kept),
            "full_recipe_hours": {str(n): pictures / rate / n / 3600 for n in (1, 2, 8)}}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "turns": len(values)}


def _process_bytes() -> int:
    """Return the most memory this process had at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _show(result: dict) -> None:
    console, gigabyte = wide_console(), 1e9
    heads = ["step", "ms", "over turns", "images/s"]
    heads += ["peak GPU memory"] * (result["rows"][0]["peak_bytes"] is not None)
    table = Table(title=f"{result['student']}, teacher {result['teacher']}, {result['size']} px, batches of "
                        f"{result['batch_size']}, {result['precision']}{', compiled' * result['compile']}, input from "
                        f"{result['input']}, {result['provenance']['device']}")
    for head in heads:
        table.add_column(head, justify="left" if head == "step" else "right")
    for row in result["rows"]:
        cells = [row["what"], f"{1000 * row['median']:.1f}", f"{1000 * row['low']:.1f}–{1000 * row['high']:.1f}",
                 f"{row['images_per_s']:.0f}", f"{(row['peak_bytes'] or 0) / gigabyte:.2f} GB"]
        table.add_row(*cells[:len(heads)])
    console.print(table)
    costs, whole = result["costs"], sum(result["parts"].values())
    print("a step of rdcd train: " + ", ".join(
        f"{name} {value / whole:.1%}" for name, value in sorted(result["parts"].items(), key=lambda part: -part[1])))
    print(f"counted: {costs['operations'] / 1e9:.2f} G operations a picture; "
          f"{result['counted_bytes'] / gigabyte:.2f} GB, of which "
          f"{costs['network_bytes'] / gigabyte:.2f} for networks, {costs['queue_bytes'] / gigabyte:.2f} for queues, "
          f"the rest for what pictures keep; this process, with all three: "
          f"{result['process_peak_bytes'] / gigabyte:.2f} GB")
    if result["weights_apart"] is not None:
        print(f"weights of rdcd train and the bare loop are {result['weights_apart']:.1e} of the largest weight apart "
              f"in the end")
    hours = ", ".join(f"{value:,.0f} h on {n}" for n, value in result["full_recipe_hours"].items())
    print(f"the full recipe, {RECIPE['steps']:,} steps of {RECIPE['batch_size']}, at these images/s: {hours} such "
          f"devices if they scaled ideally; data.size={result['size']}")
    ratio, bound = result["ratio"], result["bound_share"]
    print(f"networks alone/framework = {bound['median']:.2f} (spread {bound['low']:.2f}–{bound['high']:.2f})")
    print(f"framework/bare = {ratio['median']:.3f} (spread {ratio['low']:.3f}–{ratio['high']:.3f} over "
          f"{ratio['turns']} turns)")
