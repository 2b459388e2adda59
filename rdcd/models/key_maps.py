"""What released files call the tensors of our networks: one map a file format (docs/method.md §8).

A map takes the name of a tensor in `Student` or `DinoDescriptor` and returns its name in the file. In that direction
it is total, and what is missing or unexpected in a file is told in the file's own names.
"""

import re
from collections.abc import Callable, Iterable

from torch import Tensor

_CLASSY_STEM = {"conv1": "0", "bn1": "1"}
_CLASSY_BLOCK = {"conv1": "convolutional_block.0", "bn1": "convolutional_block.1",
                 "conv2": "convolutional_block.3", "bn2": "convolutional_block.4",
                 "conv3": "convolutional_block.6", "bn3": "bn", "downsample": "downsample"}


def torchvision_key(key: str) -> str:
    """Name in SSCD's `.torchvision.pt`: torchvision's ResNet, whose `fc` gives the descriptor."""
    return "backbone." + key.removeprefix("trunk.")


def classy_key(key: str) -> str:
    """Name in SSCD's `.classy.pt`: Classy Vision's ResNeXt without head, and `embeddings` = GeM, fc, L2."""
    if key.startswith("fc."):
        return "embeddings.1." + key.removeprefix("fc.")
    _, layer, leaf = key.split(".", 2)
    if not layer.startswith("layer"):
        return f"backbone.initial_block._module.{_CLASSY_STEM[layer]}.{leaf}"
    stage = int(layer.removeprefix("layer")) - 1
    block, name, leaf = leaf.split(".", 2)
    return f"backbone.blocks.{stage}.block{stage}-{block}.{_CLASSY_BLOCK[name]}.{leaf}"


def dino_key(key: str) -> str:
    """Name in DINO's files: timm's own, without prefix."""
    return key.removeprefix("trunk.")


KEY_MAPS: dict[str, Callable[[str], str]] = {
    "torchvision": torchvision_key, "classy": classy_key, "dino": dino_key}
_MARKS = {"torchvision": "backbone.layer", "classy": "backbone.initial_block.", "dino": "patch_embed."}


def tell_format(keys: Iterable[str]) -> str | None:
    """Return the format whose names these are, or None."""
    keys = list(keys)
    return next((name for name, mark in _MARKS.items() if any(key.startswith(mark) for key in keys)), None)


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the blocks of older Classy Vision, `blocks.1.0._module.`, as of today, `blocks.1.block1-0.`."""
    return {re.sub(r"^backbone\.blocks\.(\d+)\.(\d+)\._module\.", r"backbone.blocks.\1.block\1-\2.", key): value
            for key, value in state.items()}
