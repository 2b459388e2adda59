"""Run folders: which is meant, what models they hold, and how training went."""

import csv
import json
import re
from pathlib import Path

from rdcd.errors import UserError, check_path
from rdcd.evaluation.networks import file_of, is_named

RUNS = Path("runs")


def find_run(run: str | Path, *, finished: bool = False) -> Path:
    """Return a run folder; `latest` (or `auto`) names the newest under `runs/`, of the finished ones if asked.

    Raises:
        UserError: there is none.
    """
    check_path("run", run)
    if str(run) not in ("latest", "auto"):
        if not Path(run).is_dir():
            raise UserError(f"no run folder {run}: expected one that `rdcd train` wrote, or `latest`")
        return Path(run)
    marks = ["*/run.json"] if finished else ["*/config.yaml", "*/run.json"]
    found = [path.parent for mark in marks for path in RUNS.glob(mark)]
    if not found:
        raise UserError(f"no run under {RUNS.resolve()}: train one with `sh train.sh`, or give checkpoint=FILE")
    return max(found, key=_last_trained)


def _last_trained(folder: Path) -> float:
    """When a run was begun or resumed; its folder's own time moves with every evaluation in it."""
    config = folder / "config.yaml"
    return (config if config.is_file() else folder / "run.json").stat().st_mtime


def read_run(folder: Path) -> dict:
    """Return what a finished run says of itself: `models` (name → file), `data_root`, `seed`, `name`."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not {"models", "data_root", "seed", "name"} <= about.keys():
            raise ValueError("a key is missing")
        return about
    except ValueError as error:
        raise UserError(f"{folder / 'run.json'} is damaged ({error}): evaluate {folder}/student.safetensors "
                        f"instead") from None
    except FileNotFoundError:
        raise UserError(f"{folder} holds no finished run (no run.json): continue it with "
                        f"`rdcd train resume={folder}`, or evaluate {folder}/checkpoints/last.ckpt") from None


def run_models(folder: Path) -> dict[str, Path | str]:
    """Return model name → weights of a run; models whose file has gone are said and left out."""
    models: dict[str, Path | str] = {}
    for name, file in read_run(folder)["models"].items():
        needed = file_of(file) if is_named(file) else folder / file
        if needed is not None and not needed.is_file():
            print(f"{name}: {needed} is gone; it is left out of the table")
            continue
        models[name] = file if is_named(file) else needed
    return models


def read_curves(logs: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Read Lightning's CSV logs under `logs` as panel → series → (steps, values), resumed parts joined."""
    series: dict[str, dict[float, float]] = {}
    for path in sorted(logs.rglob("metrics.csv"), key=lambda p: p.stat().st_mtime):
        try:
            with open(path, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    step = float(row["step"])
                    for name, value in row.items():
                        if value and name not in ("step", "epoch"):
                            series.setdefault(name, {})[step] = float(value)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(f"{path} is no log of a training ({type(error).__name__}: {error}): copy it again, or "
                            f"remove it to go without its curves") from None
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    titles = {"images_per_s": "images/s", "data_wait": "share of time waiting for data", "lr": "learning rate",
              "effective_rank_h": "effective rank", "effective_rank_z": "effective rank",
              "gradient_norm": "gradient norm",
              "queue_age": "age of the queue, steps", "positives": "similarity of positives, over temperature",
              "hardest_negatives": "similarity of hardest negatives, over temperature"}
    for name, points in series.items():
        group, _, term = name.partition("/")
        title = "validation" if group == "val" else titles.get(re.sub(r"_p\d\d$", "", term), "loss terms")
        steps = sorted(points)
        panels.setdefault(title, {})[term] = (steps, [points[s] for s in steps])
    return panels
