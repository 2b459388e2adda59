"""The SSCD objective, beside a loop in float64."""

import math

import numpy as np
import pytest
import torch

from rdcd.losses import koleo_loss, sscd_loss
from rdcd.losses.sscd import share_picture


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def shown(label):
    """The pictures of a row, from its label: one, or a list with repetitions."""
    return set(label) if isinstance(label, list) else {label}


def oracle(descriptors, pictures, temperature=0.05, entropy_weight=30.0):
    count = len(descriptors)
    info_nce, entropy = 0.0, 0.0
    for i in range(count):
        strangers, similarities = 0.0, []
        for j in range(count):
            if not shown(pictures[i]) & shown(pictures[j]):
                strangers += math.exp(dot(descriptors[i], descriptors[j]) / temperature)
                similarities.append(dot(descriptors[i], descriptors[j]))
        terms = []
        for p in range(count):
            if p != i and shown(pictures[i]) & shown(pictures[p]):
                match = math.exp(dot(descriptors[i], descriptors[p]) / temperature)
                terms.append(-math.log(match / (match + strangers)))
        info_nce += sum(terms) / len(terms) / count
        if similarities:
            u = 1 - max(similarities)
            log_u = math.log(u) if u >= 1e-3 else math.log(1e-3) - (1 - u / 1e-3)
            entropy -= 0.5 * (log_u + math.log(2)) / count
    return info_nce, entropy_weight * entropy


LAYOUTS = {
    "views side by side": [0, 0, 1, 1, 2, 2, 3, 3],
    "view after view": [0, 1, 2, 3, 0, 1, 2, 3],
    "three views": [0, 1, 2, 0, 1, 2, 0, 1, 2],
    "uneven views": [7, 7, 7, 40, 40, 7, 3, 40, 3, 3],
    "two pictures": [5, 9, 9, 5],
    "mixed views": [[0, 0], [1, 2], [2, 2], [3, 0], [0, 0], [1, 1], [2, 1], [3, 3]],
    "chain": [[0, 1], [1, 2], [2, 3], [3, 4], [4, 4]],
    "three pictures a row": [[0, 1, 2], [2, 2, 2], [3, 3, 1], [4, 5, 5], [5, 6, 7], [4, 4, 4]],
}


@pytest.mark.parametrize("pictures", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("temperature, entropy_weight", [(0.05, 30.0), (0.2, 10.0), (1.0, 0.0)])
def test_equals_loop(unit_rows, pictures, temperature, entropy_weight):
    descriptors = unit_rows(0, len(pictures), 8)
    values = sscd_loss(
        descriptors, torch.tensor(pictures), temperature=temperature, entropy_weight=entropy_weight
    )
    expected = oracle(descriptors.double().tolist(), pictures, temperature, entropy_weight)
    for value, loop in zip(values, expected, strict=True):
        assert value.shape == () and value.dtype == torch.float32
        assert value.item() == pytest.approx(loop, rel=1e-5, abs=1e-5)


def test_defaults_are_published(unit_rows):
    descriptors, pictures = unit_rows(0, 6, 8), torch.arange(6) // 2
    explicit = sscd_loss(descriptors, pictures, offset=0, temperature=0.05, entropy_weight=30.0)
    assert all(map(torch.equal, sscd_loss(descriptors, pictures), explicit))


def test_entropy_is_koleo_between_pictures(unit_rows):
    descriptors, pictures = unit_rows(0, 6, 8), torch.arange(6) // 2
    same = pictures[:, None] == pictures[None, :]
    entropy = sscd_loss(descriptors, pictures, entropy_weight=7.0)[1]
    assert torch.allclose(entropy, 7 * koleo_loss(descriptors, descriptors, same=same))


def test_two_views_a_picture_leave_one_softmax(unit_rows):
    """With one match a row, match and non-matches are all other rows."""
    descriptors, pictures = unit_rows(0, 8, 8), torch.arange(8) % 4
    logits = (descriptors @ descriptors.T / 0.05).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, (torch.arange(8) + 4) % 8)
    assert torch.allclose(sscd_loss(descriptors, pictures)[0], expected, rtol=1e-5)


def test_matches_do_not_compete(unit_rows):
    """Three equal views of one picture and two of another: each denominator is one match and the strangers."""
    near, far = unit_rows(0, 2, 8)
    info_nce = sscd_loss(torch.stack([near, near, near, far, far]), torch.tensor([0, 0, 0, 1, 1]))[0]
    gap = (float(near @ far) - 1) / 0.05
    by_hand = 3 * math.log1p(2 * math.exp(gap)) + 2 * math.log1p(3 * math.exp(gap))
    assert info_nce.item() == pytest.approx(by_hand / 5, rel=1e-4)


def test_a_row_that_shows_one_picture_may_repeat_it(unit_rows):
    descriptors, pictures = unit_rows(0, 8, 8), torch.tensor(LAYOUTS["view after view"])
    twice = torch.stack([pictures, pictures], dim=1)
    for labels, others in ((twice, twice), (twice, pictures), (pictures, twice)):
        values = sscd_loss(descriptors, labels, descriptors, others)
        assert all(map(torch.equal, values, sscd_loss(descriptors, pictures)))


def test_mixed_rows_match_either_picture():
    pictures = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 3]])
    expected = [[True, True, False, False], [True, True, True, False], [False, True, True, False],
                [False, False, False, True]]
    assert share_picture(pictures, pictures).tolist() == expected
    assert share_picture(pictures, torch.tensor([1, 3])).tolist() == [
        [False, False], [True, False], [True, False], [False, True]]


def test_one_picture_has_nobody_to_avoid(unit_rows):
    descriptors = unit_rows(0, 2, 8).requires_grad_()
    info_nce, entropy = sscd_loss(descriptors, torch.tensor([4, 4]))
    (info_nce + entropy).backward()
    assert info_nce.item() == pytest.approx(0, abs=1e-6)  # the other view is all there is
    assert entropy.item() == 0
    np.testing.assert_allclose(descriptors.grad.numpy(), np.zeros((2, 8)), atol=1e-6)


@pytest.mark.parametrize("layout", ["view after view", "uneven views", "mixed views", "chain"])
@pytest.mark.parametrize("term", [0, 1])
def test_gradient_equals_finite_differences(unit_rows, slope, layout, term):
    pictures = LAYOUTS[layout]
    descriptors = unit_rows(0, len(pictures), 4).requires_grad_()
    sscd_loss(descriptors, torch.tensor(pictures))[term].backward()
    expected = slope(lambda rows: oracle(rows, pictures)[term], descriptors.detach().double().tolist())
    np.testing.assert_allclose(descriptors.grad.numpy(), expected, rtol=2e-4, atol=5e-4)


SPLITS = {
    "views on one rank": [0, 0, 1, 1, 2, 2, 3, 3],
    "views across ranks": [0, 1, 2, 3, 0, 1, 2, 3],
    "some of both": [0, 0, 0, 1, 1, 2, 2, 0],
    "mixed views": LAYOUTS["mixed views"],
}


@pytest.mark.parametrize("pictures", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_average_to_the_single_process_value(unit_rows, pictures, ranks):
    everyone, labels = unit_rows(0, 8, 8), torch.tensor(pictures)
    share = 8 // ranks
    parts = [
        sscd_loss(
            everyone[start : start + share], labels[start : start + share], everyone, labels, offset=start
        )
        for start in range(0, 8, share)
    ]
    for term, whole in enumerate(sscd_loss(everyone, labels)):
        assert sum(part[term].item() for part in parts) / ranks == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("pictures", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("term", [0, 1])
def test_gradients_of_ranks_average_too(unit_rows, term, pictures):
    whole, labels = unit_rows(0, 8, 8).requires_grad_(), torch.tensor(pictures)
    sscd_loss(whole, labels)[term].backward()
    split = whole.detach().clone().requires_grad_()
    for start in (0, 4):
        part = slice(start, start + 4)
        (sscd_loss(split[part], labels[part], split, labels, offset=start)[term] / 2).backward()
    assert torch.allclose(split.grad, whole.grad, rtol=1e-4, atol=1e-5)


def test_whole_batch_as_others_changes_nothing(unit_rows):
    descriptors, pictures = unit_rows(0, 6, 8), torch.arange(6) // 2
    gathered = sscd_loss(descriptors, pictures, descriptors, pictures, offset=0)
    assert all(map(torch.allclose, gathered, sscd_loss(descriptors, pictures)))


def test_order_and_labels_are_free(unit_rows):
    descriptors, pictures = unit_rows(0, 8, 8), torch.tensor(LAYOUTS["view after view"])
    order, names = torch.tensor([6, 1, 7, 0, 3, 2, 5, 4]), torch.tensor([900, -2, 17, 4])
    values = sscd_loss(descriptors, pictures)
    assert all(torch.allclose(a, b) for a, b in zip(values, sscd_loss(descriptors[order], pictures[order])))
    assert all(map(torch.equal, values, sscd_loss(descriptors, names[pictures])))


@pytest.mark.parametrize("pictures", [[0, 0, 1], [0, 1, 2], [0], [[0, 1], [1, 1], [2, 3]]])
def test_a_picture_with_one_view_is_refused(unit_rows, pictures):
    with pytest.raises(ValueError):
        sscd_loss(unit_rows(0, len(pictures), 8), torch.tensor(pictures))


def test_a_view_missing_on_every_rank_is_refused(unit_rows):
    everyone, labels = unit_rows(0, 4, 8), torch.tensor([0, 1, 0, 2])
    with pytest.raises(ValueError):
        sscd_loss(everyone[:2], labels[:2], everyone, labels, offset=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("of", ["views", "pictures"])
def test_extreme_similarities(at_similarity, dtype, similarity, of):
    pictures = [0, 0, 1, 1] if of == "views" else [0, 1, 0, 1]
    rows = [at_similarity(1.0, dtype), at_similarity(similarity, dtype, axis=1)]
    rows += [at_similarity(0.3, dtype, axis=2), at_similarity(-0.2, dtype, axis=3)]
    descriptors = torch.cat(rows).requires_grad_()
    values = sscd_loss(descriptors, torch.tensor(pictures))
    sum(values).backward()
    expected = oracle(descriptors.detach().double().tolist(), pictures)
    for value, loop in zip(values, expected, strict=True):
        assert value.item() == pytest.approx(loop, rel=1e-5, abs=1e-5)
    assert descriptors.grad.dtype == dtype
    assert descriptors.grad.isfinite().all()
    assert (descriptors.grad.abs().amax(1) > 0).all()
