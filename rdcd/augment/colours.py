"""The steps that change values and not places, on arrays of 8-bit RGB, by library kernels.

Each equals its step of `rdcd.augment.steps` but for rounding: hue turns in OpenCV's 8-bit HSV, and wide blurs are made
at half the resolution.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg

from rdcd.augment import steps

cv2.setNumThreads(1)  # a loader process has one core
_OWN, _LUMA = np.eye(3), np.tile([0.299, 0.587, 0.114], (3, 1))
_HALVED = 2.0  # deviation, pixels, from which a blur works on half the resolution


def edited(view: np.ndarray, step: steps.Step) -> np.ndarray:
    """Apply a step to a view, uint8 [H, W, 3]; the view itself may be used up."""
    if isinstance(step, steps.Jittered):
        return jittered(view, step.changes)
    if isinstance(step, steps.Grey):
        return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if isinstance(step, steps.Blurred):
        return blurred(view, step.radius)
    if isinstance(step, steps.Reencoded):
        return reencoded(view, step.quality)
    if isinstance(step, steps.Mirrored):
        return cv2.flip(view, 1)
    from PIL import Image

    return np.asarray(step.apply(Image.fromarray(view)))


def jittered(view: np.ndarray, changes: tuple[tuple[str, float], ...]) -> np.ndarray:
    """Change brightness, contrast, saturation and hue in the order given."""
    for name, value in changes:
        if name == "hue":
            view = hue_turned(view, value)
        elif name == "saturation":
            view = _mixed(view, value * _OWN + (1 - value) * _LUMA, 0.0)
        else:
            ground = 0 if name == "brightness" else int(cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0] + 0.5)
            view = _mixed(view, value * _OWN, (1 - value) * ground)
    return view


def _mixed(view: np.ndarray, matrix: np.ndarray, offset: float) -> np.ndarray:
    """Return matrix [3, 3] x colour + offset, cut to 0 … 255; Pillow cuts fractions off where OpenCV rounds."""
    whole = np.empty((3, 4))
    whole[:, :3], whole[:, 3] = matrix, offset - 0.5
    return cv2.transform(view, whole)


def hue_turned(view: np.ndarray, turns: float) -> np.ndarray:
    """Turn the colour circle by `turns`, 1 = once round."""
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += _row(int(turns * 255) % 256, hsv.shape[1])  # hue goes round at 256
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@lru_cache(maxsize=256)
def _row(hue: int, width: int) -> np.ndarray:
    return np.tile(np.array([hue, 0, 0], np.uint8), width)


def blurred(view: np.ndarray, deviation: float) -> np.ndarray:
    """Blur as Pillow's Gaussian; a wide one at half the resolution, whose reduction and enlargement blur a part."""
    height, width = view.shape[:2]
    if deviation < _HALVED or min(height, width) < 16:
        return _smoothed(view, deviation)
    half = cv2.resize(view, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
    half = _smoothed(half, math.sqrt(deviation**2 - 1 / 4 - 2 / 3) / 2)  # variances of a box and a triangle, in pixels
    return cv2.resize(half, (width, height), interpolation=cv2.INTER_LINEAR)


def _smoothed(view: np.ndarray, deviation: float) -> np.ndarray:
    kernel = kernel_of(deviation).astype(np.float32)  # OpenCV has a faster way for it than for float64
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def kernel_of(deviation: float) -> np.ndarray:
    """Return Pillow's Gaussian along a row, float64 [n], n odd: three boxes whose outermost pixels count in part."""
    variance = deviation**2 / 3
    reach = int((math.sqrt(12 * variance + 1) - 1) / 2)
    inner = reach * (reach + 1) * (2 * reach + 1) / 3
    outer = (variance * (2 * reach + 1) - inner) / (2 * ((reach + 1)**2 - variance))
    box = np.array([outer, *[1.0] * (2 * reach + 1), outer])
    box /= box.sum()
    return np.convolve(np.convolve(box, box), box)


def reencoded(view: np.ndarray, quality: int) -> np.ndarray:
    """Encode as JPEG, chroma halved as Pillow does, and decode; equal to Pillow's to the bit."""
    data = cv2.imencode(".jpg", cv2.cvtColor(view, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return simplejpeg.decode_jpeg(data)
