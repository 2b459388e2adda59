"""`rdcd demo`: a page on this machine to try an index with."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from rdcd.collection.finder import Finder
from rdcd.collection.scoring import AUTO
from rdcd.data.images import reads_images
from rdcd.errors import UserError, check_number

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"  # this machine alone: there is no log-in


@reads_images
def demo(*, index: str | Path, port: int = 8000, max_megabytes: float = 20, k: int = 10,
         threshold: float | None = None, precision: float | None = None, score_norm: str | None = AUTO,
         model: str | None = None, device: str | None = None, allow_torchscript: bool = False) -> None:
    """Serve the page until it is interrupted: the `rdcd demo` command.

    Args:
        index: its folder.
        port: 0: one that is free.
        max_megabytes: largest file taken, in 10⁶ bytes.
        k, threshold, precision, score_norm, model, device, allow_torchscript: see `Finder`.

    Raises:
        UserError: no index, another model, a port that is taken, or a library that is not installed.
    """
    check_number("port", port, 0, 65535)
    check_number("max_megabytes", max_megabytes, 0, 1000, whole=False, above=True)
    _libraries()
    listening = listen(port)  # before the model is loaded, which takes a while
    with listening:
        finder = Finder(index, k=k, threshold=threshold, precision=precision, score_norm=score_norm, model=model,
                        device=device, allow_torchscript=allow_torchscript)
        server = make_server(finder, max_bytes=int(max_megabytes * 1e6))
        try:
            print(f"{len(finder):,} pictures in {finder.folder}; threshold {finder.scoring.threshold:.4f}, "
                  f"{finder.scoring.said}\nhttp://{HOST}:{listening.getsockname()[1]} shows the page, on this machine "
                  f"alone; Ctrl-C ends it", flush=True)
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            print("ended")


def listen(port: int) -> socket.socket:
    """Return a socket that this machine alone can connect to.

    Raises:
        UserError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(f"port={port} cannot be had ({error.strerror}): give another, or port=0 for one that is "
                        f"free") from error
    return listening


def make_server(finder: Finder, *, max_bytes: int) -> "uvicorn.Server":
    """Return the server of the page: `run(sockets=[…])` serves, `should_exit = True` ends it."""
    _libraries()
    import uvicorn

    from rdcd.collection.demo_app import make_app

    return uvicorn.Server(uvicorn.Config(
        make_app(finder, max_bytes=max_bytes), log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, lifespan="off", ws="none", http="h11", loop="asyncio", limit_concurrency=16,
        timeout_graceful_shutdown=1))


def _libraries() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"rdcd demo serves its page by libraries that are not installed ({error}): "
                        "pip install starlette uvicorn") from error
