"""Mixed views against what can be read from their pixels."""

import numpy as np
import pytest
import torch

from rdcd.errors import UserError
from rdcd.training.mixing import mix_views


def flat(count, height=16, width=12):
    """Pictures of one value each, element i all 2^-i: a pixel tells which elements it shows."""
    return torch.tensor([2.0**-i for i in range(count)]).view(-1, 1, 1, 1).expand(count, 3, height, width).clone()


def mix(pictures, labels=None, seed=0, **options):
    labels = torch.arange(len(pictures)) if labels is None else labels
    return mix_views(pictures, labels, generator=np.random.default_rng(seed), **options)


def partner_of(i, count):
    """The neighbour in pairs of the same half, the last of an odd half being its own partner."""
    half = range(count // 2) if i < count // 2 else range(count // 2, count)
    for first in half[::2]:
        pair = [first, first + 1] if first + 1 in half else [first, first]
        if i in pair:
            return pair[1] if i == pair[0] else pair[0]


def test_partners_are_neighbours_of_the_same_half():
    assert [partner_of(i, 6) for i in range(6)] == [1, 0, 2, 4, 3, 5]
    assert [partner_of(i, 8) for i in range(8)] == [1, 0, 3, 2, 5, 4, 7, 6]


@pytest.mark.parametrize("count", [2, 4, 6, 14])
@pytest.mark.parametrize("probability, switch", [(1.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.0, 0.5)])
def test_pixels_and_labels_tell_the_same(count, probability, switch):
    """A sum of the two at every pixel alike, or a box of the partner's; labels are of what is seen."""
    pictures, labels = flat(count), torch.arange(count) * 10 + 3
    kept = pictures.clone()
    kinds = set()
    for seed in range(20):
        mixed, shown = mix(pictures, labels, seed, probability=probability, switch_probability=switch)
        assert torch.equal(pictures, kept)
        assert mixed.shape == pictures.shape and shown.shape == (count, 2) and shown.dtype == labels.dtype
        for i in range(count):
            own, partner = 2.0**-i, 2.0 ** -partner_of(i, count)  # read from the batch as it came
            assert shown[i, 0] == labels[i]
            assert torch.equal(mixed[i, 0], mixed[i, 1]) and torch.equal(mixed[i, 0], mixed[i, 2])
            values = sorted(set(mixed[i].flatten().tolist()))
            if values == [own]:
                kinds.add("own")
                assert shown[i, 1] == labels[i]
                continue
            assert shown[i, 1] == labels[partner_of(i, count)]
            if len(values) == 1:
                kinds.add("sum")
                assert min(own, partner) < values[0] < max(own, partner)
            else:
                kinds.add("box")
                assert values == sorted([own, partner])
                rows, columns = np.nonzero((mixed[i, 0] == partner).numpy())
                assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    expected = {0.0: {"sum"}, 0.5: {"sum", "box"}, 1.0: {"box"}}[switch] if probability and count > 2 else set()
    assert kinds - {"own"} == expected  # a box may have no pixels
    if expected == {"sum"}:
        assert ("own" in kinds) == (count // 2 % 2 == 1)


def test_shares_follow_their_distributions():
    """How many, of which kind, and how much: Beta(a, a) has mean 1/2 and variance 1 / (8a + 4)."""
    pictures = torch.tensor([0.0, 1.0]).repeat(2000).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    mixed, shown = mix(pictures, probability=0.3, mixup_alpha=3.0, switch_probability=0.25)
    touched = (shown[:, 0] != shown[:, 1]).numpy()
    boxes = np.array([len(picture.unique()) == 2 for picture in mixed])
    assert touched.mean() == pytest.approx(0.3, abs=0.025)  # a few boxes are empty
    assert (boxes & touched).sum() / touched.sum() == pytest.approx(0.25, abs=0.05)
    share = (mixed[:, 0, 0, 0] - pictures[:, 0, 0, 0]).abs().numpy()[touched & ~boxes]
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / 28, rel=0.15)


def test_boxes_have_the_share_they_were_drawn_with():
    """Where no border cuts them: of sides √λ, hence of mean area 1/2 before the cut; uniform centres."""
    side, count = 64, 3000
    pictures = torch.tensor([0.0, 1.0]).repeat(count // 2).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    mixed, _ = mix(pictures, probability=1.0, switch_probability=1.0)
    pasted = (mixed != pictures)[:, 0].numpy()
    generator = np.random.default_rng(1)
    areas = []
    for _ in range(20000):  # the same, drawn in the plane instead of on pixels
        half = side * generator.beta(2, 2) ** 0.5 / 2
        spans = [min(c + half, side) - max(c - half, 0) for c in generator.uniform(0, side, 2)]
        areas.append(spans[0] * spans[1] / side**2)
    assert pasted.mean() == pytest.approx(np.mean(areas), abs=0.02)
    assert pasted.reshape(count, -1).mean(axis=1).std() == pytest.approx(np.std(areas), rel=0.1)
    assert np.abs(pasted.mean(axis=0) - pasted.mean(axis=0)[::-1, ::-1]).max() < 0.08  # no side is preferred


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 3)])
def test_a_box_without_pixels_mixes_nothing(shape):
    pictures = flat(8, *shape)
    for seed in range(10):
        mixed, shown = mix(pictures, seed=seed, probability=1.0, switch_probability=1.0)
        for i in range(8):
            assert (shown[i, 1] != i) == bool((mixed[i] != pictures[i]).any())
            assert (mixed[i] == pictures[i]).any()  # nor does a box replace everything


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_shares_that_round_to_nothing_or_everything_mix_nothing(switch):
    """Beta(0.001, 0.001) is nearly a coin: a picture that a view no longer shows would be left with one view."""
    pictures = flat(200)
    mixed, shown = mix(pictures, probability=1.0, mixup_alpha=1e-3, cutmix_alpha=1e-3, switch_probability=switch)
    for i in range(200):
        if shown[i, 1] == i:
            assert torch.equal(mixed[i], pictures[i])
    assert (shown[:, 1] == torch.arange(200)).float().mean() > (0.2 if switch else 0.9)


def test_draws_are_the_generators_alone():
    pictures = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (mix(pictures, seed=(4, 0, 1), probability=0.5) for _ in range(2))
    assert all(map(torch.equal, first, second))
    for other in ((5, 0, 1), (4, 1, 1), (4, 0, 2)):
        assert not torch.equal(first[0], mix(pictures, seed=other, probability=0.5)[0])


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_mix_their_rows_as_one_does(ranks):
    """Rank r has rows [r·B, (r+1)·B) of the queries and of the keys."""
    count = 12
    pictures, labels = torch.rand(2 * count, 3, 8, 8), torch.arange(2 * count)
    mixed, shown = mix(pictures, labels, probability=0.5)
    assert (shown[:, 0] != shown[:, 1]).sum() > 4
    for rank, own in enumerate(torch.arange(count).chunk(ranks)):
        places = torch.cat([own, count + own])
        part, part_shown = mix(pictures[places], labels[places], probability=0.5, rank=rank, ranks=ranks)
        assert torch.equal(part, mixed[places]) and torch.equal(part_shown, shown[places])


def test_pairs_that_would_lie_on_two_processes_are_refused():
    with pytest.raises(UserError, match="data.batch_size=6 gives 3 pictures to each of 2 processes.*an even multiple "
                                        "of the processes, such as 8, or loss.mixup=0"):
        mix(flat(6), rank=0, ranks=2)


def test_memory_format_and_type_stay():
    pictures = torch.rand(8, 3, 8, 8).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    mixed, _ = mix(pictures, probability=1.0)
    assert mixed.dtype == torch.bfloat16 and mixed.is_contiguous(memory_format=torch.channels_last)
