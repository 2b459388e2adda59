"""Pictures → descriptors."""

import hashlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from rdcd.data.images import reads_images
from rdcd.data.ledger import MAX_BAD_SHARE, Ledger
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import loader_workers, own_cores, share_cores
from rdcd.data.progress import track
from rdcd.data.sources import open_pictures
from rdcd.data.views import Pictures
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.evaluation.batches import Batch, decoded, grouped
from rdcd.evaluation.networks import load_network, preprocessing
from rdcd.evaluation.shards import Process, Shards
from rdcd.files import check_output
from rdcd.models.inference import Embed, make_embed
from rdcd.models.student import check_size
from rdcd.retrieval.descriptors import Descriptors


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


def cut(rows: range, size: int) -> list[range]:
    """Return consecutive pieces of `rows` of at most `size`."""
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def timed(batches: Iterable[Batch], waited: list[float]) -> Iterator[Batch]:
    """Yield batches; `waited` gets the seconds that each was waited for."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        waited.append(time.perf_counter() - start)
        if batch is None:
            return
        yield batch


def embedded(embed: Embed, batches: Iterable[Batch], *, batch_size: int, bad: dict[int, BadImage],
             advance: Callable[[int], None]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices, descriptors) of all readable pictures of `batches`; `bad` gets the others by their numbers."""
    def readable() -> Iterator[list]:
        for groups, unreadable in batches:
            bad.update(unreadable)
            advance(len(unreadable))
            yield groups

    for indices, pictures in grouped(readable(), batch_size=batch_size):
        yield indices, embed(pictures).numpy()
        advance(len(indices))


def extract_descriptors(network: torch.nn.Module, pictures: Manifest, *, size: int, resize: str = "square",
                        batch_size: int = 64, workers: int | None = None, device: str = "cpu", decode: str = "exact",
                        label: str = "extract") -> tuple[Descriptors, list[BadImage]]:
    """Embed every picture; unreadable ones are listed in `Descriptors.missing` and returned as errors.

    Args:
        network: has `embed`, pictures [B, 3, H, W] in [0, 1] → [B, d], and `dim`.
        size, resize, decode: see `Pictures`.
        workers: loader processes; None: see `take_cores`.
        label: what the progress line calls this.

    Raises:
        UserError: not one picture could be read.
    """
    check_number("size", size, 1)
    check_number("batch_size", batch_size, 1)
    check_number("workers", workers, 0, null="what suits the device")
    batches = decoded(Pictures(pictures, size=size, resize=resize, decode=decode),
                      cut(range(len(pictures)), batch_size), workers=worker_count(workers, device=device))
    bad: dict[int, BadImage] = {}
    with track(len(pictures), label) as advance:
        parts = list(embedded(make_embed(network, device=device), batches, batch_size=batch_size, bad=bad,
                              advance=advance))
    if len(bad) == len(pictures):
        raise UserError(f"none of the {len(bad)} pictures under {pictures.root} could be read, the first "
                        f"{bad[0].path} ({bad[0].reason})")
    return assemble(pictures, parts, network.dim), list(bad.values())


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


def worker_count(workers: int | None, *, device: str) -> int:
    """Return the number of loader processes: `workers`, or for None none on a CPU, else what `loader_workers` says."""
    return 0 if workers is None and device == "cpu" else loader_workers(workers, device=device)


def take_cores(device: str, workers: int | None) -> None:
    """Prepare this process for extraction.

    On a CPU without loader processes all cores decode a batch, then all compute its descriptors (`decoded`), so that
    neither takes cores from the other; OMP_NUM_THREADS sets fewer for computing.
    """
    alone = device == "cpu" and not worker_count(workers, device=device)
    share_cores(device, threads=own_cores() if alone and "OMP_NUM_THREADS" not in os.environ else None)


@reads_images
def extract(*, images: str, model: str, out: str, size: int | None = None, resize: str | None = None,
            decode: str = "reduced", bucket: int | None = None, precision: str = "fp32", compile: bool = False,
            ids: str = "stem", batch_size: int = 64, shard: int = 4096, max_bad_share: float = MAX_BAD_SHARE,
            workers: int | None = None, device: str | None = None, allow_torchscript: bool = False) -> Path:
    """Write the descriptors of all pictures of a place: the `rdcd extract` command.

    Killed and started again with the same settings, it goes on after the shards that are whole. Several processes
    that torchrun started share the shards; the first of them writes the file.

    Args:
        images, ids: see `open_pictures`.
        model, allow_torchscript: see `load_network`.
        out: descriptor file to write; unreadable pictures are listed beside it, in `<its name>-bad_files.csv`; until
            it is whole, what is done lies in `<out>.parts`.
        size, resize, decode, bucket: see `Pictures`; size and resize None: the card's.
        precision, compile: see `make_embed`.
        shard: pictures that are lost at most when it is killed, of each process.
        max_bad_share: largest share of the pictures that may be unreadable.
        workers: see `worker_count`.

    Raises:
        UserError: settings that cannot work, too many unreadable pictures, or shards of another extraction.
    """
    for key, value in (("images", images), ("model", model), ("out", out)):
        check_path(key, value)
    check_output(out)
    for key, value in (("batch_size", batch_size), ("shard", shard)):
        check_number(key, value, 1)
    check_number("size", size, 1, null="what the model's card says")
    check_number("workers", workers, 0, null="what suits the device")
    device = check_device(device)
    process = Process.join(device)
    if process.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # errors go to standard error
    take_cores(device, workers)
    network, card = load_network(model, allow_torchscript=allow_torchscript)
    size, resize = preprocessing(card, size=size, resize=resize)
    if compile and resize != "square":
        raise UserError(f"compile=true, resize={resize}: every shape of pictures would be compiled by itself; take "
                        f"resize=square, or compile=false")
    check_size(network, size, name=str(model), key="size")
    pictures = open_pictures(images, ids=ids)
    dataset = Pictures(pictures, size=size, resize=resize, decode=decode, bucket=bucket)
    embed = make_embed(network, device=device, precision=precision, compile=(batch_size, size) if compile else None)
    plan = {"images": str(pictures.root.absolute()), "pictures": pictures.digest(),
            "model": card["architecture"]["trunk"], "size": size, "resize": resize,
            "weights": getattr(network, "fingerprint", None) or _digest(network),
            "decode": decode, "bucket": bucket, "precision": precision, "compile": compile, "device": device,
            "batch_size": batch_size, "shard": shard}
    shards = Shards(out, plan=plan, pictures=pictures, dim=network.dim, shard=shard)
    if process.rank == 0:
        shards.ledger.unlink(missing_ok=True)  # of an earlier run
    ledger = Ledger(shards.folder / f"bad_files-{process.rank}.csv", max_bad_share=max_bad_share)
    process.wait()  # all have seen the same shards
    _fill(shards, embed, dataset, ledger, process=process, batch_size=batch_size,
          workers=worker_count(workers, device=device), pin=device == "cuda")
    process.wait()
    if process.rank == 0:
        bad = shards.merge()
        shards.remove()
        print(f"{out}: {len(pictures) - len(bad)} descriptors of {network.dim} numbers, {size} px {resize}")
        if bad:
            print(f"{len(bad)} pictures could not be read; {shards.ledger} lists them")
    process.part()
    return Path(out)


def _fill(shards: Shards, embed: Embed, dataset: Pictures, ledger: Ledger, *, process: Process, batch_size: int,
          workers: int, pin: bool) -> None:
    """Make this process's shards that are not whole yet."""
    own = range(process.rank, len(shards.rows), process.world_size)
    done = [number for number in own if shards.done(number)]
    for number in done:
        ledger.add(shards.bad(number).values(), seen=len(shards.rows[number]))
    left = [number for number in own if number not in set(done)]
    if done:
        print(f"{shards.folder}: {len(done)} of {len(own)} shards were done")
    pieces = {number: cut(shards.rows[number], batch_size) for number in left}
    waited: list[float] = []
    start = time.perf_counter()
    batches = timed(decoded(dataset, list(itertools.chain(*pieces.values())), workers=workers, pin=pin), waited)
    label = "extract" + f" (process 1 of {process.world_size})" * (process.world_size > 1)
    total = sum(len(shards.rows[number]) for number in left)
    with track(total, label) as advance:
        for number in left:
            bad: dict[int, BadImage] = {}
            of_shard = itertools.islice(batches, len(pieces[number]))
            shards.write(number, embedded(embed, of_shard, batch_size=batch_size, bad=bad, advance=advance), bad)
            ledger.add(bad.values(), seen=len(shards.rows[number]))
    ledger.settle()
    seconds = time.perf_counter() - start
    if total:
        print(f"{total} pictures in {seconds:.1f} s, {total / seconds:.0f} images/s, {sum(waited) / seconds:.0%} of "
              f"the time for decoding")


def _digest(network: torch.nn.Module) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        whole.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
