"""What the YAMLs of configs/ say, read as text: commands, slots and choices, keys with their comments."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import rdcd


def config_dir() -> Path:
    """Return the folder of YAMLs: inside an installed package, beside it in a source tree."""
    package = Path(rdcd.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


GROUPS = ("bench", "index")  # first words of commands of two: `rdcd bench step` is bench-step.yaml


def commands() -> dict[str, str]:
    """Map every command's YAML, by name, to its one-sentence description, which is its first line."""
    return {path.stem: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
            for path in sorted(config_dir().glob("*.yaml"))}


def spelled(command: str) -> str:
    """Return a command as it is typed after `rdcd`, from the name of its YAML."""
    group, _, rest = command.partition("-")
    return f"{group} {rest}" if group in GROUPS else command


def choices(group: str) -> list[str]:
    """Return the options of a slot."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def entries(path: Path) -> list[tuple[str, str, str]]:
    """Return (dotted key, default, comment) of every `key: value  # comment` line of a YAML."""
    found, parents = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^( *)([A-Za-z_]\w*):\s*(.*?)(?:\s+#\s*(.*))?$", line)
        if not match or line.lstrip().startswith("- "):
            continue
        indent, key, value, comment = len(match[1]) // 2, match[2], match[3], match[4] or ""
        parents = [*parents[:indent], key]
        if not key.startswith("_") and key != "defaults" and "_here_" not in value:
            found.append((".".join(parents), value, comment))
    return found


def option_entries(path: Path) -> list[tuple[str, str, str]]:
    """Return the entries of a slot's YAML, those of the options it builds on included."""
    found: dict[str, tuple[str, str]] = {}
    if not path.is_file():
        return []
    for base in re.findall(r"^  - (\w+)$", path.read_text(encoding="utf-8"), flags=re.M):
        found |= {key: (value, comment) for key, value, comment in option_entries(path.with_name(f"{base}.yaml"))}
    for key, value, comment in entries(path):
        if value or comment:  # else it opens a block
            known = found.get(key, ("", ""))[1]
            found[key] = value, f"{known}; here: {comment}" if known and comment else known or comment
    return [(key, value, comment) for key, (value, comment) in found.items()]


def slots_of(command: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Return slot → choice: that of the command line, an experiment's, or the default of the command's YAML."""
    def listed(path: Path) -> dict[str, str]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^  - (?:optional |override )?/?(\w+): *(\S+)", text, flags=re.M)
        return {slot: choice for slot, choice in found if (config_dir() / slot).is_dir()}

    slots = listed(config_dir() / f"{command}.yaml")
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    given = {slot: given[slot] for slot in slots if (config_dir() / slot / f"{given.get(slot)}.yaml").is_file()}
    if "experiment" in given:
        slots |= listed(config_dir() / "experiment" / f"{given['experiment']}.yaml")
    return slots | given


@cache
def switches() -> frozenset[str]:
    """Return the names of all keys that some YAML sets to true or false; `pretrained` may be a file, too."""
    return frozenset(key.rpartition(".")[2] for path in config_dir().rglob("*.yaml") for key, value, _ in entries(path)
                     if value in ("true", "false") and not key.endswith("pretrained"))
