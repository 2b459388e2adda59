"""A network made ready to embed many pictures fast: batch norms folded, channels last, half precision, compiled."""

import copy
import operator
from collections import Counter
from collections.abc import Callable

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rdcd.errors import UserError
from rdcd.models.exported import OnnxDescriptor
from rdcd.models.gem import GeM

PRECISIONS = ("fp32", "bf16")
Embed = Callable[[Tensor], Tensor]


def make_embed(network: nn.Module, *, device: str, precision: str = "fp32",
               compile: tuple[int, int] | None = None) -> Embed:
    """Return a function of uint8 pictures [B, 3, H, W] that gives their fp32 descriptors [B, d] on the CPU.

    It works on a copy, so `network` is left as it is, in whatever mode and place; of the copy, batch norms are folded
    and convolutions take their channels last.

    Args:
        network: has `embed`, pictures in [0, 1] → descriptors.
        device: where to compute.
        precision: `fp32`, or `bf16` by autocast.
        compile: (B, S), compile for batches of so many pictures of that side, which takes a minute; smaller batches
            are filled up; None: as it is.

    Raises:
        UserError: another precision, or torch.compile does not work here.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: expected one of {', '.join(PRECISIONS)}")
    if isinstance(network, OnnxDescriptor) and (precision != "fp32" or compile):
        raise UserError(f"{network.path} is computed by ONNX Runtime as it was exported: leave "
                        f"precision={precision} and compile out")
    ready = copy.deepcopy(network).to(device).eval()
    layout = torch.contiguous_format
    if any(isinstance(module, nn.Conv2d) for module in ready.modules()):
        fold_batch_norms(ready)
        ready, layout = ready.to(memory_format=torch.channels_last), torch.channels_last
    inner = ready.embed
    if compile is not None:  # on a CPU, freezing lays weights out as its kernels want them
        inner = torch.compile(inner, dynamic=False, options={"freezing": True} if device == "cpu" else None)

    @torch.inference_mode()
    def embed(pictures: Tensor) -> Tensor:
        pictures, count = pictures.to(device, non_blocking=True), len(pictures)
        if compile is not None and count < compile[0]:
            pictures = torch.cat((pictures, pictures.new_zeros(compile[0] - count, *pictures.shape[1:])))
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return inner(pictures.contiguous(memory_format=layout).float() / 255)[:count].float().cpu()

    if compile is not None:
        try:
            embed(torch.zeros(compile[0], 3, compile[1], compile[1], dtype=torch.uint8))
        except Exception as error:  # whatever a compiler of this machine raises
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"compile=true: torch.compile does not work here ({reason}"
                            f"): on a CPU it needs a C++ compiler such as g++; take compile=false") from error
    return embed


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d | GeM) or super().is_leaf_module(module, name)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch norm that follows a convolution in the network's `trunk` into it, in place; return how many.

    In evaluation a batch norm is a scale and a shift of each channel, which the convolution before it can do: γ/σ·W
    and β − γ/σ·μ (Jacob et al. 2018, §3.2). Descriptors are equal but for rounding. A trunk whose way depends on its
    input cannot be traced and stays as it is.
    """
    trunk = getattr(network, "trunk", None)
    if not isinstance(trunk, nn.Module) or isinstance(trunk, torch.jit.ScriptModule):
        return 0
    try:
        nodes = list(_Tracer().trace(trunk).nodes)
    except (fx.proxy.TraceError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return 0
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    folded = 0
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = (operator.attrgetter(one.target)(trunk) for one in (before, node))
        if (type(convolution) not in (nn.Conv2d, Conv2dSame) or type(norm) not in (nn.BatchNorm2d, BatchNormAct2d)
                or norm.running_mean is None or calls[before.target] > 1 or calls[node.target] > 1):
            continue
        trunk.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        after = nn.Sequential(norm.drop, norm.act) if type(norm) is BatchNormAct2d else nn.Identity()
        trunk.set_submodule(node.target, after.eval())
        folded += 1
    return folded
