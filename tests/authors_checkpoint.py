"""Checkpoints in the layout that RDCD's authors released theirs in, with random weights."""

import argparse
import copy
from collections import OrderedDict
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large

NETWORKS = {"efficientnet_b0": efficientnet_b0, "mobilenet_v3_large": mobilenet_v3_large,
            "fastvit_t12": lambda num_classes: timm.create_model("fastvit_t12", num_classes=num_classes)}


def settle(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network BN statistics of pictures it has seen, random affine parameters and layer scales; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics are plain means
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.data.uniform_(0.2, 1, generator=generator)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 64, 64, generator=generator) * 4 - 2)
    return network.eval()


def authors_state(*, network: str = "efficientnet_b0", kd_dim: int = 512, dim: int = 64,
                  seed: int = 0) -> dict[str, Tensor]:
    """The state of the authors' training module: two encoders, a queue, a teacher's beginning."""
    torch.manual_seed(seed)
    backbone = settle(NETWORKS[network](num_classes=kd_dim), seed)
    projector = nn.Linear(kd_dim, dim)
    encoder = nn.ModuleDict({"backbone": backbone, "projector": projector if network != "fastvit_t12"
                             else nn.Sequential(projector)})
    keys = copy.deepcopy(encoder)
    for parameter in keys.parameters():
        parameter.data += 0.1
    return OrderedDict(
        [(f"model.encoder_q.{k}", v) for k, v in encoder.state_dict().items()]
        + [(f"model.encoder_k.{k}", v) for k, v in keys.state_dict().items()]
        + [("model.queue", torch.randn(dim, 128)), ("model.queue_ptr", torch.zeros(1, dtype=torch.long)),
           ("teacher.backbone.conv1.weight", torch.randn(64, 3, 7, 7)), ("teacher.backbone.bn1.weight", torch.ones(64)),
           ("kld.queue", torch.randn(kd_dim, 128))])


def write_authors_checkpoint(path: str | Path, *, network: str = "efficientnet_b0", kd_dim: int = 512, dim: int = 64,
                             seed: int = 0, state: dict | None = None, args: dict | None = None,
                             **changes: object) -> Path:
    """Write a Lightning 1.5 checkpoint as the authors' training script leaves it; return its path.

    Args:
        state: from `authors_state`; None: made here, of `network`, `kd_dim`, `dim` and `seed`.
        args: the training script's options, beside those that are always there.
        changes: further entries of the checkpoint; None leaves one out.
    """
    options = {"backbone": "TV_EFFICIENTNET_B0", "kd_dim": kd_dim, "dim": dim, "pool_param": 3.0, "epochs": 100,
               "val_image_size": 288, "absolute_learning_rate": None, "sync_bn": True} | (args or {})
    checkpoint = {
        "epoch": 99, "global_step": 390600, "pytorch-lightning_version": "1.5.10",
        "state_dict": state or authors_state(network=network, kd_dim=kd_dim, dim=dim, seed=seed),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.6), "dirpath": "runs"}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]}],
        "lr_schedulers": [{"base_lrs": [1.0], "last_epoch": 390600}], "loops": {"fit_loop": {"state_dict": {}}},
        "hparams_name": "kwargs",
        "hyper_parameters": {"args": argparse.Namespace(**options), "train_steps": 3906}} | changes
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, path)
    return Path(path)
