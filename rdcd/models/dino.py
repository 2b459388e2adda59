"""The DINO teacher's descriptor: class token and pooled patch tokens of a ViT (docs/method.md §1, §4)."""

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from rdcd.errors import UserError
from rdcd.models.gem import GeM


class DinoDescriptor(nn.Module):
    """Last tokens of a ViT after its final norm: CLS ++ GeM of the patch tokens, L2-normalized.

    Pictures may have any size from one patch on: what is left beyond whole patches is cut off, and positions are
    interpolated as DINO's authors do it.

    Args:
        trunk: a timm ViT that has one class token, with a learned position of its own.
        gem_p: exponent of the pooling.
        mean, std: of the input, RGB in [0, 1].

    Raises:
        UserError: a trunk of another kind.
    """

    def __init__(self, *, trunk: str = "vit_base_patch16_224", gem_p: float = 4.0,
                 mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
                 std: tuple[float, float, float] = IMAGENET_DEFAULT_STD) -> None:
        super().__init__()
        self.architecture = {"trunk": trunk, "gem_p": gem_p, "mean": list(mean), "std": list(std)}
        self.trunk = timm.create_model(trunk, num_classes=0, dynamic_img_size=True)
        if self.trunk.num_prefix_tokens != 1 or self.trunk.no_embed_class or self.trunk.pos_embed is None:
            raise UserError(f"{trunk}: expected a ViT with one class token and learned positions, "
                            f"such as vit_base_patch16_224")
        self.pool = GeM(gem_p)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def dim(self) -> int:
        """Size of the descriptor."""
        return 2 * self.trunk.embed_dim

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, dim], fp32, of pictures [B, 3, H, W] in [0, 1].

        Raises:
            UserError: pictures smaller than a patch.
        """
        tokens = self._tokens((pictures - self.mean) / self.std)
        with torch.autocast(pictures.device.type, enabled=False):
            return F.normalize(torch.cat([tokens[:, 0].float(), self.pool(tokens[:, 1:])], dim=1), dim=1)

    def _tokens(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        down, across = self.trunk.patch_embed.patch_size
        rows, columns = height // down, width // across
        if not rows or not columns:
            raise UserError(f"pictures of {height} × {width} pixels are smaller than a patch of {down} × {across}: "
                            f"resize them to at least one patch")
        patches = self.trunk.patch_embed(pictures[..., :rows * down, :columns * across]).flatten(1, 2)
        tokens = torch.cat([self.trunk.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.trunk.norm(self.trunk.blocks(self.trunk.norm_pre(tokens + self._positions(rows, columns))))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return positions [1, 1 + rows·columns, C] of the class token and a grid."""
        positions, grid = self.trunk.pos_embed, self.trunk.patch_embed.grid_size
        if (rows, columns) == tuple(grid):
            return positions
        # DINO scales by 0.1 of a cell more than the grid and does not antialias, timm's interpolation is another one.
        scale = ((rows + 0.1) / grid[0], (columns + 0.1) / grid[1])
        cells = positions[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2).float()
        cells = F.interpolate(cells, scale_factor=scale, mode="bicubic")
        return torch.cat([positions[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)
