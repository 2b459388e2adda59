"""BatchNorm over all processes, which changes nothing else of a network."""

from pytorch_lightning.plugins import LayerSync
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdcd.errors import UserError

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class SyncNorms(LayerSync):
    """Lets the BatchNorm layers of a network take their statistics over all processes, and takes that back.

    A layer gets another class, the one that `timm.layers.convert_sync_batchnorm` chooses for it, and stays the same
    object: weights, statistics, activation, mode and hooks are what they were, wherever they have been moved meanwhile.
    Lightning's own, by torch's conversion, puts a bare SyncBatchNorm in place of timm's `BatchNormAct2d`, which holds
    an activation: an EfficientNet loses half of its activations, and no key of its weights changes.
    """

    def __init__(self) -> None:
        self.changed: list[tuple[nn.Module, type[nn.Module]]] = []  # and the class before

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the layers of `model` in place, and return it.

        Raises:
            UserError: a layer of another class, of which nobody knows what it does besides.
        """
        for name, norm in model.named_modules():
            if not isinstance(norm, _BatchNorm) or isinstance(norm, nn.SyncBatchNorm):
                continue
            if type(norm) not in KNOWN:
                raise UserError(f"trainer.sync_batchnorm=true: layer {name} is a {type(norm).__name__}, which has no "
                                f"form that spans processes: set false, or choose another trunk")
            self.changed.append((norm, type(norm)))
            norm.__class__, norm.process_group = type(convert_sync_batchnorm(norm)), None
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Give the layers of `model` their classes back, and return it."""
        for norm, before in self.changed:
            norm.__class__ = before
            del norm.process_group
        self.changed.clear()
        return model
