#!/bin/sh
# SyncBatchNorm by torch's conversion, which pytorch-lightning's Trainer(sync_batchnorm=True) uses, makes another network
# of a timm model. timm keeps the activation that follows a norm inside it (BatchNormAct2d, a BatchNorm2d);
# torch.nn.SyncBatchNorm.convert_sync_batchnorm puts a bare SyncBatchNorm in its place, with the same weights, the same
# keys and no word. timm.layers.convert_sync_batchnorm keeps the activation, but Lightning's way back
# (TorchSyncBatchNorm.revert, at the end of fit) loses it once more, in place.
#
# Seen with torch 2.14.1, torchvision 0.29.1, timm 1.0.31, pytorch-lightning 2.6.6, random weights, eval mode, one CPU:
#   model, its activations, after torch's conversion, after timm's, after timm's and Lightning's way back; cosines of logits
#   efficientnet_b0         65  32  65  32   other    equal   other
#   mobilenetv3_large_100   48  17  48  17   other    equal   other
#   resnet50                49  49  49  49   equal    equal   equal
# and equal keys everywhere. Exits with 1 if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pytorch-lightning==2.6.6
"$folder/venv/bin/python" - <<'END'
import copy
import sys

import timm
import torch
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm

LIGHTNING = TorchSyncBatchNorm()
FORMS = {"as it is": lambda network: network, "torch": LIGHTNING.apply, "timm": convert_sync_batchnorm,
         "timm, back by Lightning": lambda network: LIGHTNING.revert(convert_sync_batchnorm(network))}
SEEN = {"efficientnet_b0": ([65, 32, 65, 32], [True, False, True, False]),
        "mobilenetv3_large_100": ([48, 17, 48, 17], [True, False, True, False]),
        "resnet50": ([49, 49, 49, 49], [True, True, True, True])}


@torch.no_grad()
def look(network, images):
    """Return the logits and how many activations were computed for them."""
    count = [0]
    for layer in network.modules():
        if "activation" in type(layer).__module__:
            layer.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return network.eval()(images), count[0]


same = True
for name, seen in SEEN.items():
    torch.manual_seed(0)
    plain, images = timm.create_model(name), torch.rand(2, 3, 64, 64)
    found = {form: convert(copy.deepcopy(plain)) for form, convert in FORMS.items()}
    assert all(network.state_dict().keys() == plain.state_dict().keys() for network in found.values())
    logits, counts = zip(*(look(network, images) for network in found.values()))
    equal = [torch.equal(logits[0], others) for others in logits]
    cosines = [f"{torch.cosine_similarity(logits[0], others).min():.3f}" for others in logits]
    print(name, "activations", list(counts), "equal", equal, "cosine", " ".join(cosines))
    same &= (list(counts), equal) == seen
sys.exit(not same)
END
