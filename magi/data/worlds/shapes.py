"""Rectangles of flat colours: how worlds draw them, each pixel by the exact share covered, and find them in pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magi.data.worlds.contract import Frame

TOUCH = 1e-6
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle; (x, y) is its top left corner in pixels."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share an area, not only an edge."""
        return (
            self.is_over(other) and self.y + TOUCH < other.y + other.height and other.y + TOUCH < self.y + self.height
        )

    def is_over(self, other: "Box") -> bool:
        """Whether some of the two is at the same x."""
        return self.x + TOUCH < other.x + other.width and other.x + TOUCH < self.x + self.width


def paint(image_HWC: NDArray[np.float64], box: Box, colour: Colour) -> None:
    """Lay a box over the image, a float one."""
    height, width, _ = image_HWC.shape
    rows, cover_H = _cover(box.y, box.height, height)
    columns, cover_W = _cover(box.x, box.width, width)
    part_HWC = image_HWC[rows, columns]
    part_HWC += np.outer(cover_H, cover_W)[..., None] * (np.array(colour) - part_HWC)


def _cover(start: float, length: float, size: int) -> tuple[slice, NDArray[np.float64]]:
    """The pixels of a line of ``size`` that [start, start + length] touches, and the share of each that it covers."""
    first, last = (min(max(end, 0), size) for end in (math.floor(start), math.ceil(start + length)))
    edges = np.arange(first, last)
    return slice(first, last), np.minimum(edges + 1, start + length) - np.maximum(edges, start)


class ColourReader:
    """Finds boxes of three colours, which span the three channels, in front of a background of one.

    The last colour is that of ``things``, boxes of whole pixels that are there or not, all of one size.
    """

    def __init__(
        self, background_HWC: NDArray[np.float64], sky: Colour, colours: Sequence[Colour], things: Sequence[Box]
    ) -> None:
        self._to_shares = np.linalg.inv(np.array(colours) - np.array(sky))
        self._of_sky = np.array(sky) @ self._to_shares
        self._is_sky_HW = (np.array(sky) == background_HWC).all(axis=-1)
        numbers_HW = np.arange(self._is_sky_HW.size).reshape(self._is_sky_HW.shape)
        self._things_XP = np.stack([
            numbers_HW[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)].ravel()
            for box in things
        ])  # fmt: skip

    def _share(self, pixels_HWC: NDArray[np.uint8], colour: int) -> NDArray[np.float64]:
        """How much of each pixel is of a colour."""
        share: NDArray[np.float64] = pixels_HWC.astype(np.float64) @ self._to_shares[:, colour]
        share -= self._of_sky[colour]
        share *= share >= 0.08
        return np.minimum(share, 1.0, out=share)

    def things_there(self, frame_HWC: Frame) -> tuple[bool, ...]:
        """Whether more than half of each thing is of its colour."""
        share_XP = self._share(frame_HWC.reshape(-1, 3)[self._things_XP], 2)
        return tuple((share_XP.sum(1) > 0.5 * share_XP.shape[1]).tolist())

    def find(self, frame_HWC: Frame, colour: int, width: float, height: float, top: int, bottom: int) -> Box:
        """The rectangle of a colour between two rows: its centroid where most of the colour is, in front of sky."""
        share_HW = self._share(frame_HWC[top:bottom], colour)
        share_HW *= self._is_sky_HW[top:bottom]
        wide, high = int(width) + 2, min(int(height) + 2, bottom - top)
        share_H, share_W = share_HW.sum(1), share_HW.sum(0)
        rows, columns = share_H.nonzero()[0], share_W.nonzero()[0]
        first_y = first_x = 0
        # Where all of the colour lies in one window, which one need not be searched for.
        if len(rows) and (rows[-1] - rows[0] >= high or columns[-1] - columns[0] >= wide):
            first_y, first_x = _fullest_window(share_HW, wide, high)
            near_HW = share_HW[first_y : first_y + high, first_x : first_x + wide]
            share_H, share_W = near_HW.sum(1), near_HW.sum(0)
        total = max(float(share_H.sum()), 1e-9)
        x = float(share_W @ _CENTRES[: len(share_W)]) / total + first_x
        y = float(share_H @ _CENTRES[: len(share_H)]) / total + first_y + top
        return Box(x - width / 2, y - height / 2, width, height)


_CENTRES = np.arange(256) + 0.5


def _fullest_window(share_HW: NDArray[np.float64], wide: int, high: int) -> tuple[int, int]:
    """(y, x) of the window that holds most of the colour."""
    height, width = share_HW.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = share_HW.cumsum(0).cumsum(1)
    sums_YX = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    y, x = divmod(int(sums_YX.argmax()), sums_YX.shape[1])
    return y, x
