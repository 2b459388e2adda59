"""Training batches from a dataset root, and the benchmark that validates."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rdcd.data.disc import Benchmark, is_benchmark, open_training
from rdcd.data.layouts import open_layout
from rdcd.data.ledger import MAX_BAD_SHARE
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import loader_workers, start_worker
from rdcd.data.views import EDITS, Augment, EpochSampler, TwoViews, collate_views
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.batches import picture_loader
from rdcd.evaluation.extract import default_device
from rdcd.evaluation.protocols import Protocol
from rdcd.training import collectives


@dataclass(frozen=True)
class DataSettings:
    """Where pictures come from and how they are batched.

    Args:
        root: dataset root in the DISC layout, or any folder of pictures; None: `synthetic` makes one.
        synthetic: called without arguments, draws the embedded benchmark and returns its root.
        size: side of the training views, in pixels.
        test_size: side of pictures at validation, and in the student's card, in pixels; None: as `size`. Larger is
            better: random crops show things larger than whole pictures do (Touvron et al. 2019).
        batch_size: pictures a step, over all devices.
        workers: loader processes; None: the cores that computing leaves free, at most eight.
        pictures: use only the first so many training pictures; None: all.
        max_bad_share: largest share of pictures that may be unreadable, of each process's; more end the run.

    Raises:
        UserError: a number that is none, or out of range.
    """

    root: str | None = None
    synthetic: Callable[[], Path] | None = None
    size: int = 224
    test_size: int | None = None
    batch_size: int = 256
    workers: int | None = None
    pictures: int | None = None
    max_bad_share: float = MAX_BAD_SHARE

    def __post_init__(self) -> None:
        check_path("data.root", self.root, null="the drawn benchmark")
        check_number("data.size", self.size, 1)
        check_number("data.test_size", self.test_size, self.size, null="as data.size")
        check_number("data.batch_size", self.batch_size, 1)
        check_number("data.workers", self.workers, 0, null="the free cores")
        check_number("data.pictures", self.pictures, 1, null="all")
        check_number("data.max_bad_share", self.max_bad_share, 0, 1, whole=False)

    def open(self, protocol: Protocol) -> tuple[Path, Manifest, Benchmark | None]:
        """Return (root, training pictures, benchmark); a plain folder of pictures has no benchmark."""
        if self.root is None and self.synthetic is None:
            raise UserError("data.root is not set: give data.root=DIR, a benchmark or a folder of pictures")
        root = Path(self.root) if self.root is not None else Path(self.synthetic())
        if protocol.layout not in ("disc", "ndec"):
            raise UserError(f"protocol={protocol.name} measures only: train under another, such as disc, then "
                            f"`rdcd evaluate protocol={protocol.name} checkpoint=RUN data.root=DIR`")
        benchmark = None
        if protocol.layout == "ndec" or is_benchmark(root):
            benchmark = open_layout(protocol.layout, root, split=protocol.split)
        pictures = open_training(root)
        if self.pictures is not None:
            kept = [pictures.path(i) for i in range(min(self.pictures, len(pictures)))]
            pictures = Manifest(pictures.root, kept)
        return root, pictures, benchmark

    @property
    def share(self) -> int:
        """Number of pictures a step of each process.

        Raises:
            UserError: the batch does not divide over the processes.
        """
        processes = collectives.world_size()
        if self.batch_size % processes:
            raise UserError(f"data.batch_size={self.batch_size} is of all devices together and does not divide over "
                            f"{processes}: take a multiple, such as {-(-self.batch_size // processes) * processes}")
        return self.batch_size // processes

    @property
    def worker_count(self) -> int:
        """Number of loader processes."""
        return loader_workers(self.workers, device=default_device())


class Batches(pl.LightningDataModule):
    """Moves batches of `collate_views` to the device that trains."""

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Move a batch, but not the rows for `on_device.edited`, which it wants on the CPU."""
        rows = {name: batch.pop(name) for name in EDITS if name in batch} if isinstance(batch, dict) else {}
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved | rows if rows else moved


class DataModule(Batches):
    """Loaders of one run.

    Args:
        pictures: the training pictures.
        augment: recipe of the views.
        settings: batch size and workers.
        protocol: how validation pictures are resized.
        benchmark: None: no validation.
        validation_size: side of validation pictures, in pixels.
        seed: of order and views.
    """

    def __init__(self, pictures: Manifest, augment: Augment, *, settings: DataSettings, protocol: Protocol,
                 benchmark: Benchmark | None, validation_size: int, seed: int) -> None:
        super().__init__()
        if getattr(augment, "device", None) == "cuda" and default_device() != "cuda":
            raise UserError("augment.device=cuda and no GPU to train on: leave it to the loader, augment.device=null")
        self.views = TwoViews(pictures, augment, seed=seed)
        self.settings, self.protocol, self.benchmark = settings, protocol, benchmark
        self.validation_size, self.seed = validation_size, seed
        self.begin = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the place in the order of pictures, for checkpoints: the epoch and the steps done in it."""
        epoch, step = divmod(self.trainer.global_step, self.sampler().steps)
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin where a checkpoint ended."""
        self.begin = (state["epoch"], state["step"])

    def sampler(self) -> EpochSampler:
        """Return the order of this rank's pictures.

        Raises:
            UserError: the batch does not divide over the ranks, or there are fewer pictures than one.
        """
        return EpochSampler(len(self.views), batch_size=self.settings.share, seed=self.seed, rank=collectives.rank(),
                            world_size=collectives.world_size(), begin=self.begin)

    def train_dataloader(self) -> DataLoader:
        """Batches of `collate_views`, in the order of `EpochSampler`, from where a checkpoint ended."""
        trainer, sampler, workers = self.trainer, self.sampler(), self.settings.worker_count
        return DataLoader(self.views, sampler=sampler, batch_size=sampler.batch_size, num_workers=workers,
                          collate_fn=collate_views, worker_init_fn=start_worker, drop_last=True,
                          persistent_workers=workers > 0,
                          generator=torch.Generator(),  # else it would draw from the one that checkpoints hold
                          pin_memory=trainer is not None and trainer.accelerator.name() == "cuda")

    def names(self, indices: Tensor) -> list[str]:
        """Return the paths of training pictures, below the root where they lie there."""
        pictures = self.views.pictures
        paths = [pictures.path(i) for i in indices.tolist()]
        return [str(path.relative_to(pictures.root) if path.is_relative_to(pictures.root) else path) for path in paths]

    def val_dataloader(self) -> list[DataLoader]:
        """Queries, references and background of the benchmark, of which every rank takes its share."""
        if self.benchmark is None:
            return []
        b, rank, ranks = self.benchmark, collectives.rank(), collectives.world_size()
        return [picture_loader(role, size=self.validation_size, resize=self.protocol.resize or "square",
                               workers=self.settings.worker_count, rows=range(rank, len(role), ranks))
                for role in (b.queries, b.references, b.background)]
