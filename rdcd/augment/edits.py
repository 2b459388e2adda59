"""The edits that make benchmark queries: DISC2021's families, each with a recorded strength.

The families and how several are chained follow Douze et al., The 2021 Image Similarity Dataset and Challenge
(arXiv 2106.09672). A copy must stay a copy: nothing opaque covers it wholly and no edit cuts away most of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdcd.augment import edits_overlay as overlay
from rdcd.augment import edits_picture as alone
from rdcd.errors import UserError

MIN_SIDE = 32  # pixels; a picture that an edit makes smaller is enlarged to this

Chain = list[tuple[str, dict[str, object]]]


@dataclass(frozen=True)
class Edit:
    """One family of edits.

    Args:
        family: its name, as recorded.
        group: a chain holds at most one edit of a group.
        draw: rng → parameters, JSON values that tell the strength.
        function: (picture, **parameters) → picture; with `needs_other`, (picture, other, **parameters).
        needs_other: whether the edit shows a second picture.
    """

    family: str
    group: str
    draw: Callable[[np.random.Generator], dict[str, object]]
    function: Callable[..., Image.Image]
    needs_other: bool = False

    def apply(self, picture: Image.Image, parameters: dict[str, object],
              other: Image.Image | None = None) -> Image.Image:
        """Edit an RGB picture of at least 32 pixels a side; the result depends on the arguments only.

        Raises:
            UserError: the family needs a second picture and there is none.
        """
        if not self.needs_other:
            return self.function(picture, **parameters)
        if other is None:
            raise UserError(f"edit {self.family!r} shows a second picture: pass one as `other`, "
                            "or leave the edit out")
        return self.function(picture, other, **parameters)


EDITS: dict[str, Edit] = {edit.family: edit for edit in (
    Edit("crop", "frame", alone.draw_crop, alone.crop),
    Edit("pad", "frame", alone.draw_pad, alone.pad),
    Edit("aspect", "shape", alone.draw_aspect, alone.aspect),
    Edit("rotate", "shape", alone.draw_rotate, alone.rotate),
    Edit("flip", "shape", alone.draw_flip, alone.flip),
    Edit("skew", "shape", alone.draw_skew, alone.skew),
    Edit("perspective", "shape", alone.draw_perspective, alone.perspective),
    Edit("colour", "colour", alone.draw_colour, alone.colour),
    Edit("tone", "colour", alone.draw_tone, alone.tone),
    Edit("blur", "detail", alone.draw_blur, alone.blur),
    Edit("sharpen", "detail", alone.draw_sharpen, alone.sharpen),
    Edit("pixelate", "detail", alone.draw_pixelate, alone.pixelate),
    Edit("noise", "detail", alone.draw_noise, alone.noise),
    Edit("jpeg", "detail", alone.draw_jpeg, alone.jpeg),
    Edit("downscale", "detail", alone.draw_downscale, alone.downscale),
    Edit("text", "drawn", overlay.draw_text, overlay.text),
    Edit("emoji", "drawn", overlay.draw_emoji, overlay.emoji),
    Edit("stripes", "drawn", overlay.draw_stripes, overlay.stripes),
    Edit("screenshot", "scene", overlay.draw_screenshot, overlay.screenshot),
    Edit("overlay_onto", "scene", overlay.draw_overlay_onto, overlay.overlay_onto, needs_other=True),
    Edit("overlay_other", "scene", overlay.draw_overlay_other, overlay.overlay_other, needs_other=True),
    Edit("blend", "scene", overlay.draw_blend, overlay.blend, needs_other=True),
    Edit("collage", "scene", overlay.draw_collage, overlay.collage, needs_other=True),
)}


def check_families(families: Sequence[str] | None) -> list[str]:
    """Return the families to draw from, all of them for None.

    Raises:
        UserError: an unknown family, or none.
    """
    if families is None:
        return list(EDITS)
    families = [families] if isinstance(families, str) else families
    unknown = [family for family in families if family not in EDITS]
    if unknown or not families:
        problem = f"no family {unknown[0]!r}" if unknown else "none given"
        raise UserError(f"families={list(families)}: {problem}; expected some of {', '.join(EDITS)}")
    return list(families)


def draw_chain(rng: np.random.Generator, *, families: Sequence[str] | None = None,
               n: tuple[int, int] = (1, 4)) -> Chain:
    """Draw a chain of edits, at most one of each group, in random order.

    An edit of the group `scene` comes last: whatever cut or covered the whole scene after it could remove
    the copy and make the ground truth false.

    Args:
        families: names from `EDITS`; None for all.
        n: fewest and most edits; fewer where the families span fewer groups.

    Returns:
        (family, parameters) in the order of their use.

    Raises:
        UserError: an unknown family.
    """
    families = check_families(families)
    wanted = int(rng.integers(n[0], n[1], endpoint=True))
    chosen: dict[str, str] = {}
    for i in rng.permutation(len(families)):
        chosen.setdefault(EDITS[families[i]].group, families[i])
    names = sorted(list(chosen.values())[:wanted], key=lambda name: EDITS[name].group == "scene")
    return [(name, EDITS[name].draw(rng)) for name in names]


def apply_chain(picture: Image.Image, chain: Chain, other: Image.Image | None = None) -> Image.Image:
    """Apply the edits of `draw_chain` one after another; equal arguments give equal pixels.

    Args:
        picture: RGB, at least 32 pixels a side.
        other: the second picture for the families that show one.
    """
    for family, parameters in chain:
        picture = EDITS[family].apply(picture, parameters, other)
        if min(picture.size) < MIN_SIDE:
            scale = MIN_SIDE / min(picture.size)
            picture = picture.resize([max(MIN_SIDE, round(side * scale)) for side in picture.size],
                                     Image.Resampling.BICUBIC)
    return picture


def needs_other(chain: Chain) -> bool:
    """Tell whether any edit of the chain shows a second picture."""
    return any(EDITS[family].needs_other for family, _ in chain)
