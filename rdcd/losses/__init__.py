"""The terms of the objective: tensors → scalars, in fp32, without state."""

from rdcd.losses.contrastive import contrastive_loss
from rdcd.losses.hard_negative import hard_negative_loss
from rdcd.losses.koleo import koleo_loss
from rdcd.losses.relational import relational_loss
from rdcd.losses.sscd import sscd_loss

__all__ = ["contrastive_loss", "hard_negative_loss", "koleo_loss", "relational_loss", "sscd_loss"]
