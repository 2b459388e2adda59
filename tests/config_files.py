"""Reading the YAMLs of configs/ without Hydra, for the tests that compare them with something."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from rdcd.yamls import config_dir

CONFIGS = config_dir()
COMMANDS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def tree(path: Path) -> dict:
    """The content of a YAML."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def leaves(value: dict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that hold a value."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from leaves(inner, f"{prefix}{key}.")
        elif not key.startswith("_") and key != "defaults":
            yield prefix + key
