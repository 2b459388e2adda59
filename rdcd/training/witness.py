"""The file that a run writes is the network that it trained, or the run ends and says so."""

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from rdcd.data.views import Pictures
from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.models.student import Student
from rdcd.models.weights import load_student
from rdcd.training import collectives
from rdcd.training.checkpoints import random_state, restore_random_state

COSINE = 0.9999  # least, between descriptors of the file and of the network in memory
ROUNDING = 1e-5  # distance of descriptors that are equal
PICTURES, TRIES = 8, 100


class Unlike(UserError):
    """A file of weights that, loaded again, is another network than the one in training."""

    code = 1


class Witness(pl.Callback):
    """Notes what the student in training makes of a few pictures, and holds the file that is written against that.

    The network is looked at in the form in which it is trained, on the device that trains it, in eval mode and fp32: at
    the end, and at the beginning, when a file is written for the purpose, so that whatever a card does not carry or a
    plugin changes is found before days of training. The first process does it, the others wait for the answer.

    Args:
        path: the weights file.
        save: writes weights and card to the path that it is given.
        pictures: of the run, as they are extracted; the first ones are used.
    """

    def __init__(self, path: Path, *, save: Callable[[Path], object], pictures: Pictures) -> None:
        self.path, self.save, self.pictures = path, save, pictures

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        collectives.first_does(lambda: self._rehearse(module))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if collectives.rank() == 0:
            self._look(module)

    def write(self) -> None:
        """Write the file; under its name it appears once it has been loaded again and compared.

        Raises:
            Unlike: it is another network, and is not kept; an earlier file of that name stays.
        """
        with atomic_path(self.path.with_suffix(".json")), atomic_path(self.path) as partial:  # the weights come first
            self._compare(partial, f"it is not kept, {self.path.parent / 'checkpoints' / 'last.ckpt'} holds what was "
                                   f"trained")

    def _rehearse(self, module: pl.LightningModule) -> None:
        self.shown = module.prepare(self._read().to(module.device))
        self._look(module)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.path.parent) as folder:
            self._compare(Path(folder) / self.path.name, "nothing has been trained")

    def _read(self) -> Tensor:
        """Return a few pictures, uint8 [n, 3, S, S]."""
        read = (self.pictures[i][1] for i in range(min(len(self.pictures), TRIES)))
        if not (found := list(islice((picture for picture in read if isinstance(picture, Tensor)), PICTURES))):
            raise UserError(f"the first {TRIES} training pictures do not decode: check the folder "
                            f"{self.pictures.pictures.root}")
        return torch.stack(found)

    def _look(self, module: pl.LightningModule) -> None:
        self.trunk, self.format = module.student.architecture["trunk"], module.memory_format
        self.seen = descriptors(module.student, self.shown)

    def _compare(self, path: Path, state: str) -> None:
        generators = random_state()  # from which a new network draws its weights
        try:
            self.save(path)
            loaded = load_student(path)[0].to(self.shown.device, memory_format=self.format)
        except UserError as error:
            found = f"it cannot be loaded again ({error})".replace(str(path), str(self.path))
        else:
            cosine = likeness(descriptors(loaded, self.shown), self.seen)
            if cosine >= COSINE:  # which NaN is not
                return
            found = (f"loaded again, it gives descriptors of {len(self.shown)} pictures with a cosine of {cosine:.4f} "
                     f"to those of the network in memory (about their mean, too), expected at least {COSINE}")
        finally:
            restore_random_state(generators)
        raise Unlike(f"{self.path}: the file it writes is not the network in training: {found}; {state}. Something of "
                     f"the student ({self.trunk}) is not in its card, or was changed for training alone: take another "
                     f"student, and report this")


def likeness(found: Tensor, seen: Tensor) -> float:
    """Return the least cosine between rows [n, d] of the same pictures, as they are and about the mean of `seen`.

    Descriptors of a network at its start, or of one that has collapsed, are almost one: without the mean, another
    network could hardly be told from it.
    """
    mean = seen.mean(dim=0)
    about = F.cosine_similarity(found - mean, seen - mean)
    about[(found - seen).norm(dim=1) < ROUNDING] = 1.0  # all that is left of some is rounding
    return float(torch.minimum(F.cosine_similarity(found, seen), about).min())


@torch.no_grad()
def descriptors(student: Student, pictures: Tensor) -> Tensor:
    """Return descriptors of pictures [B, 3, S, S] in eval mode and fp32, not by the compiled form; modes stay."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with torch.autocast(pictures.device.type, enabled=False):
            return student.forward(pictures).descriptors
    finally:
        for module, mode in modes:
            module.training = mode
