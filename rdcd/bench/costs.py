"""What a training step needs, counted and not timed: operations, and the memory that pictures keep."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from rdcd.bench.bare import Bare
from rdcd.models.student import parameter_count

Size = tuple[int, ...]
STATES = {"sgd": 1, "lars": 1, "adamw": 2, "muon": 1}  # numbers that an optimizer keeps beside each weight


def step_costs(bare: Bare, *, size: int, algorithm: str) -> dict[str, int | float]:
    """Count what a step costs, the same on every machine but for the types that autocast chooses.

    Memory ≈ `network_bytes` + `queue_bytes` + pictures a step · (`student_bytes` + `loss_bytes`), and on top the
    buffers of a moment, such as a layer's gradient. Operations are those of matrix products and convolutions, a
    multiplication and an addition being two.

    Args:
        bare: networks and losses, not compiled, whose student takes the batch whole; statistics of BatchNorm move.
        size: side of the views, pixels.
        algorithm: the optimizer's, see `optimizer_and_schedule`.

    Returns:
        Of the run: `student_parameters`, `teacher_parameters`, `network_bytes` (weights, gradients and optimizer state
        of the student, weights of key encoder and teacher), `queue_bytes`. Of a picture: `student_bytes` and
        `loss_bytes`, what the forward pass keeps for the backward pass; `student_operations`, forward and backward,
        `key_operations`, `teacher_operations`, `loss_operations`, forward and backward, and their sum `operations`.
    """
    student, teacher = parameter_count(bare.student), parameter_count(bare.teacher) if bare.teacher else 0
    loss = bare.rdcd if bare.relations else bare.sscd

    def views(count: int) -> list[Tensor]:
        shape = (count, 3, size, size)
        return bare.views({name: torch.randint(0, 256, shape, dtype=torch.uint8) for name in ("query", "key")})

    def embed(count: int) -> Tensor:
        query, key = views(count)
        with bare.low():
            found = bare.student(query if bare.relations else torch.cat([query, key]))
        return found.features.sum() + found.descriptors.sum()

    def lose(count: int) -> Tensor:
        with bare.low():
            return loss(*views(count), torch.arange(count, device=bare.device))[0]

    def look(network: nn.Module | None, count: int) -> None:
        if network is not None:
            with torch.no_grad(), bare.low():
                network.embed(views(count)[0])

    student_bytes, all_bytes = kept_bytes(embed), kept_bytes(lose)
    operations = {"student": operations_of(lambda n: embed(n).backward()),
                  "key": operations_of(lambda n: look(bare.keys, n)),
                  "teacher": operations_of(lambda n: look(bare.teacher, n))}
    total = operations_of(lambda n: lose(n).backward())
    bare.optimizer.zero_grad()
    return {"student_parameters": student, "teacher_parameters": teacher,
            "network_bytes": 4 * (student * (2 + STATES[algorithm] + (bare.keys is not None)) + teacher),
            "queue_bytes": sum(b.nbytes for b in bare.objective.buffers() if b.ndim == 2),
            "student_bytes": student_bytes, "loss_bytes": all_bytes - student_bytes,
            **{f"{name}_operations": value for name, value in operations.items()},
            "loss_operations": total - sum(operations.values()), "operations": total}


def kept_bytes(forward: Callable[[int], Tensor]) -> float:
    """Return the bytes that `forward`, called with a number of pictures, keeps of each for its backward pass.

    What does not depend on their number, such as weights, is not counted.
    """
    def kept(count: int) -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = forward(count)  # holds what is kept, so that no address comes twice
        del result
        return sum(storages.values())

    return (kept(6) - kept(2)) / 4


def operations_of(work: Callable[[int], None]) -> float:
    """Return the floating-point operations, for each picture, of `work` called with a number of them."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        work(2)
    return counter.get_total_flops() / 2


def _backward(output: Size, inputs: Size, weights: Size, bias: object, stride: object, padding: object,
              dilation: object, transposed: bool, *rest: object, out_shape: object = None, **_: object) -> int:
    """Count a convolution's backward pass: for the input's gradient and for the weights', each as its forward pass.

    torch's own count takes the weights' gradient of grouped convolutions for one of dense ones.
    """
    *_, wanted = rest
    places = inputs if transposed else output
    return sum(wanted[:2]) * 2 * places[0] * math.prod(places[2:]) * math.prod(weights)


def passing_bytes(network: nn.Module, *, size: int) -> int:
    """Return the bytes, for each picture, that go into and come out of the largest layer of a network without gradient.

    Args:
        network: has `embed`.
        size: side of the pictures, pixels.
    """
    largest = 0

    def measure(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(t.nbytes for t in (*inputs, output) if isinstance(t, Tensor)))

    hooks = [layer.register_forward_hook(measure) for layer in network.modules() if not any(layer.children())]
    with torch.no_grad():
        network.embed(torch.rand(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return largest
