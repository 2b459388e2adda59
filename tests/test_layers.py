"""Imports follow the data flow backwards and never turn round (DESIGN, layout)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rdcd"
LEAVES = {"errors", "files", "provenance"}
LAYERS = {  # part of the package → parts it may import, beside the leaves and itself
    "errors": set(), "files": {"errors"}, "provenance": set(), "__init__": {"library"},
    "yamls": set(), "hints": set(), "losses": set(), "models": set(), "augment": set(), "retrieval": set(),
    "data": {"augment"},
    "evaluation": {"models", "data", "retrieval"},
    "training": {"losses", "models", "data", "augment", "retrieval", "evaluation"},
    "export": {"models", "data", "retrieval", "evaluation"},
    "collection": {"models", "data", "retrieval", "evaluation"},  # index, search, dedup: a user's own pictures
    "library": {"models", "data", "retrieval", "evaluation", "collection"},
    "bench": {"losses", "models", "data", "augment", "retrieval", "evaluation", "training"},
    "doctor": {"models"},  # which imports no library before it is tried
    "cli": {"yamls", "hints", "losses", "models", "data", "augment", "retrieval", "evaluation", "training", "export",
            "bench", "collection"},
    "__main__": {"cli"},
}
OWNERS = {"hydra": {"cli"}, "omegaconf": {"cli"}, "pytorch_lightning": {"training", "bench"}, "lightning": set()}


def part(path: Path) -> str:
    """The layer a file belongs to: its folder below rdcd/, or its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(source: str) -> set[tuple[str, ...]]:
    """Every module that is imported anywhere in a file, inside functions too, as a tuple of names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write it from rdcd on"
            found |= {(*node.module.split("."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "import_module", "__import__"):
            found.add(("<dynamic>",))
    return found


def violations(layer: str, source: str) -> list[str]:
    """What a file of `layer` imports and should not."""
    allowed = LAYERS[layer] | {layer} | (set() if layer in LEAVES else LEAVES)
    found = []
    for names in sorted(imports(source)):
        sibling = names[1] if names[0] == "rdcd" and len(names) > 1 else layer
        if sibling not in allowed or layer not in OWNERS.get(names[0], {layer}) or names[0] == "<dynamic>":
            found.append(".".join(names))
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_keep_to_the_layers(path: Path) -> None:
    assert part(path) in LAYERS, f"{path} is of a layer this test does not know: say above what it may import"
    assert violations(part(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("layer", "source", "found"), [
    ("losses", "from rdcd.models.queue import DescriptorQueue", ["rdcd.models.queue.DescriptorQueue"]),
    ("models", "def f():\n    import rdcd.losses.koleo", ["rdcd.losses.koleo"]),
    ("errors", "from rdcd.files import sha256", ["rdcd.files.sha256"]),
    ("data", "from rdcd import evaluation, augment", ["rdcd.evaluation"]),
    ("evaluation", "import pytorch_lightning as pl", ["pytorch_lightning"]),
    ("training", "from omegaconf import DictConfig", ["omegaconf.DictConfig"]),
    ("training", "from hydra.utils import instantiate", ["hydra.utils.instantiate"]),
    ("retrieval", "importlib.import_module('rdcd.training')", ["<dynamic>"]),
    ("training", "import lightning.pytorch", ["lightning.pytorch"]),
    ("training", "import pytorch_lightning\nfrom rdcd.errors import UserError\nimport rdcd.provenance", []),
    ("cli", "import hydra, rdcd\nfrom rdcd.training.launch import find_run", []),
])
def test_the_check_itself(layer: str, source: str, found: list[str]) -> None:
    assert violations(layer, source) == found
