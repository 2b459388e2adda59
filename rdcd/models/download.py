"""Fetch a file over HTTP once: resumed after an interruption, checked, whole or absent."""

import errno
import fcntl
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rdcd.errors import UserError
from rdcd.files import check_output, write_json
from rdcd.files import sha256 as file_sha256

CHUNK = 1 << 18  # bytes


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the folder of downloads: `cache`, else `$RDCD_CACHE`, else `~/.cache/rdcd`."""
    return Path(cache or os.environ.get("RDCD_CACHE") or "~/.cache/rdcd").expanduser()


def fetch(url: str, path: str | Path, *, size: int | None = None, sha256: str | None = None, tries: int = 5,
          pause: float = 1.0, timeout: float = 30.0, instead: str = "") -> Path:
    """Return `path`, fetched from `url` unless it is there; the network is asked only then.

    Beside it lie, until it is whole, `NAME.part` (what has come) and `NAME.part.json` (of which version), and for good
    `.NAME.lock` (empty; who holds it fetches, others wait) and, where no hash was given, the record `NAME.json`.

    Args:
        size, sha256: what is known of the file: bytes, hex digest. Without a digest, that of the first download is
            recorded, and the file, or one fetched in its place, is held to it.
        tries: how often a dropped connection is taken up again, where it broke.
        pause: seconds before the second try, doubled from try to try.
        timeout: seconds without a byte after which a connection counts as dropped.
        instead: what else someone without network can do, such as `teacher.path=FILE`.

    Raises:
        UserError: no HTTP address, no network, no such file there, or one that is not what was expected.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: expected an address that starts with https:// or http://")
    if not path.is_file():
        check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not path.is_file():  # unless another process fetched it meanwhile
                _download(url, path, known={"size": size, "sha256": sha256}, tries=tries, pause=pause,
                          timeout=timeout, instead=instead)
                return path
    check_download(path, url=url, size=size, sha256=sha256)
    return path


def check_download(path: str | Path, *, url: str, size: int | None = None, sha256: str | None = None) -> None:
    """Hold a file to what is known of it: the arguments, or what was recorded of it; else record it.

    Raises:
        UserError: it is another one, with both hashes.
    """
    path = Path(path)
    known, recorded = _known(path, size, sha256)
    found, wrong = _compare(path, known)
    if wrong:
        raise UserError(f"{path} is not the file it should be: {wrong}. It was changed or is damaged: delete it to "
                        f"fetch it again" + (f"; delete {_beside(path, 'json')} too if you mean another version"
                                             if recorded else ""))
    if known["sha256"] is None:
        try:
            _write_record(path, url, found)
        except OSError:  # somebody else's cache, not ours to write to; the hash is in the card all the same
            pass


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not readable ({error}): delete it") from error


def _known(path: Path, size: int | None, sha256: str | None) -> tuple[dict, dict]:
    """What a file is held to, and what of it was recorded; a record is of use only where no digest is given."""
    record = _read(_beside(path, "json")) if sha256 is None else {}
    return {"size": size or record.get("size"), "sha256": sha256 or record.get("sha256")}, record


def _compare(file: Path, known: dict) -> tuple[dict, str]:
    """Size and hash of a file, and how they differ from the known ones."""
    found = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    wrong = [f"{name} {found[key]}, expected {known[key]}" for key, name in (("size", "bytes"), ("sha256", "SHA-256"))
             if known[key] not in (None, found[key])]
    return found, "; ".join(wrong)


def _write_record(path: Path, url: str, found: dict) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(_beside(path, "json"), {"url": url, **found, "recorded": now})


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the right to fetch `path`; the system gives it back when a process ends, however it ends."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = open(lock, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.name}: another process is fetching it; waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(f"cannot write or lock {lock} ({error}): give another folder for downloads") from error
    with file:
        yield


def _download(url: str, path: Path, *, known: dict, tries: int, pause: float, timeout: float, instead: str) -> None:
    part, version = _beside(path, "part"), _beside(path, "part.json")
    known, recorded = _known(path, **known)
    reason: object = None
    for attempt in range(tries):
        if attempt:
            print(f"{path.name}: {reason}; trying again", flush=True)
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(url, part, version, label=path.name, timeout=timeout)
            break
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # what lies here is not the beginning of what the server has
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise _unreachable(url, path, reason, instead) from error
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"no room left for {part} ({error}): make room, or give another folder for "
                                f"downloads") from error
            reason = getattr(error, "reason", error) or error
            if isinstance(error, urllib.error.URLError) and not attempt:  # offline, not cut off
                raise _unreachable(url, path, reason, instead) from error
    else:
        raise _unreachable(url, path, f"{reason}, {tries} times", instead)
    found, wrong = _compare(part, known)
    version.unlink()
    if wrong:
        part.unlink()
        raise UserError(f"{url} did not give the file it should: {wrong}. What came was removed; try again"
                        + (f", or delete {_beside(path, 'json')} if you mean another version" if recorded else
                           f", or put a file you trust at {path}"))
    if known["sha256"] is None:
        _write_record(path, url, found)
    os.replace(part, path)


def _unreachable(url: str, path: Path, reason: object, instead: str) -> UserError:
    return UserError(f"cannot fetch {url} ({reason}): fetch it on any machine that has a network, and put it at "
                     f"{path}" + (f" or give {instead}" if instead else ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http and https, never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(url: str, part: Path, version: Path, *, label: str, timeout: float) -> None:
    """Fetch what `part` lacks, in one connection.

    `version` says what the part is a part of: without it, or when the server has another version by now, the part is
    fetched from the start.

    Raises:
        OSError, http.client.HTTPException: whatever broke the connection.
    """
    begun = _read(version) if part.is_file() else {}
    have = part.stat().st_size if begun.get("url") == url and begun.get("validator") else 0
    if have and have == begun.get("size"):
        return
    request = urllib.request.Request(url, headers={"User-Agent": "rdcd"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", begun["validator"])
    with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as answer:
        start, total, validator = 0, answer.length, _validator(answer.headers)
        if answer.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            start, total = (int(span[1]), int(span[2])) if span else (-1, None)
            if start != have or validator not in (None, begun.get("validator")):
                part.unlink()
                raise ConnectionError("the server answered with a part of another file")
        with open(part, "ab" if start else "wb") as file:
            if not start:  # after the old part is gone
                write_json(version, {"url": url, "validator": validator, "size": total})
            with _progress(label, start, total) as advance:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
            if total is not None and file.tell() != total:
                raise ConnectionError(f"the connection broke after {file.tell():,} of {total:,} bytes")


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """What names a version of a file in `If-Range`: a strong ETag, or the date of its last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


@contextmanager
def _progress(label: str, start: int, total: int | None, every: float = 5.0) -> Iterator[Callable[[int], None]]:
    """Yield `advance(bytes)`: a bar on a terminal, a line every few seconds elsewhere."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   TimeRemainingColumn(), transient=True)
    task = bar.add_task(label, total=total, completed=start)
    size = f"{total / 1e6:.1f} MB" if total is not None else "unknown size"
    print(f"fetching {label}, {size}" + (f", from {start / 1e6:.1f} MB on" if start else ""), flush=True)
    done, said = start, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        bar.update(task, completed=done)
        if not bar.console.is_terminal and time.monotonic() - said > every:
            said = time.monotonic()
            print(f"{label}: {done / 1e6:.1f} of {size}", flush=True)

    if not bar.console.is_terminal:
        yield advance
    else:
        with bar:
            yield advance
