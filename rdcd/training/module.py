"""The Lightning module: one step of an objective, and the benchmark's µAP as validation."""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor

from rdcd.data.disc import Benchmark
from rdcd.errors import UserError, check_number
from rdcd.evaluation.extract import assemble
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.training.checkpoints import resettle
from rdcd.training.collectives import gather, gather_objects
from rdcd.training.optim import ALGORITHMS, optimizer_and_schedule
from rdcd.training.spread import effective_rank


@dataclass(frozen=True)
class Optimization:
    """The recipe of METHOD §3; lr is for a global batch of 256; `clip` bounds the gradient's norm."""

    algorithm: str = "sgd"
    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_epochs: float = 5.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"optimization.algorithm={self.algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "clip"):
            check_number(f"optimization.{name}", getattr(self, name), 0, 1 if name == "momentum" else None, whole=False,
                         null="no bound" if name == "clip" else None)


class CopyDetection(pl.LightningModule):
    """Trains a student under an objective.

    Checkpoints hold `student.*`, `objective.*` (momentum encoder, queues), never the teacher, and
    under `card` what is needed to use the student.

    Args:
        student: the network.
        objective: `rdcd.training.objectives`.
        optimization: learning rate and its like.
        epochs, steps_per_epoch, global_batch: length and width of the run.
        card: plain dict that travels in checkpoints.
        benchmark, protocol: what validation measures; None: no validation.
        channels_last: memory format of pictures and weights.
    """

    def __init__(self, *, student: Student, objective: torch.nn.Module, optimization: Optimization, epochs: int,
                 steps_per_epoch: int, global_batch: int, card: dict, benchmark: Benchmark | None = None,
                 protocol: Protocol | None = None, channels_last: bool = False) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.optimization, self.card = optimization, card
        self.epochs, self.steps_per_epoch, self.global_batch = epochs, steps_per_epoch, global_batch
        self.benchmark, self.protocol = benchmark, protocol
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self._extracted: list = []

    def configure_optimizers(self):
        o = self.optimization
        optimizer, schedule = optimizer_and_schedule(
            self.student.parameters(), algorithm=o.algorithm, lr=o.lr, global_batch=self.global_batch,
            momentum=o.momentum, weight_decay=o.weight_decay, **self._lengths())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lengths(self) -> dict[str, int]:
        total = self.epochs * self.steps_per_epoch
        return {"total_steps": total,
                "warmup_steps": min(round(self.optimization.warmup_epochs * self.steps_per_epoch), total)}

    def prepare(self, pictures: Tensor) -> Tensor:
        """Turn uint8 pictures [B, 3, H, W] into floats in [0, 1] in the run's memory format."""
        return (pictures.float() / 255).contiguous(memory_format=self.memory_format)

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        outcome = self.objective(self.student, self.prepare(batch["query"]), self.prepare(batch["key"]),
                                 batch["index"], gather)
        if not torch.isfinite(outcome.total):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in outcome.terms.items())
            raise UserError(f"the loss is not finite at step {self.global_step} ({values}): lower "
                            f"trainer.optimization.lr (now {self.optimization.lr:g}) or lengthen "
                            f"trainer.optimization.warmup_epochs")
        self._remember = outcome.remember
        self.log("train/loss", outcome.total, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in outcome.terms.items()})
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # the steps that loggers write
            self.log_dict({"train/effective_rank_h": effective_rank(outcome.embedding.features),
                           "train/effective_rank_z": effective_rank(outcome.embedding.descriptors),
                           "train/lr": self.optimizers().param_groups[0]["lr"]})
        return outcome.total

    def on_after_backward(self) -> None:
        self._remember()

    def validation_step(self, batch: list, batch_index: int, dataloader_idx: int = 0) -> None:
        # unreadable pictures, batch[1], leave no part: `assemble` lists whatever is absent as missing
        for indices, pictures in batch[0]:
            descriptors = self.student.embed(self.prepare(pictures)).cpu().numpy()
            self._extracted.append((dataloader_idx, indices, descriptors))

    def on_validation_epoch_end(self) -> None:
        from rdcd.evaluation.score import score_descriptors

        parts = [part for rank in gather_objects(self._extracted) for part in rank]
        self._extracted = []
        roles = (self.benchmark.queries, self.benchmark.references, self.benchmark.background)
        query, reference, background = (
            assemble(role, [(indices, vectors) for loader, indices, vectors in parts if loader == i], self.student.dim)
            for i, role in enumerate(roles))
        rows = score_descriptors(query, reference, background, self.benchmark.pairs, codecs=["Flat"],
                                 score_norms=self.protocol.score_norms, candidates=self.protocol.candidates,
                                 k=self.protocol.k)
        # the first of several normalizations: Lightning would average what is logged twice
        first = {"_SN" if row.score_norm else "": row.metrics for row in reversed(rows)}
        for suffix, metrics in first.items():
            self.log(f"val/uAP{suffix}", metrics.uAP, prog_bar=True, sync_dist=False, rank_zero_only=False)
            self.log(f"val/recall_at_p90{suffix}", metrics.recall_at_p90)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        training = self.card.get("training", {}) | {"steps_done": self.global_step}
        checkpoint["card"] = self.card | {"training": training}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        o = self.optimization
        resettle(checkpoint, lr=o.lr * self.global_batch / 256, momentum=o.momentum, weight_decay=o.weight_decay,
                 **self._lengths())
