"""Pictures of a collection → descriptors, shard by shard, with what an index records of them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rdcd.data.images import find_images, open_image, write_ledger
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import share_cores
from rdcd.data.views import Pictures
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.evaluation.extract import check_device, extract_descriptors
from rdcd.evaluation.networks import file_of, is_named, load_network, preprocessing
from rdcd.evaluation.runs import find_run
from rdcd.files import existing, sha256
from rdcd.models.inference import Embed, make_embed
from rdcd.models.student import check_size
from rdcd.retrieval.calibration import uncalibrated
from rdcd.retrieval.index import describe_model

SHARD = 4096  # pictures extracted at a time: what memory holds of a collection


@dataclass(frozen=True)
class Shard:
    """Readable pictures in order of path: absolute paths, SHA-256 uint8 [n, 32], descriptors float32 [n, d]."""

    paths: list[str]
    digests: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Embedder:
    """A model ready to embed pictures.

    Args:
        network: see `load_network`.
        card: its card.
        about: what an index records of it, see `describe_model`.
        settings: of `extract_descriptors`.
    """

    network: torch.nn.Module
    card: dict
    about: dict
    settings: dict = field(default_factory=dict)

    @classmethod
    def load(cls, model: str | Path, *, size: int | None = None, resize: str | None = None, batch_size: int = 64,
             workers: int | None = None, device: str | None = None, allow_torchscript: bool = False,
             alone: bool = True) -> "Embedder":
        """Load a model as `load_network` takes it, or a run folder or `latest` for a run's student.

        Args:
            size, resize: None: the card's; thresholds on the card do not hold for others and are left out.
            alone: whether the process is for this, so that `share_cores` may prepare it.
        """
        check_path("model", model)
        check_number("size", size, 1, null="what the model's card says")
        check_number("batch_size", batch_size, 1)
        device = check_device(device)
        if alone:
            share_cores(device)
        name = str(model)
        if not is_named(name):
            path = find_run(name, finished=True) / "student.safetensors" if name == "latest" or Path(name).is_dir() \
                else Path(name)
            name = str(path.resolve())
        elif file := file_of(name):
            name = name.removesuffix(str(file)) + str(file.resolve())
        network, card = load_network(name, allow_torchscript=allow_torchscript)
        size, resize = preprocessing(card, size=size, resize=resize)
        check_size(network, size, name=name, key="size")
        if (size, resize) != preprocessing(card, size=None, resize=None):
            card = uncalibrated(card)
        about = {"name": name, "weights_sha256": card["weights_sha256"] or _digest_of(network),
                 "dim": network.dim, "size": size, "resize": resize, "licence": card.get("licence")}
        fixed = FixedBatches(network, 1 if device == "cpu" else batch_size)  # on a CPU, as fast as many at once
        return cls(fixed, card, about, {"size": size, "resize": resize, "batch_size": batch_size, "workers": workers,
                                          "device": device})

    def check_same(self, recorded: dict, *, where: str) -> None:
        """Refuse descriptors of another model, or of pictures resized otherwise, than those recorded.

        Raises:
            UserError: naming both.
        """
        same = ("weights_sha256", "dim", "size", "resize")
        if any(self.about[key] != recorded[key] for key in same):
            raise UserError(f"{where} is of the model {describe_model(recorded)}, and this is "
                            f"{describe_model(self.about)}: descriptors of different models cannot be compared; take "
                            f"model={recorded['name']}, or build another index")

    def shards(self, paths: Sequence[str], bad: list[BadImage], *, label: str,
               known: Callable[[str], bytes | None] = lambda path: None) -> Iterator[Shard]:
        """Yield descriptors of pictures, a few thousand at a time, in order.

        Args:
            paths: as `list_pictures` returns them.
            bad: unreadable pictures are added to it.
            label: of the progress lines.
            known: path → SHA-256 of a picture that need not be embedded again unless its file has changed.
        """
        for start in range(0, len(paths), SHARD):
            part, digests = [], []
            for path in paths[start:start + SHARD]:
                try:
                    digest = bytes.fromhex(sha256(path))
                except OSError as error:
                    bad.append(BadImage(path, f"{type(error).__name__}: {error}"))
                    continue
                if digest != known(path):
                    part.append(path)
                    digests.append(digest)
            if not part:
                continue
            of = f" {start + 1:,}–{min(start + SHARD, len(paths)):,} of {len(paths):,}" if len(paths) > SHARD else ""
            found, vectors = self._embed(part, bad, label=label + of)
            if found:
                hashes = np.frombuffer(b"".join(digests[i] for i in found), np.uint8).reshape(-1, 32)
                yield Shard([part[i] for i in found], hashes, vectors)

    def embed(self, picture: bytes) -> np.ndarray:
        """Return the descriptor, float32 [1, d], of an encoded picture, as `shards` makes that of its file.

        Raises:
            BadImage: it cannot be decoded.
        """
        resize = {key: self.settings[key] for key in ("size", "resize")}
        _, pixels = Pictures(_Encoded(picture), **resize)[0]
        if isinstance(pixels, BadImage):
            raise pixels
        return self._ready(pixels[None]).numpy()

    @cached_property
    def _ready(self) -> Embed:
        return make_embed(self.network, device=self.settings["device"])

    def _embed(self, paths: list[str], bad: list[BadImage], *, label: str) -> tuple[list[int], np.ndarray]:
        """Return the numbers of the readable pictures and their descriptors."""
        pictures = Manifest("/", [Path(path) for path in paths], names=list(map(str, range(len(paths)))))
        try:
            descriptors, unreadable = extract_descriptors(self.network, pictures, label=label, **self.settings)
        except UserError:
            errors = [_refusal(path) for path in paths]
            if not all(errors):  # it is something else
                raise
            bad += errors
            return [], np.empty((0, self.network.dim), np.float32)
        bad += unreadable
        return [int(name) for name in descriptors.names.tolist()], descriptors.vectors


class _Encoded(Manifest):
    """One picture that is in memory."""

    def __init__(self, picture: bytes) -> None:
        super().__init__("/", [Path("/picture")])
        self._picture = picture

    def source(self, index: int) -> bytes:
        return self._picture


class FixedBatches(torch.nn.Module):
    """A network that always computes as many pictures at once: a descriptor then does not depend on what is beside it.

    Matrix products round a row by its place and the number of rows, in the last bit: pictures added one by one would
    have other descriptors than pictures added together. One at a time they are equal; on a GPU, where that is slow,
    batches of one size make a difference rare.

    Args:
        network: see `load_network`.
        size: pictures at once; missing ones are filled up with black.
    """

    def __init__(self, network: torch.nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size, self.dim = network, size, network.dim

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the descriptors [B, d] of pictures [B, 3, H, W]."""
        filled = torch.nn.functional.pad(pictures, (0, 0, 0, 0, 0, 0, 0, -len(pictures) % self.size))
        return torch.cat([self.network.embed(part) for part in filled.split(self.size)])[:len(pictures)]


def _refusal(path: str) -> BadImage | None:
    try:
        open_image(path)
    except BadImage as error:
        return error
    return None


def _digest_of(network: torch.nn.Module) -> str:
    """Hash a network's numbers, for one whose weights came from no file of ours; of none, its class and name."""
    digest = hashlib.sha256(repr((type(network).__name__, getattr(network, "name", None))).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def list_pictures(images: str | Path | Sequence[str | Path] | None, *, key: str = "images") -> list[str]:
    """List pictures by absolute path, each once, in the order of an index.

    Args:
        images: folders, nested ones included, and picture files; None or an empty list: none.

    Raises:
        UserError: a path that is not there, a folder without pictures, or a name that is not UTF-8.
    """
    found: set[str] = set()
    for place in map(existing, places(images, key=key)):
        paths = [place] if place.is_file() else find_images(place)
        found |= {os.path.abspath(path) for path in paths}
    try:
        return sorted(found, key=lambda path: path.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"a file name is not UTF-8: {ascii(error.object)}; rename it") from None


def places(images: str | Path | Sequence[str | Path] | None, *, key: str = "images") -> list[Path]:
    """Return the paths that a setting gives: one, several, or for None none."""
    wanted = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    for place in wanted:
        check_path(key, place)
    return [Path(place) for place in wanted]


def settle_bad(path: Path, bad: list[BadImage]) -> None:
    """Write the ledger of unreadable pictures and say so; without any, remove an old one."""
    path.unlink(missing_ok=True)
    if bad:
        write_ledger(path, bad)
        print(f"{len({one.path for one in bad}):,} pictures could not be read and are left out; {path} says why")
