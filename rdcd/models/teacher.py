"""The frozen teacher (docs/method.md §1, §10): eval mode for good, no gradient, its own normalization."""

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Wrap a trained network so that nothing in training can change it.

    It stays in eval mode through `.train()` (its BN statistics would drift otherwise) and its
    parameters take no gradient. Holders keep it out of their own state with `Unregistered`.

    Args:
        network: pictures [B, 3, H, W] in [0, 1] → descriptors [B, dim]; normalizes its own input,
            such as `Student.embed`'s owner. Its `dim` gives the descriptor size.
        train_mode: follow `.train()` after all, as the published code's teacher did unawares; for ablation. Its
            features then depend on the batch: BN normalizes by the statistics of each process's own rows, which
            SyncBN does not reach, and its running statistics drift, in memory alone. Parameters take no gradient
            all the same, and no file changes. A TorchScript network keeps the mode it was traced in.
    """

    def __init__(self, network: nn.Module, *, train_mode: bool = False) -> None:
        super().__init__()
        self.network, self.train_mode = network, train_mode
        self.dim: int = network.dim
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode whatever `mode` asks, but with `train_mode`."""
        return super().train(mode and self.train_mode)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Return h_T, fp32 and L2-normalized [B, dim]."""
        return self.network.embed(pictures).float()


class Unregistered:
    """Mix-in for modules that use another module without owning it.

    `self.use(name, module)` makes it an attribute that follows `.to()` and `.cuda()`, yet is absent
    from `parameters()`, `state_dict()` and checkpoints, hence from optimizers and DDP buckets.
    """

    def use(self, name: str, module: nn.Module) -> None:
        """Hold `module` as attribute `name`, unregistered."""
        object.__setattr__(self, name, module)
        used = self.__dict__.setdefault("_used", [])
        used.append(module)

    def _apply(self, fn, recurse=True):
        for module in self.__dict__.get("_used", ()):
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)
