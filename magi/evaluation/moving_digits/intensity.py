"""Ink: how bright a frame is and where, the quantity behind all oracles of the built-in digits.

Ink is the grey level (mean of RGB), with levels below ``FLOOR`` counted as black: over the 4,000 dark pixels of a
64 x 64 frame, an invisible haze of five grey levels from a codec or an autoencoder would weigh as much as a glyph.
Knows no glyphs, classes or models.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 16


def ink(frames_XHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ink_XHW, 0..255, of uint8 RGB frames with any leading axes."""
    # A fixed sum of the channels, not a mean over an axis, so that a pixel's ink does not depend on the batch.
    grey_XHW = (frames_XHWC[..., 0].astype(np.float32) + frames_XHWC[..., 1] + frames_XHWC[..., 2]) / 3
    return np.where(grey_XHW >= FLOOR, grey_XHW, np.float32(0))


def centroids(ink_XHW: NDArray[Any]) -> NDArray[np.float64]:
    """Centroid (x, y) of the ink in pixels, (0, 0) the centre of the top left pixel; NaN where there is no ink."""
    ink_XHW = ink_XHW.astype(np.float64)
    total_X = ink_XHW.sum((-2, -1))
    x = ink_XHW.sum(-2) @ np.arange(ink_XHW.shape[-1])
    y = ink_XHW.sum(-1) @ np.arange(ink_XHW.shape[-2])
    with np.errstate(invalid="ignore"):
        return np.stack([x / total_X, y / total_X], axis=-1)
