"""Losses compute in fp32 with autocast off, whatever reaches them."""

import pytest
import torch

import rdcd.losses
from rdcd.losses.precision import in_fp32

HALVES = [torch.bfloat16, torch.float16]


@in_fp32
def record(*args, **kwargs):
    """Return what arrived and whether autocast is on."""
    return args, kwargs, torch.is_autocast_enabled("cpu")


@in_fp32
def product(a, b):
    """Return a matrix product, which autocast would take to bf16."""
    return a @ b


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_floating_tensors_arrive_as_fp32(dtype):
    tensor = torch.tensor([1.0, -0.5], dtype=dtype)
    (positional,), keywords, _ = record(tensor, named=tensor)
    for arrived in (positional, keywords["named"]):
        assert arrived.dtype == torch.float32
        assert torch.equal(arrived, tensor.float())


def test_everything_else_arrives_as_it_is():
    flags, numbers = torch.tensor([True, False]), torch.tensor([3, 2**40])
    args, keywords, _ = record(flags, None, 0.07, "clamp", valid=flags, pictures=numbers, epsilon=1e-3)
    assert torch.equal(args[0], flags) and args[0].dtype == torch.bool
    assert args[1:] == (None, 0.07, "clamp")
    assert torch.equal(keywords["pictures"], numbers) and keywords["pictures"].dtype == torch.int64
    assert torch.equal(keywords["valid"], flags) and keywords["epsilon"] == 1e-3


def test_autocast_is_off_inside_and_on_again_after():
    tensor = torch.ones(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert record(tensor)[2] is False
        assert record(named=tensor)[2] is False
        assert torch.is_autocast_enabled("cpu")
    assert record(tensor)[2] is False
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_comes_back_after_an_error():
    @in_fp32
    def fail(tensor):
        raise ValueError("no")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="no"):
            fail(torch.ones(1))
        assert torch.is_autocast_enabled("cpu")


def test_products_stay_fp32_under_autocast():
    a, b = torch.full((2, 2), 1 + 2**-12), torch.eye(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16  # what the decorator is there for
        assert torch.equal(product(a, b), a)


@pytest.mark.parametrize("dtype", HALVES)
def test_gradient_returns_in_the_precision_of_the_input(dtype):
    a = torch.ones(2, 2, dtype=dtype, requires_grad=True)
    product(a, torch.eye(2)).sum().backward()
    assert a.grad.dtype == dtype
    assert torch.equal(a.grad, torch.ones(2, 2, dtype=dtype))


def test_name_and_docstring_survive():
    assert record.__name__ == "record"
    assert record.__doc__ == "Return what arrived and whether autocast is on."


VALID = torch.tensor([True, True, False, True, False, True, True, True, False])
SAME = torch.arange(6)[:, None] == torch.arange(9)[None, :]
PICTURES = torch.arange(6) // 2

# One call of every loss: (a, b: [6, 16], q: [9, 16]) → scalar.
CALLS = {
    "contrastive_loss": lambda f, a, b, q: f(a, b, q, valid=VALID),
    "hard_negative_loss": lambda f, a, b, q: f(a, q, valid=VALID),
    "koleo_loss": lambda f, a, b, q: f(a, q, same=SAME),
    "relational_loss": lambda f, a, b, q: f(a, b, q, valid=VALID),
    "sscd_loss": lambda f, a, b, q: sum(f(a, PICTURES)),
}


def value_and_gradient(name, inputs, autocast=False):
    first = inputs[0].detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = CALLS[name](getattr(rdcd.losses, name), first, *inputs[1:])
    loss.backward()  # outside, as PyTorch asks: the backward products would follow autocast too
    return loss.detach(), first.grad


@pytest.fixture
def inputs(unit_rows):
    return unit_rows(0, 6, 16), unit_rows(1, 6, 16), unit_rows(2, 9, 16)


def test_every_loss_is_called_here():
    assert set(CALLS) == set(rdcd.losses.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_no_loss(inputs, name):
    value, gradient = value_and_gradient(name, inputs)
    cast_value, cast_gradient = value_and_gradient(name, inputs, autocast=True)
    assert cast_value.dtype == torch.float32
    assert torch.equal(cast_value, value)
    assert torch.equal(cast_gradient, gradient)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_inputs_are_computed_in_fp32(inputs, name, dtype):
    halves = [tensor.to(dtype) for tensor in inputs]
    value, gradient = value_and_gradient(name, halves)
    full_value, full_gradient = value_and_gradient(name, [tensor.float() for tensor in halves])
    assert value.dtype == torch.float32
    assert torch.equal(value, full_value)
    assert gradient.dtype == dtype
    # What accumulates in one leaf is rounded each time it is used, hence not bit for bit.
    assert torch.allclose(gradient.float(), full_gradient, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_and_half_inputs_together(inputs, name):
    halves = [tensor.bfloat16() for tensor in inputs]
    plain, cast = value_and_gradient(name, halves), value_and_gradient(name, halves, autocast=True)
    assert all(map(torch.equal, plain, cast))
