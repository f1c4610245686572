"""Foreground intensity: how bright a frame is and where, which all ground-truth metrics of built-in digits rest on.

It is the grey level (mean of RGB), with levels below ``THRESHOLD`` counted as black: over the 4,000 dark pixels of a
64 x 64 frame, an invisible haze of five grey levels from a codec or an autoencoder would weigh as much as a glyph.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 16


def foreground_intensity(frames_XHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Intensity_XHW, 0..255, of uint8 RGB frames with any leading axes."""
    # A fixed sum of the channels, not a mean over an axis, so that a pixel's intensity does not depend on the batch.
    grey_XHW = (frames_XHWC[..., 0].astype(np.float32) + frames_XHWC[..., 1] + frames_XHWC[..., 2]) / 3
    return np.where(grey_XHW >= THRESHOLD, grey_XHW, np.float32(0))


def centroids(intensity_XHW: NDArray[Any]) -> NDArray[np.float64]:
    """Centroid (x, y) of the intensity in pixels, (0, 0) the centre of the top left pixel; NaN where all is black."""
    intensity_XHW = intensity_XHW.astype(np.float64)
    total_X = intensity_XHW.sum((-2, -1))
    x = intensity_XHW.sum(-2) @ np.arange(intensity_XHW.shape[-1])
    y = intensity_XHW.sum(-1) @ np.arange(intensity_XHW.shape[-2])
    with np.errstate(invalid="ignore"):
        return np.stack([x / total_X, y / total_X], axis=-1)
