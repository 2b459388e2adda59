"""Exit 0 if this Python has all that requirements.txt asks for, and all that those packages ask for.

Reads metadata only, so that it takes a tenth of a second where importing everything takes many.
Arguments: `rdcd` — the package itself too; `test` — what the tests need too.
"""

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def first_missing(lines: list[str]) -> str | None:
    """Return the first requirement that is not installed, or None."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return "packaging"
    wanted = [need for need in map(Requirement, lines) if not need.marker or need.marker.evaluate()]
    seen = set()
    while wanted:
        need = wanted.pop(0)
        key = need.name, *sorted(need.extras)
        try:
            installed = distribution(need.name)
        except PackageNotFoundError:
            return str(need)
        if not need.specifier.contains(installed.version, prereleases=True):
            return f"{need} (has {installed.version})"
        if key not in seen:
            seen.add(key)
            for child in map(Requirement, installed.requires or ()):
                extras = ({"extra": extra} for extra in ("", *need.extras))
                if not child.marker or any(map(child.marker.evaluate, extras)):
                    wanted.append(child)
    return None


def main(arguments: list[str]) -> str | None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if "rdcd" in arguments:
        lines.append("rdcd")
    if "test" in arguments:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        lines += ast.literal_eval(re.search(r"^test = (\[.*\])", project, re.MULTILINE)[1])
    missing = first_missing(lines)
    return missing and f"rdcd: {sys.executable} lacks {missing}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
