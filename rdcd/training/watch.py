"""What a step shows of itself: scalars and histograms of the whole global batch, whatever rank writes them."""

from collections.abc import Callable, Sequence

import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from rdcd.models.queue import DescriptorQueue
from rdcd.training.objectives import Outcome
from rdcd.training.spread import effective_rank


@torch.no_grad()
def measured(outcome: Outcome, objective: nn.Module, *, global_batch: int,
             gather: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (scalars, histograms) of a step; every rank must ask.

    Args:
        outcome: of the objective.
        objective: whose queues are looked at.
        global_batch: pictures a step over all ranks.
        gather: rows of all ranks.

    Returns:
        Scalars: `loss` and the terms, means over ranks; effective rank of h_S and z_S; the 10th, 50th and 90th
        percentile of every histogram; `queue_age`, steps since the oldest entry of the longest queue was written.
        Histograms: similarities over temperature, one value a picture.
    """
    values = {"loss": outcome.total} | outcome.terms
    means = gather(torch.stack([value.detach().float() for value in values.values()])[None]).mean(dim=0)
    scalars = dict(zip(values, means, strict=True))
    for letter, rows in (("h", outcome.embedding.features), ("z", outcome.embedding.descriptors)):
        scalars[f"effective_rank_{letter}"] = effective_rank(gather(rows.detach()))
    histograms = {name: gather(rows) for name, rows in outcome.similarities().items()}
    for name, rows in histograms.items():
        for percent in (10, 50, 90):
            scalars[f"{name}_p{percent}"] = rows.float().quantile(percent / 100)
    ages = [queue.filled.float() / global_batch for queue in objective.children() if isinstance(queue, DescriptorQueue)]
    if ages:
        scalars["queue_age"] = torch.stack(ages).amax()
    return scalars, histograms


def write_histograms(loggers: Sequence[Logger], histograms: dict[str, Tensor], step: int) -> None:
    """Give histograms to the loggers that can show them: TensorBoard, and Weights & Biases."""
    for logger in loggers:
        for name, rows in histograms.items():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram(f"train/{name}", rows.cpu(), step)
            elif isinstance(logger, WandbLogger):
                from wandb import Histogram

                logger.log_metrics({f"train/{name}": Histogram(rows.cpu().numpy())}, step)
