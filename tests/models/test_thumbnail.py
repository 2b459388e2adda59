import numpy as np
import torch

from rdcd.models.thumbnail import Thumbnail


def loops(picture: np.ndarray, side: int) -> np.ndarray:
    """Mean colour of every cell, one at a time; picture [3, H, W] with H and W multiples of side."""
    height, width = picture.shape[1] // side, picture.shape[2] // side
    cells = [picture[c, y * height:(y + 1) * height, x * width:(x + 1) * width].mean()
             for c in range(3) for y in range(side) for x in range(side)]
    centred = np.array(cells) - np.mean(cells)
    return centred / np.linalg.norm(centred)


def test_equals_the_loops() -> None:
    pictures = torch.rand(3, 3, 18, 27)
    network = Thumbnail(side=9)
    assert network.dim == 243
    expected = np.stack([loops(picture.double().numpy(), 9) for picture in pictures])
    np.testing.assert_allclose(network.embed(pictures).numpy(), expected, atol=1e-6)


def test_a_plain_picture_has_a_zero_descriptor_and_small_ones_work() -> None:
    assert torch.equal(Thumbnail(2).embed(torch.full((1, 3, 8, 8), 0.5)), torch.zeros(1, 12))
    assert torch.isfinite(Thumbnail(9).embed(torch.rand(1, 3, 1, 1))).all()


def test_brightness_does_not_matter() -> None:
    pictures = torch.rand(2, 3, 18, 18) / 2
    network = Thumbnail()
    torch.testing.assert_close(network.embed(pictures + 0.3), network.embed(pictures), atol=1e-5, rtol=0)
