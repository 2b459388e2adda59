"""Every loss at the ends of the cosine, in every input type: values and gradients beside plain ones in float64.

A case is a batch of pairs (a, b), each in a plane of its own, with cosine s between what the loss is about.
"""

import math

import pytest
import torch
from torch import Tensor

import rdcd.losses
from rdcd.losses import contrastive_loss, hard_negative_loss, koleo_loss, relational_loss, sscd_loss

SIMILARITIES = (-1.0, 0.0, 1 - 1e-7, 1.0)
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the last two, 1 − 1e-7 is 1, and b is (1, 4.5e-4)

# What theory says of the gradient of a, at each of SIMILARITIES:
#   turns   it has a part along the sphere, so descriptors turn
#   radial  it is not zero, but along a itself, which normalization takes away: a lies on b or opposite to it
#   zero
THEORY = {
    # InfoNCE at s = 1 is as small as the weight of the negatives, yet pushes from them.
    "contrastive, positive": ("turns", "turns", "turns", "turns"),
    "contrastive, negative": ("turns", "turns", "turns", "turns"),  # towards the key at a right angle, at the least
    "hard negative, tangent": ("radial", "turns", "turns", "radial"),
    "hard negative, clamp": ("radial", "turns", "zero", "zero"),  # by design: beyond ε the logarithm is cut
    "koleo, others": ("radial", "turns", "turns", "radial"),
    "koleo, itself": ("radial", "turns", "turns", "radial"),
    # Where student and teacher agree there is nothing to learn.
    "relational": ("turns", "turns", "turns", "zero"),
    "relational, append_batch": ("turns", "turns", "turns", "zero"),
    "relational, append_own": ("turns", "turns", "turns", "zero"),
    # A third picture at a right angle is there in every batch, and turns where the pair alone would not.
    "sscd, views": ("turns", "turns", "turns", "turns"),
    "sscd, pictures": ("turns", "turns", "turns", "turns"),
}


def pairs(similarity: float, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return a and b [count, 2·count + 1] at a cosine, a row at right angles to all, and anchors: two in the plane of
    each pair, at 45° to both sides of a, and that row."""
    a, b, aside = torch.zeros(3, count, 2 * count + 1, dtype=torch.float64)
    i = torch.arange(count)
    a[i, 2 * i], aside[i, 2 * i + 1] = 1, 1
    b[i, 2 * i], b[i, 2 * i + 1] = similarity, math.sqrt(1 - similarity**2)
    apart = torch.zeros(1, 2 * count + 1, dtype=torch.float64)
    apart[0, -1] = 1
    anchors = torch.cat([(a + aside) * 0.5**0.5, (a - aside) * 0.5**0.5, apart])
    return a.to(dtype), b.to(dtype), apart.to(dtype), anchors.to(dtype)


def labels(case: str, count: int) -> Tensor:
    """Pictures of the rows (a, b, apart twice), or (a, b, a, b, apart twice)."""
    i = torch.arange(count)
    rows = [i, i] if case == "sscd, views" else [i, i + count, i, i + count]
    return torch.cat([*rows, torch.tensor([-1, -1])])


def loss_of(case: str, a: Tensor, b: Tensor, apart: Tensor, anchors: Tensor) -> Tensor:
    """The project's value."""
    own, count = torch.eye(len(a), dtype=torch.bool, device=a.device), len(a)
    match case.split(", "):
        case "contrastive", "positive":
            return contrastive_loss(a, b, apart.expand(64, -1))
        case "contrastive", "negative":
            return contrastive_loss(a, apart.expand(count, -1), b)
        case "hard negative", form:
            return hard_negative_loss(a, b, valid=own, form=form)
        case "koleo", "others":
            return koleo_loss(a, b, same=~own)
        case "koleo", "itself":
            return koleo_loss(torch.cat([a, b]), same=~torch.cat([torch.cat([~own & own, own], 1),
                                                                  torch.cat([own, ~own & own], 1)]))
        case "relational", *append:
            return relational_loss(a, b, anchors, **dict.fromkeys(append, True))
        case "sscd", what:
            rows = torch.cat([a, b] if what == "views" else [a, b, a, b])
            return sum(sscd_loss(torch.cat([rows, apart, apart]), labels(case, count).to(a.device)))


def tangent_log(u: Tensor, epsilon: float = 1e-3) -> Tensor:
    return torch.where(u < epsilon, math.log(epsilon) - 1 + u / epsilon, u.clamp(min=epsilon).log())


def plain(case: str, a: Tensor, b: Tensor, apart: Tensor, anchors: Tensor) -> Tensor:
    """The same by the formulas, pair by pair where the loss is of pairs."""
    s, count = (a * b).sum(1), len(a)
    right_angle = (a * apart).sum(1)
    match case.split(", "):
        case "contrastive", "positive":
            return (torch.logaddexp(s / 0.07, right_angle / 0.07 + math.log(64)) - s / 0.07).mean()
        case "contrastive", "negative":
            logits = torch.cat([right_angle[:, None], a @ b.T], 1) / 0.07
            return (logits.logsumexp(1) - logits[:, 0]).mean()
        case "hard negative", "clamp":
            return -torch.where(1 - s < 1e-3, math.log(1e-3), (1 - s).clamp(min=1e-3).log()).mean()
        case "hard negative", "tangent":
            return -tangent_log(1 - s).mean()
        case "koleo", _:
            return -0.5 * (tangent_log(1 - s) + math.log(2)).mean()
        case "relational", *append:
            anchors = torch.cat([anchors, *([b] if "append_batch" in append else [])])
            mine, theirs = a @ anchors.T, b @ anchors.T
            if "append_own" in append:
                mine, theirs = torch.cat([mine, s[:, None]], 1), torch.cat([theirs, (b * b).sum(1, keepdim=True)], 1)
            p, q = (theirs / 0.04).softmax(1), (mine / 0.04).softmax(1)
            return (p * (p / q).log()).sum(1).mean()
        case "sscd", what:
            rows = torch.cat([*([a, b] if what == "views" else [a, b, a, b]), apart, apart])
            cosine, pictures = rows @ rows.T, labels(case, count)
            same = pictures[:, None] == pictures  # each row itself and one other
            positive, strangers = cosine[same & ~torch.eye(len(rows)).bool()], cosine[~same].view(len(rows), -1)
            info_nce = torch.logaddexp(positive / 0.05, (strangers / 0.05).logsumexp(1)) - positive / 0.05
            return (info_nce - 30 * 0.5 * (tangent_log(1 - strangers.amax(1)) + math.log(2))).mean()


def value_and_gradient(function, case: str, rows: tuple[Tensor, ...]) -> tuple[float, Tensor]:
    a = rows[0].clone().requires_grad_()
    value = function(case, a, *rows[1:])
    value.backward()
    return value.item(), a.grad


def test_every_loss_is_here():
    named = {case.split(", ")[0].replace(" ", "_") + "_loss" for case in THEORY}
    assert named == set(rdcd.losses.__all__)


@pytest.mark.parametrize("count", [1, 256])
@pytest.mark.parametrize("at", range(4), ids=["-1", "0", "1 - 1e-7", "1"])
@pytest.mark.parametrize("case", THEORY)
def test_values_and_gradients_are_finite_and_as_theory_says(case, at, count):
    for dtype in TYPES:
        rows = pairs(SIMILARITIES[at], count, dtype)
        expected_value, expected = value_and_gradient(plain, case, tuple(row.double() for row in rows))
        along = expected - (expected * rows[0]).sum(1, keepdim=True) * rows[0].double()
        size, turning = expected.norm(dim=1).min(), along.norm(dim=1).min()
        found = "zero" if size < 1e-12 else "radial" if turning < 1e-12 else "turns"
        assert found == THEORY[case][at], "the table is wrong"

        value, gradient = value_and_gradient(loss_of, case, rows)
        assert value == pytest.approx(expected_value, rel=1e-5, abs=1e-5)
        assert gradient.dtype == dtype and gradient.isfinite().all()
        if found == "zero":
            assert gradient.abs().max() < 1e-5
        else:
            assert (gradient.abs().amax(1) > 0).all()
        precision = {torch.float32: 1e-3, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}[dtype]
        rounding = 2e-5 / count + (2.0**-24 if dtype == torch.float16 else 0)  # of a probability over τ; of the type
        assert torch.allclose(gradient.double(), expected, rtol=precision, atol=rounding)
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype=dtype):
                cast = loss_of(case, *rows)
            assert cast.item() == value


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", THEORY)
def test_on_a_gpu_as_on_a_cpu(case: str, dtype: torch.dtype) -> None:
    for similarity in SIMILARITIES:
        answers = []
        for device in ("cpu", "cuda"):
            a, *others = (rows.to(device) for rows in pairs(similarity, 4, dtype))
            a.requires_grad_()
            low = torch.float16 if dtype is torch.float16 else torch.bfloat16
            with torch.autocast(device, dtype=low):  # which the losses switch off
                loss = loss_of(case, a, *others)
            loss.backward()
            answers.append((loss.detach().cpu(), a.grad.cpu()))
        for there, here in zip(*answers[::-1], strict=True):
            torch.testing.assert_close(there, here, rtol=1e-4 if dtype is torch.float32 else 2e-2, atol=1e-4)
