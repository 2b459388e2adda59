"""Which types the parameters of a function or class take, read from its source as text: nothing of it is imported."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SIMPLE = ("str", "Path", "bool", "int", "float", "None")
LISTS = ("Sequence", "Iterable", "list", "List", "tuple", "Tuple")


@cache
def parameters(dotted: str) -> dict[str, frozenset[str]]:
    """Map every parameter of `package.module.name` that has a type hint to the names of the types it takes.

    `str | Path | None` is {"str", "Path", "None"}; what a list may hold has a bracket before its name:
    `Sequence[int]` is {"[int"}. Aliases, and names that a module takes from another of its package, are followed.
    """
    module, _, name = dotted.rpartition(".")
    module, node = _definition(module, name)
    if isinstance(node, ast.ClassDef):
        made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        hints = {item.target.id: item.annotation for item in node.body if isinstance(item, ast.AnnAssign)}
        node = made[0] if made else None  # none: the fields of a dataclass
    if isinstance(node, ast.FunctionDef):
        hints = {item.arg: item.annotation for item in [*node.args.args, *node.args.kwonlyargs] if item.annotation}
    return {key: frozenset(_types(hint, module)) for key, hint in hints.items()}


@cache
def _source(module: str) -> ast.Module:
    package, *inner = module.split(".")
    place = Path(find_spec(package).origin).parent.joinpath(*inner)
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Return what `name` is in `module`, and the module of its package that says so; None: another package's."""
    for node in _source(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == module.split(".")[0]:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _definition(node.module, alias.name)
    return module, None


def _types(hint: ast.AST, module: str) -> set[str]:
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        return _types(ast.parse(hint.value, mode="eval").body, module)
    if isinstance(hint, ast.BinOp):
        return _types(hint.left, module) | _types(hint.right, module)
    if isinstance(hint, ast.Subscript):
        parts = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
        name = ast.unparse(hint.value).rpartition(".")[2]
        if name not in (*LISTS, "Optional", "Union"):
            return {name}
        inner = set().union(*(_types(part, module) for part in parts))
        return {f"[{kind}" for kind in inner} if name in LISTS else inner | ({"None"} if name == "Optional" else set())
    name = ast.unparse(hint).rpartition(".")[2]
    if name in SIMPLE:
        return {name}
    place, meaning = _definition(module, name)
    return {name} if meaning is None or isinstance(meaning, ast.ClassDef) else _types(meaning, place)
