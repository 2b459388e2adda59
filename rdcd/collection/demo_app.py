"""The demo's three addresses: its page, and the question which pictures are like one.

Any page that a browser shows can send requests to this machine. Hence a request must name this machine as its host
(else a foreign name that leads here could read answers) and, if it is sent by a page, come from this one.
"""

from dataclasses import asdict
from pathlib import Path
from string import Template

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rdcd.collection.finder import Answer, Finder
from rdcd.collection.matching import IDENTICAL
from rdcd.data.images import EXTENSIONS
from rdcd.errors import BadImage, UserError
from rdcd.evaluation.report_gallery import thumbnail_uri
from rdcd.evaluation.report_page import STYLE, text

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}
_HERE = Path(__file__).parent


def make_app(finder: Finder, *, max_bytes: int) -> Starlette:
    """Return the application.

    Args:
        finder: what answers.
        max_bytes: longest file that is taken.
    """
    page = Template((_HERE / "demo.html").read_text(encoding="utf-8"))
    style = STYLE + (_HERE / "demo.css").read_text(encoding="utf-8")
    script = (_HERE / "demo.js").read_text(encoding="utf-8")
    formats = ",".join(("image/*", *EXTENSIONS))  # no system's list of image types has them all

    def shown(request: Request) -> Response:
        return HTMLResponse(page.substitute(folder=text(finder.folder), pictures=f"{len(finder):,}",
                                            max_bytes=max_bytes, formats=formats), headers=HEADERS)

    def styled(request: Request) -> Response:
        return Response(style, media_type="text/css", headers=HEADERS)

    def scripted(request: Request) -> Response:
        return Response(script, media_type="text/javascript", headers=HEADERS)

    async def asked(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers['host']}":
            return _refused(403, "this was sent by another page; open the demo's own")
        try:
            picture = await received(request, max_bytes)
        except ClientDisconnect:
            return Response(status_code=400)
        if picture is None:
            return _refused(413, f"the file is larger than {max_bytes / 1e6:g} MB, the most that is taken; "
                                 f"max_megabytes= allows more")
        try:
            found = await run_in_threadpool(lambda: answered(finder.find(picture)))
        except BadImage as error:
            return _refused(422, f"this picture cannot be read: {error.reason}")
        except UserError as error:
            return _refused(409, str(error))
        except MemoryError:
            return _refused(507, "there is not enough memory for this picture; take a smaller one")
        return JSONResponse(found, headers=HEADERS)

    async def failed(request: Request, error: Exception) -> Response:
        return _refused(500, f"something went wrong ({type(error).__name__}); the terminal of `rdcd demo` says where")

    return Starlette(
        exception_handlers={Exception: failed},
        routes=[Route("/", shown), Route("/demo.css", styled), Route("/demo.js", scripted),
                Route("/find", asked, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)])


async def received(request: Request, most: int) -> bytes | None:
    """Return a request's body; None: it is longer than `most` bytes, of which no more are kept or waited for."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        return None
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def answered(answer: Answer) -> dict[str, object]:
    """Return what the page shows: thumbnails of the index's pictures, and nothing else of any file."""
    matches = []
    for match in answer.nearest:
        thumbnail, missing = thumbnail_uri(match.path)
        matches.append(asdict(match) | {"path": _printable(match.path), "name": _printable(Path(match.path).name),
                                        "match": match.score >= answer.scoring.threshold or match.kind == IDENTICAL,
                                        "thumbnail": thumbnail, "missing": missing})
    return {"matches": matches, "pictures": answer.pictures, "threshold": answer.scoring.threshold,
            "threshold_from": answer.scoring.said, "score_norm": answer.scoring.score_norm,
            "calibrated": answer.scoring.calibration is not None}


def _printable(path: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in path)


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status, headers=HEADERS)
