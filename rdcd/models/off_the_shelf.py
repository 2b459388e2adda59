"""Networks nobody trained for copy detection, as baselines: a timm trunk with its hub weights → GeM → L2."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdcd.models.student import build_trunk, pooled


class OffTheShelf(nn.Module):
    """GeM-pooled features of a timm trunk, L2-normalized; it normalizes pictures as the trunk's weights want.

    Args:
        trunk: any timm model name, such as `resnet50.a1_in1k`.
        pretrained: True, the hub's weights; a path, a file of weights under timm's names; False, random.
        gem_p: exponent of the pooling.

    Raises:
        UserError: see `Student`.
    """

    def __init__(self, trunk: str, *, pretrained: bool | str | Path = True, gem_p: float = 3.0) -> None:
        super().__init__()
        self.trunk, self.pool = build_trunk(trunk, pretrained, gem_p=gem_p)
        card = self.trunk.pretrained_cfg
        self.dim = self.trunk.head_hidden_size
        self.size = card.get("test_input_size", card["input_size"])[-1]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(card[name]).view(1, 3, 1, 1), persistent=False)

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, dim] of pictures [B, 3, H, W] in [0, 1]."""
        return F.normalize(pooled(self.trunk, self.pool, (pictures - self.mean) / self.std).float(), dim=1)
