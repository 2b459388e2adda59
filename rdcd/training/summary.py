"""What a stage of a run says at its end: speed, memory, and where the time went."""

import multiprocessing
import resource
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from rdcd import provenance
from rdcd.files import write_json
from rdcd.training.collectives import gather_objects

WAITING = 0.2  # share of the time from which waiting for data is worth a word
NAMES = {"student": "student forward", "data": "waiting for data"}


class Closing(pl.Callback):
    """Says at the end of training how fast it was, the peaks of memory, and the share of time of every part; the same
    is left in `timing.json`.

    Args:
        label: what the lines call this stage.
        global_batch: pictures a step over all ranks.
        folder: where the file goes.
        seed: the run's, for the file.
        device: `cpu` or `cuda`.
    """

    def __init__(self, label: str, *, global_batch: int, folder: Path, seed: int, device: str) -> None:
        self.label, self.global_batch, self.folder, self.seed, self.device = label, global_batch, folder, seed, device

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.first, self.start = trainer.global_step, time.monotonic()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        parts = module.clock.seconds()  # waits for the GPU
        seconds, steps = time.monotonic() - self.start, trainer.global_step - self.first
        peaks = gather_objects(peak_bytes(self.device))
        if not trainer.is_global_zero or not steps:
            return
        measured = {
            "label": self.label, "first_step": self.first, "steps": steps, "batch_size": self.global_batch,
            "seconds": seconds,
            "images_per_s": steps * self.global_batch / max(seconds - parts.get("validation", 0.0), 1e-9),
            "parts": dict(sorted(parts.items(), key=lambda part: -part[1])),
            "the_rest": max(seconds - sum(parts.values()), 0.0),
            "peak_bytes": {name: max(peak[name] for peak in peaks) for name in peaks[0]}, "processes": len(peaks),
            "provenance": provenance.provenance(seed=self.seed, device=self.device)}
        write_json(self.folder / "timing.json", measured)
        print("\n".join(f"{self.label}: {line}" for line in said(measured)), flush=True)


def said(measured: dict) -> list[str]:
    """Return what `timing.json` says in lines for a person."""
    seconds, peaks = measured["seconds"], measured["peak_bytes"]
    memory = f"peak memory {peaks['process'] / 1e9:.1f} GB"
    if peaks["loader_workers"]:
        memory += f", loader workers {peaks['loader_workers'] / 1e9:.1f} GB"
    if peaks["gpu"]:
        memory += f", GPU {peaks['gpu'] / 1e9:.1f} GB"
    if measured["processes"] > 1:
        memory += f" (of the largest of {measured['processes']} processes)"
    shares = [(NAMES.get(name, name), value / seconds) for name, value in measured["parts"].items()]
    shares.append(("the rest", measured["the_rest"] / seconds))
    lines = [f"{measured['steps']} steps of {measured['batch_size']} in {seconds // 60:.0f} min {seconds % 60:.0f} s, "
             f"{measured['images_per_s']:.0f} images/s; {memory}",
             "time: " + ", ".join(f"{name} {share:.0%}" for name, share in shares)]
    if measured["parts"].get("data", 0.0) > WAITING * seconds:
        lines.append("much of that is waiting for data: more data.workers help where there are cores, smaller files "
                     "where there are none")
    return lines


def peak_bytes(device: str) -> dict[str, int]:
    """Return the peaks of memory so far: `process`, `loader_workers` (the sum of those alive), `gpu`; 0 where unknown.

    Pages that processes share count for each of them.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    workers = sum(_peak_of(child.pid) for child in multiprocessing.active_children())
    return {"process": own, "loader_workers": workers,
            "gpu": torch.cuda.max_memory_allocated() if device == "cuda" else 0}


def _peak_of(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # ended meanwhile, or another system
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
