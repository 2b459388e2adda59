"""`rdcd index build`, `add`, `remove`, `info`."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rdcd.collection.pictures import Embedder, list_pictures, places, settle_bad
from rdcd.data.images import reads_images
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.files import check_output, composed
from rdcd.provenance import provenance
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.descriptors import read_descriptors, warn_of_lengths
from rdcd.retrieval.index import FLAT, Index, describe_model
from rdcd.retrieval.index_writer import IndexWriter, change_index, new_index
from rdcd.retrieval.segments import SegmentWriter

Images = str | Path | Sequence[str | Path] | None


@reads_images
def build(*, index: str | Path, images: Images, model: str, codec: str = FLAT, factory: str = FLAT,
          background: Images = None, background_size: int = 10_000, size: int | None = None,
          resize: str | None = None, batch_size: int = 64, workers: int | None = None, device: str | None = None,
          allow_torchscript: bool = False) -> Index:
    """Build an index of pictures: the `rdcd index build` command.

    Args:
        index: folder to make.
        images: folders and picture files; None: an index of none, to add to.
        model, size, resize, batch_size, workers, device, allow_torchscript: see `Embedder.load`.
        codec: see `Codec`; one that learns does so from the background.
        factory: `Flat`, exact; or a faiss index-factory string.
        background: what scores are normalized against: pictures like those of the index and copies of none of them, or
            a descriptor file of the same model; None: the index's own.
        background_size: at most so many of it, evenly chosen.

    Raises:
        UserError: the folder is taken, or settings that cannot work.
    """
    check_path("index", index)
    check_output(index, folder=True)
    check_number("background_size", background_size, 1)
    paths = list_pictures(images)
    embedder = Embedder.load(model, size=size, resize=resize, batch_size=batch_size, workers=workers, device=device,
                             allow_torchscript=allow_torchscript)
    bad: list[BadImage] = []
    made = make_index(index, paths, embedder, bad, codec=codec, factory=factory, background=background,
                      background_size=background_size)
    settle_bad(Path(index) / "bad_files.csv", bad)
    _say(made, f"{len(made):,} pictures")
    return made


def make_index(folder: str | Path, paths: Sequence[str], embedder: Embedder, bad: list[BadImage], *, codec: str = FLAT,
               factory: str = FLAT, background: Images = None, background_size: int = 10_000) -> Index:
    """Build an index of pictures, see `build`; unreadable ones are added to `bad`."""
    ready = Codec(codec, embedder.network.dim)
    if not ready.exact:
        raise UserError(f"codec={codec}: expected transforms followed by Flat; how pictures are searched is said by "
                        f"factory={codec.split(',')[-1]}")
    others, source = _background(background, background_size, embedder, bad)
    ready.train(others)
    with new_index(folder, model=embedder.about, codec=ready, dim=embedder.network.dim, background=others,
                   background_source=source, factory=factory,
                   made=provenance(device=embedder.settings["device"])) as writer:
        added, _, _ = _add(writer, paths, embedder, bad)
        if factory != FLAT:
            writer.train(added)
        return writer.commit(added)


@reads_images
def add(*, index: str | Path, images: Images, model: str | None = None, codec: str | None = None,
        batch_size: int = 64, workers: int | None = None, device: str | None = None,
        allow_torchscript: bool = False) -> Index:
    """Add pictures to an index: the `rdcd index add` command. The index is then as one built of all at once.

    A picture that is in the index already is skipped if its file has not changed, and replaced if it has.

    Args:
        index: its folder.
        images: folders and picture files.
        model: None: the one the index was built with, where it lay then.
        codec: None: the index's.
        batch_size, workers, device, allow_torchscript: see `Embedder.load`.

    Raises:
        UserError: no index, another model or codec, or another writer at work.
    """
    check_path("index", index)
    check_path("model", model, null="the one the index was built with")
    paths, bad = list_pictures(images), []

    def load(opened: Index) -> Embedder:
        return index_embedder(opened, model=model, codec=codec, batch_size=batch_size, workers=workers, device=device,
                              allow_torchscript=allow_torchscript)

    made, added, replaced, skipped = extend_index(index, paths, load, bad)
    settle_bad(Path(index) / f"bad_files-{time.strftime('%Y%m%d-%H%M%S')}.csv", bad)
    _say(made, f"{added - replaced:,} pictures added, {replaced:,} replaced, {skipped:,} were there already; "
               f"{len(made):,} in all")
    return made


def extend_index(folder: str | Path, paths: Sequence[str], load: Callable[[Index], Embedder],
                 bad: list[BadImage]) -> tuple[Index, int, int, int]:
    """Add pictures to an index, see `add`; unreadable ones are added to `bad`.

    Args:
        paths: as `list_pictures` returns them.
        load: makes the index's embedder, when the index is locked.

    Returns:
        the index, and how many pictures were added, how many of these replaced one, and how many were skipped.
    """
    with change_index(folder) as writer:
        added, skipped, replaced = _add(writer, paths, load(writer.index), bad)
        made = writer.commit(added, without=replaced) if added.rows else writer.index
    return made, added.rows, len(replaced), skipped


def remove(*, index: str | Path, images: Images = None, missing: bool = False) -> Index:
    """Take pictures out of an index: the `rdcd index remove` command. Picture files are not touched.

    Args:
        index: its folder.
        images: picture files and folders, which need not exist any more; of a folder, all the index has below it.
        missing: take out all pictures whose files have gone.

    Raises:
        UserError: none of the index's pictures is meant, or another writer is at work.
    """
    check_path("index", index)
    made, gone = shrink_index(index, images, missing=missing)
    _say(made, f"{gone:,} pictures removed, {len(made):,} left; no file was touched")
    return made


def shrink_index(index: str | Path, images: Images, *, missing: bool) -> tuple[Index, int]:
    """Take pictures out of an index, see `remove`; return it and how many."""
    wanted = [os.path.abspath(place) for place in places(images)]
    if not wanted and not missing:
        raise UserError("nothing to remove: give images=PATH, or missing=true for pictures whose files have gone")
    with change_index(index) as writer:
        gone, met = set(), set()
        for form in (str, composed):  # as they are; then, of those that were not met so, in NFC
            left = [(place, form(place), f"{form(place).rstrip('/')}/") for place in wanted if place not in met]
            if form is composed and not left:
                break
            for segment in writer.index.segments:
                for path in segment.paths():
                    name = form(path)
                    hit = next((place for place, whole, below in left if name == whole or name.startswith(below)), None)
                    if hit is not None or missing and form is str and not os.path.exists(path):
                        gone.add(path)
                        met.add(hit)
        if unmet := [place for place in wanted if place not in met]:
            raise UserError(f"{index} has no picture {unmet[0]}, nor any below it: `rdcd index info index={index}` "
                            f"shows what it has; nothing was removed")
        return (writer.commit(without=gone) if gone else writer.index), len(gone)


def info(*, index: str | Path, paths: bool = False) -> dict[str, object]:
    """Say what an index is: the `rdcd index info` command.

    Args:
        index: its folder.
        paths: list all its pictures, too.

    Returns:
        what is shown.
    """
    check_path("index", index)
    opened = Index.open(index)
    about = opened.about
    size = sum(file.stat().st_size for file in Path(index).rglob("*") if file.is_file())
    shown = {"pictures": len(opened), "model": describe_model(about["model"]), "weights": about["model"]["name"],
             "licence": about["model"].get("licence") or "not recorded", "codec": about["codec"]["text"],
             "search": _search(opened), "background": _background_name(opened),
             "score normalization": opened.score_norm or "none",
             "segments": ", ".join(f"{len(segment):,}" for segment in opened.segments) or "none",
             "on disk": f"{size / 1e6:,.1f} MB", "built": about["made"]["written"], "command": about["made"]["command"]}
    for name, value in shown.items():
        print(f"{name + ':':<21} {value}")
    if paths:
        for segment in opened.segments:
            for path in segment.paths():
                print(path)
    return shown


def index_embedder(index: Index, *, model: str | None, codec: str | None = None, **settings: object) -> Embedder:
    """Load the model of an index, and refuse another model or codec by name.

    Args:
        model: None: the one the index names.
        codec: None: the index's.
        settings: of `Embedder.load`.
    """
    recorded, text = index.about["model"], index.about["codec"]["text"]
    if codec not in (None, text):
        raise UserError(f"codec={codec}: {index.folder} was built with the codec {text!r}; leave it out, or build "
                        f"another index")
    try:
        embedder = Embedder.load(model or recorded["name"], size=recorded["size"], resize=recorded["resize"],
                                 **settings)
    except UserError as error:
        if model is None:
            raise UserError(f"the model of {index.folder} cannot be loaded: {error}; model=PATH says where it "
                            f"lies now") from error
        raise
    embedder.check_same(recorded, where=str(index.folder))
    return embedder


def _add(writer: IndexWriter, paths: list[str], embedder: Embedder,
         bad: list[BadImage]) -> tuple[SegmentWriter, int, set[str]]:
    """Extract pictures into a new segment; return it, how many were there unchanged, and the paths that changed."""
    segment, replaced, unreadable = writer.segment(), set(), len(bad)

    def known(path: str) -> bytes | None:
        row = writer.index.find(path)
        return None if row is None else writer.index.digest(row)

    for shard in embedder.shards(paths, bad, label="index", known=known):
        segment.append(shard.paths, shard.digests, writer.index.encode(shard.vectors))
        replaced |= {path for path in shard.paths if writer.index.find(path) is not None}
    segment.close()
    return segment, len(paths) - segment.rows - (len(bad) - unreadable), replaced


def _background(background: Images, most: int, embedder: Embedder,
                bad: list[BadImage]) -> tuple[np.ndarray | None, str | None]:
    """Return background descriptors and where they are from."""
    given = places(background, key="background")
    if not given:
        return None, None
    if len(given) == 1 and given[0].suffix in (".h5", ".hdf5"):
        descriptors = read_descriptors(given[0])
        warn_of_lengths(descriptors, given[0])
        vectors = descriptors.vectors
        if vectors.shape[1] != embedder.network.dim:
            raise UserError(f"background={given[0]} has descriptors of {vectors.shape[1]} numbers, "
                            f"{embedder.about['name']} makes {embedder.network.dim}: extract it with that model")
        return vectors[_evenly(len(vectors), most)], os.path.abspath(given[0])
    paths = list_pictures(background, key="background")
    paths = [paths[i] for i in _evenly(len(paths), most)]
    parts = [shard.vectors for shard in embedder.shards(paths, bad, label="background")]
    if not parts:
        raise UserError(f"background={background}: not one picture could be read, the first {bad[0].path} "
                        f"({bad[0].reason})")
    return np.concatenate(parts), ", ".join(os.path.abspath(place) for place in given)


def _evenly(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _search(index: Index) -> str:
    if index.about["factory"] == FLAT:
        return "exact"
    if not index.about["recall"]:
        return f"exact as yet: {index.about['factory']} begins with segments of 1,000 pictures"
    recall = index.about["recall"]
    return (f"{index.about['factory']}: finds {100 * recall['recall_at_1']:.1f} % of the exact nearest and "
            f"{100 * recall['recall_at_10']:.1f} % of the ten nearest of {recall['queries']} queries")


def _background_name(index: Index) -> str:
    about = index.about["background"]
    if about["source"]:
        return f"{about['count']:,} descriptors of {about['source']}"
    return f"the index's own pictures ({len(index.background):,}): what has more than ten copies here scores too low"


def _say(index: Index, what: str) -> None:
    about, norm = index.about, index.score_norm or "none"
    print(f"{index.folder}: {what}\nmodel: {describe_model(about['model'])}; codec {about['codec']['text']}; "
          f"search: {_search(index)}\nbackground: {_background_name(index)}; score normalization {norm}", flush=True)
