"""The baseline that sees colour and layout only: a picture's thumbnail as its descriptor."""

import torch.nn.functional as F
from torch import Tensor, nn


class Thumbnail(nn.Module):
    """Mean colours of a side × side grid, centred per picture, L2-normalized: 3·side² numbers.

    Args:
        side: cells a side; 9 gives 243 numbers.
    """

    def __init__(self, side: int = 9) -> None:
        super().__init__()
        self.side, self.dim = side, 3 * side * side

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, 3·side²] of pictures [B, 3, H, W] in [0, 1]."""
        cells = F.adaptive_avg_pool2d(pictures, self.side).flatten(1)
        return F.normalize(cells - cells.mean(dim=1, keepdim=True), dim=1)
