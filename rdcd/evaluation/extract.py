"""Pictures → descriptors."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rdcd.data.images import find_images, write_ledger
from rdcd.data.manifest import Manifest, path_name
from rdcd.data.parallel import loader_workers, share_cores, start_worker
from rdcd.data.progress import track
from rdcd.data.views import Pictures
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.evaluation.networks import load_network, preprocessing
from rdcd.files import check_output
from rdcd.models.student import check_size
from rdcd.retrieval.descriptors import Descriptors, write_descriptors

Batch = tuple[list[tuple[list[int], Tensor]], list[tuple[int, BadImage]]]


def collate_pictures(samples: list[tuple[int, Tensor | BadImage]]) -> Batch:
    """Stack pictures of one shape: [(indices, uint8 [n, 3, H, W]), …] and the unreadable ones."""
    shapes: dict[tuple, tuple[list[int], list[Tensor]]] = {}
    bad = []
    for index, picture in samples:
        if isinstance(picture, BadImage):
            bad.append((index, picture))
            continue
        indices, pictures = shapes.setdefault(tuple(picture.shape), ([], []))
        indices.append(index)
        pictures.append(picture)
    return [(indices, torch.stack(pictures)) for indices, pictures in shapes.values()], bad


def picture_loader(pictures: Manifest, *, size: int, resize: str = "square", batch_size: int = 64,
                   workers: int = 2, rows: Sequence[int] | None = None) -> DataLoader:
    """Return a loader of `collate_pictures` batches over pictures in order, over all or over the numbers in `rows`."""
    return DataLoader(Pictures(pictures, size=size, resize=resize), batch_size=batch_size, num_workers=workers,
                      sampler=range(len(pictures)) if rows is None else rows,
                      collate_fn=collate_pictures, worker_init_fn=start_worker,
                      generator=torch.Generator())  # else it would draw from the one that training goes on with


def assemble(pictures: Manifest, parts: Iterable[tuple[list[int], np.ndarray | None]], dim: int) -> Descriptors:
    """Put extracted parts in the order of `pictures`, each picture once whatever was padded or repeated.

    Args:
        parts: (indices, vectors [n, dim]); vectors None: these pictures are unreadable.
        dim: descriptor size, for the case of no part at all.
    """
    vectors = np.zeros((len(pictures), dim), dtype=np.float32)
    found = np.zeros(len(pictures), dtype=bool)
    for indices, rows in parts:
        if rows is not None:
            vectors[indices], found[indices] = rows, True
    names = np.array(pictures.names)
    return Descriptors(names=names[found], vectors=vectors[found], missing=names[~found])


def extract_descriptors(network: torch.nn.Module, pictures: Manifest, *, size: int, resize: str = "square",
                        batch_size: int = 64, workers: int | None = None, device: str = "cpu",
                        label: str = "extract") -> tuple[Descriptors, list[BadImage]]:
    """Embed every picture; unreadable ones are listed in `Descriptors.missing` and returned as errors.

    Args:
        network: has `embed`, pictures [B, 3, H, W] in [0, 1] → [B, d], and `dim`.
        size, resize: see `Pictures`.
        workers: loader processes; None: the cores that computing leaves free.
        label: what the progress line calls this.

    Raises:
        UserError: not one picture could be read.
    """
    check_number("size", size, 1)
    check_number("batch_size", batch_size, 1)
    check_number("workers", workers, 0, null="the free cores")
    loader = picture_loader(pictures, size=size, resize=resize, batch_size=batch_size,
                            workers=loader_workers(workers, device=device))
    network = network.to(device).eval()
    parts: list[tuple[list[int], np.ndarray | None]] = []
    bad: list[BadImage] = []
    with track(len(pictures), label) as advance, torch.inference_mode():
        for batches, unreadable in loader:
            for indices, stacked in batches:
                rows = network.embed(stacked.to(device).float() / 255)
                parts.append((indices, rows.float().cpu().numpy()))
                advance(len(indices))
            bad += [error for _, error in unreadable]
            advance(len(unreadable))
    if len(bad) == len(pictures):
        raise UserError(f"none of the {len(bad)} pictures under {pictures.root} could be read, the first "
                        f"{bad[0].path} ({bad[0].reason})")
    return assemble(pictures, parts, network.dim), bad


def default_device() -> str:
    """Return `cuda` where torch can use it, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | None) -> str:
    """Return the device to compute on; None: the default.

    Raises:
        UserError: another name, or a GPU that torch cannot use.
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device={device}: expected cpu or cuda, or null for cuda where it works")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU it can use; take device=cpu, or null for the default")
    return device or default_device()


def extract(*, images: str, model: str, out: str, size: int | None = None, resize: str | None = None,
            ids: str = "stem", batch_size: int = 64, workers: int | None = None, device: str | None = None,
            allow_torchscript: bool = False) -> Path:
    """Write the descriptors of all pictures under a folder: the `rdcd extract` command.

    Args:
        images: a folder of pictures.
        model, allow_torchscript: see `load_network`.
        out: descriptor file to write; unreadable pictures are listed beside it, in `<its name>-bad_files.csv`.
        size, resize: see `Pictures`; None: the card's.
        ids: `stem`, pictures are called by their file names without extension; `path`, with the folders below
            `images`, as CD10K needs.
    """
    for key, value in (("images", images), ("model", model), ("out", out)):
        check_path(key, value)
    check_output(out)
    device = check_device(device)
    share_cores(device)
    if ids not in ("stem", "path"):
        raise UserError(f"ids={ids}: expected stem or path")
    network, card = load_network(model, allow_torchscript=allow_torchscript)
    paths = find_images(images)
    pictures = Manifest(images, paths, names=[path_name(path, images) for path in paths] if ids == "path" else None)
    check_number("size", size, 1, null="what the model's card says")
    size, resize = preprocessing(card, size=size, resize=resize)
    check_size(network, size, name=str(model), key="size")
    descriptors, bad = extract_descriptors(network, pictures, size=size, resize=resize, batch_size=batch_size,
                                           workers=workers, device=device)
    write_descriptors(out, descriptors)
    print(f"{out}: {len(descriptors.names)} descriptors of {descriptors.vectors.shape[1]} numbers, {size} px {resize}")
    ledger = Path(out).with_name(f"{Path(out).stem}-bad_files.csv")
    ledger.unlink(missing_ok=True)
    if bad:
        write_ledger(ledger, bad)
        print(f"{len(bad)} pictures could not be read; {ledger} lists them")
    return Path(out)
