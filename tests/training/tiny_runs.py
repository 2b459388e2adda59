"""`train` at the smallest scale that has every part, and ways to look at what it leaves."""

import csv
from functools import partial

import torch
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file

from rdcd.augment.recipes import simclr
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.training.datamodule import DataSettings
from rdcd.training.launch import TrainedHere, TrainerSettings, train
from rdcd.training.module import Optimization
from rdcd.training.objectives import RDCD, SSCD

VIEWS = 2 * 24  # a stage and epoch: 24 pictures, two views each
RECIPE = simclr(32, path="plain")  # as `Breaks` makes its views


def settings(**changes):
    values = {"epochs": 2, "validate_every": 1, "log_every": 1, "accelerator": "cpu", "threads": 1,
              "optimization": Optimization(algorithm="adamw", lr=0.005, warmup_epochs=1.0)}
    return TrainerSettings(**values | changes)


def here(**changes):
    return TrainedHere(student=partial(Student, trunk="test_efficientnet", dim=None, kd_dim=12),
                       loss=partial(SSCD, entropy_weight=10.0), trainer=settings(**changes), batch_size=8)


def go(root, run_dir=None, *, data=None, **changes):
    """Train at the smallest scale that has every part."""
    data = DataSettings(**{"root": str(root), "size": 32, "batch_size": 8, "workers": 0} | (data or {}))
    values = {"student": partial(Student, trunk="test_efficientnet", dim=8, kd_dim=None),
              "loss": partial(RDCD, queue_size=40), "augment": RECIPE, "protocol": Protocol(),
              "trainer": settings(), "teacher": here(), "name": "tiny", "baselines": ["untrained"],
              "logger": {"csv": partial(CSVLogger, name="csv")}}
    return train(data=data, run_dir=run_dir and str(run_dir), **values | changes)


class Breaks:
    """A recipe after which the power fails, once `views` views are made."""

    def __init__(self, views, error=ZeroDivisionError):
        self.left, self.error = views, error

    def __call__(self, picture, rng):
        self.left -= 1
        if self.left < 0:
            raise self.error("the power failed")
        return RECIPE(picture, rng)


def rows(folder, name="metrics.csv"):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_weights(first, second, atol=1e-6):
    first, second = (load_file(folder / "student.safetensors") for folder in (first, second))
    assert first.keys() == second.keys()
    return all(torch.allclose(first[k].float(), second[k].float(), atol=atol) for k in first)
