"""Changes of a crop that the papers leave out and others use: mirror, colours, grey, blur.

Colour jitter follows torchvision's definition on floating-point images. Draws are a function of
(seed, image, visit); nothing loops over the images of a batch.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from jepa_core import rng
from jepa_vision.presets import AugmentConfig

Batch = Float32[np.ndarray, "batch h w 3"]
Factor = Float32[np.ndarray, " batch"]

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
_JITTERED, _GREY = 0.8, 0.2  # probabilities
_SIGMA = (0.1, 2.0)  # pixels
_REACH = 6  # pixels: three times the largest sigma


def augment(
    x: UInt8[np.ndarray, "batch h w channels"] | Float32[np.ndarray, "batch h w channels"],
    keys: Int[np.ndarray, " batch"],
    counters: int | Int[np.ndarray, " batch"],
    config: AugmentConfig,
    *,
    seed: int,
) -> UInt8[np.ndarray, "batch h w channels"] | Float32[np.ndarray, "batch h w channels"]:
    """Mirror, jitter, turn grey and blur, each as likely as `config` says.

    Parameters
    ----------
    x
        Crops, uint8 or 0..1.
    keys, counters
        Which image each is, and which visit of it.

    Returns
    -------
    The type of `x` where there is no jitter and no blur, else float32 in 0..1.
    """

    def chance(stream: str, probability: float) -> Bool[np.ndarray, " batch"]:
        return rng.uniform32(rng.words(seed, stream, keys, counters, 1))[:, 0] < probability

    if config.flip:
        mirrored = chance("flip", config.flip)
        x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    if not (config.jitter or config.blur):
        return x
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / np.float32(255)
    else:
        x = np.array(x)
    if config.jitter:
        words = rng.words(seed, "jitter", keys, counters, 9)
        rows = np.flatnonzero(rng.uniform32(words[:, 0]) < _JITTERED)
        order = rng.permutation(words[rows, 5:])
        x[rows] = jitter(x[rows], _factors(words[rows, 1:5], config.jitter), order)
        rows = np.flatnonzero(chance("grey", _GREY))
        x[rows] = greyscale(x[rows])
    if config.blur:
        words = rng.words(seed, "blur", keys, counters, 2)
        rows = np.flatnonzero(rng.uniform32(words[:, 0]) < config.blur)
        low, high = _SIGMA
        x[rows] = blur(x[rows], low + rng.uniform32(words[rows, 1]) * (high - low))
    return x


def _factors(words: np.ndarray, strength: float) -> Float32[np.ndarray, "batch 4"]:
    """Brightness, contrast and saturation around 1, and a shift of the hue around 0."""
    reach = np.array([0.8, 0.8, 0.8, 0.2], np.float32) * np.float32(strength)
    around = np.array([1, 1, 1, 0], np.float32)
    low = np.where(around > 0, np.maximum(around - reach, 0), -reach)
    return low + rng.uniform32(words) * (around + reach - low)


def jitter(
    x: Batch, factors: Float32[np.ndarray, "batch 4"], order: Int64[np.ndarray, "batch 4"]
) -> Batch:
    """Brightness (0), contrast (1), saturation (2) and hue (3), in an order for each image."""
    operations = (brightness, contrast, saturation, hue)
    x = np.array(x)
    for turn in range(4):
        for which, operation in enumerate(operations):
            rows = np.flatnonzero(order[:, turn] == which)
            if len(rows):
                x[rows] = operation(x[rows], factors[rows, which])
    return x


def brightness(x: Batch, factor: Factor) -> Batch:
    """Towards black (0), as it is (1), or beyond."""
    return _blend(x, np.zeros((1, 1, 1, 1), np.float32), factor)


def contrast(x: Batch, factor: Factor) -> Batch:
    """Towards the mean of its grey form (0), as it is (1), or beyond."""
    return _blend(x, _grey(x).mean((1, 2), keepdims=True), factor)


def saturation(x: Batch, factor: Factor) -> Batch:
    """Towards its grey form (0), as it is (1), or beyond."""
    return _blend(x, _grey(x), factor)


def _blend(x: Batch, other: Batch, factor: Factor) -> Batch:
    share = factor[:, None, None, None]
    return np.clip(share * x + (1 - share) * other, 0, 1).astype(np.float32)


def hue(x: Batch, shift: Factor) -> Batch:
    """Turn the hue by a share of the whole circle."""
    high, low = x.max(-1), x.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = ((high - x[..., c]) / safe for c in range(3))
    angle = np.where(
        x[..., 0] == high,
        blue - green,
        np.where(x[..., 1] == high, 2 + red - blue, 4 + green - red),
    )
    angle = (angle / 6 + shift[:, None, None]) % 1 * 6
    # Each channel is the top value less a share of the spread that depends on the angle alone.
    out = np.empty_like(x)
    for c, offset in enumerate((5, 3, 1)):
        k = (offset + angle) % 6
        out[..., c] = high - spread * np.clip(np.minimum(k, 4 - k), 0, 1)
    return out


def greyscale(x: Batch) -> Batch:
    """Luma in all three channels."""
    return np.repeat(_grey(x), 3, -1)


def _grey(x: Batch) -> Float32[np.ndarray, "batch h w 1"]:
    return (x @ _LUMA)[..., None]


def blur(x: Batch, sigma: Factor) -> Batch:
    """Gaussian blur, with a sigma (pixels) for each image; edges are mirrored."""
    if not len(x):
        return x
    taps = np.arange(-_REACH, _REACH + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)[:, :, None, None, None]
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (_REACH, _REACH)
        wide, n = np.pad(x, pad, mode="reflect"), x.shape[axis]
        x = np.zeros_like(x)
        for k in range(2 * _REACH + 1):
            x += kernel[:, k] * wide[(slice(None),) * axis + (slice(k, k + n),)]
    return x
