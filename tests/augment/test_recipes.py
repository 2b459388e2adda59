import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from rdcd.augment import ops, recipes
from rdcd.errors import UserError

ROOT = Path(__file__).parents[2]
BUILDERS = (recipes.advanced, recipes.strong_blur, recipes.simclr, recipes.plain)

# docs/method.md §3, written out once more by hand.
JITTER = (0.8, ops.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2))
CROP = (1.0, ops.RandomResizedCrop(size=224, scale=(0.08, 1), ratio=(3 / 4, 4 / 3)))
ADVANCED = (
    (0.5, ops.HorizontalFlip()),
    (0.05, ops.QuarterTurn()),
    (0.1, ops.OverlayText(size=(0.1, 0.3), opacity=(0.1, 1))),
    (0.2, ops.OverlayEmoji(size=(0.1, 0.5), opacity=(0.7, 1))),
    (0.05, ops.Rotate()),
    CROP,
    JITTER,
    (0.2, ops.Grayscale()),
    (0.5, ops.GaussianBlur(radius=(1, 5))),
    (0.2, ops.JpegReencode(quality=(0, 100))),
)
STRONG_BLUR = (CROP, (0.5, ops.HorizontalFlip()), JITTER, (0.2, ops.Grayscale()),
               (0.5, ops.GaussianBlur(radius=(1, 5))))
SIMCLR = (*STRONG_BLUR[:-1], (0.5, ops.GaussianBlur(radius=(0.1, 2))))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("builder", "steps"), [(recipes.advanced, ADVANCED), (recipes.simclr, SIMCLR),
                                                (recipes.strong_blur, STRONG_BLUR),
                                                (recipes.plain, ((1.0, ops.SquareResize(size=224)),))])
def test_recipe_is_methods_list(builder, steps):
    assert builder() == recipes.Recipe(size=224, steps=steps)


@dataclass
class Counted:
    log: list

    def __call__(self, picture, rng):
        self.log.append(self)
        return picture


@pytest.mark.parametrize("builder", [recipes.advanced, recipes.strong_blur, recipes.simclr])
def test_steps_are_taken_in_order_as_often_as_stated(builder):
    recipe, log = builder(), []
    counters = [Counted(log) for _ in recipe.steps]
    counted = replace(recipe, steps=tuple((p, c) for (p, _), c in zip(recipe.steps, counters)))
    rng, picture, tries = np.random.default_rng(1), noise(1, 1), 10_000
    position, taken = {id(counter): i for i, counter in enumerate(counters)}, np.zeros(len(counters))
    together = np.zeros((len(counters), len(counters)))
    for _ in range(tries):
        log.clear()
        counted(picture, rng)
        order = [position[id(counter)] for counter in log]
        assert order == sorted(order)
        taken[order] += 1
        together[np.ix_(order, order)] += 1
    p = np.array([probability for probability, _ in recipe.steps])
    assert (np.abs(taken - tries * p) <= 4.5 * np.sqrt(tries * p * (1 - p))).all()
    both = np.outer(p, p)  # independent of one another
    off = ~np.eye(len(p), dtype=bool)
    assert (np.abs(together - tries * both) <= 4.5 * np.sqrt(tries * both * (1 - both)))[off].all()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 400), (60, 47), (64, 64)])
@pytest.mark.parametrize("size", [1, 24])
def test_view_is_size_by_size_rgb(builder, shape, size):
    recipe, picture, rng = builder(size), noise(*shape), np.random.default_rng(2)
    for _ in range(15):
        view = recipe(picture, rng)
        assert view.size == (size, size) and view.mode == "RGB"


@pytest.mark.parametrize("builder", BUILDERS)
def test_same_generator_state_same_view_also_after_pickling(builder):
    recipe, picture = builder(32), noise(50, 40)
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe
    views = [recipe(picture, np.random.default_rng(seed)).tobytes() for seed in range(20)]
    assert views == [again(picture, np.random.default_rng(seed)).tobytes() for seed in range(20)]
    assert len(set(views)) == (1 if builder is recipes.plain else 20)


def test_a_view_takes_one_draw_whatever_its_steps_take():
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    recipe = recipes.advanced(16)
    for shape in ((50, 40), (1, 300), (20, 20)):
        recipe(noise(*shape), rng)
        other.integers(2**63)
    assert rng.integers(2**63) == other.integers(2**63)


def test_blur_keeps_its_strength_relative_to_the_view():
    small, large = recipes.advanced(56).steps[8][1], recipes.advanced(448).steps[8][1]
    assert small == ops.GaussianBlur(radius=(0.25, 1.25))
    assert large == ops.GaussianBlur(radius=(2, 10))
    assert recipes.simclr(112).steps[4][1] == ops.GaussianBlur(radius=(0.05, 1))


def test_plain_only_resizes():
    picture = noise(50, 40)
    expected = picture.resize((16, 16), Image.Resampling.BILINEAR)
    assert recipes.plain(16)(picture, np.random.default_rng(0)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("builder", BUILDERS)
def test_bad_size_is_refused(builder):
    with pytest.raises(UserError, match="size=0.*pixels"):
        builder(0)


def test_bad_probability_is_refused():
    with pytest.raises(UserError, match="probability 1.5 of Grayscale"):
        recipes.Recipe(size=8, steps=((1.5, ops.Grayscale()),))


@pytest.mark.parametrize("name", ["advanced", "strong_blur", "simclr"])
def test_config_builds_the_recipe(name):
    text = (ROOT / "configs" / "augment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    config = OmegaConf.create({"data": {"size": 48}, "augment": OmegaConf.create(text)})
    assert instantiate(config.augment) == getattr(recipes, name)(48)


def test_recipes_load_without_the_heavy_libraries():
    code = """
import sys
import numpy as np
from PIL import Image
from rdcd.augment import recipes
recipes.advanced()(Image.new("RGB", (9, 9)), np.random.default_rng(0))
print([name for name in ("torch", "torchvision", "augly") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
