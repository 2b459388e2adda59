"""Train, measure and ship compact image-copy-detection descriptors.

    import rdcd

    model = rdcd.load("student.safetensors")
    descriptors = model.embed(["a.jpg", picture, array])

`load`, `Model`, `Index`, `Match` and `Scoring` are the library, see `rdcd.library`, which is imported at their first
use: `import rdcd` alone loads nothing heavy.
"""

from typing import TYPE_CHECKING

from rdcd.errors import BadImage, UserError

if TYPE_CHECKING:
    from rdcd.library import Index, Match, Model, Scoring, load

__version__ = "0.1.0"
__all__ = ["BadImage", "Index", "Match", "Model", "Scoring", "UserError", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rdcd import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
