"""Rectangles of flat colours: how worlds draw them, each pixel by the exact share covered, and find them in pixels."""

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
    first, last = (int(np.clip(end, 0, size)) for end in (np.floor(start), np.ceil(start + length)))
    edges = np.arange(first, last)
    return slice(first, last), np.minimum(edges + 1, start + length) - np.maximum(edges, start)


class ColourReader:
    """Finds boxes of three colours, which span the three channels, in front of a background of one."""

    def __init__(self, background_HWC: NDArray[np.float64], sky: Colour, colours: Sequence[Colour]) -> None:
        self._sky = np.array(sky)
        self._is_sky_HW = (self._sky == background_HWC).all(axis=-1)
        self._to_shares = np.linalg.inv(np.array(colours) - self._sky)

    def shares(self, frame_HWC: Frame) -> NDArray[np.float64]:
        """(H, W, 3): how much of each pixel is of each colour; none where the background is not sky."""
        shares_HWK: NDArray[np.float64] = (frame_HWC.astype(np.float64) - self._sky) @ self._to_shares
        shares_HWK = np.where(shares_HWK < 0.08, 0.0, shares_HWK.clip(0.0, 1.0))
        return shares_HWK * self._is_sky_HW[..., None]


def is_filled(share_HW: NDArray[np.float64], box: Box) -> bool:
    """Whether more than half of a box of whole pixels is of the colour of ``share_HW``."""
    x, y = int(box.x), int(box.y)
    return bool(share_HW[y : y + int(box.height), x : x + int(box.width)].sum() > 0.5 * box.width * box.height)


def find_box(share_HW: NDArray[np.float64], width: float, height: float, top: int, bottom: int) -> Box:
    """The rectangle of one colour between two rows: its centroid where most of the colour is."""
    share_HW = share_HW[top:bottom]
    wide, high = int(width) + 2, min(int(height) + 2, len(share_HW))
    padded_HW = np.pad(share_HW, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums_YX = padded_HW[high:, wide:] - padded_HW[:-high, wide:] - padded_HW[high:, :-wide] + padded_HW[:-high, :-wide]
    first_y, first_x = np.unravel_index(int(sums_YX.argmax()), sums_YX.shape)
    near_HW = share_HW[first_y : first_y + high, first_x : first_x + wide]
    total = max(float(near_HW.sum()), 1e-9)
    x = float(near_HW.sum(0) @ (np.arange(wide) + 0.5)) / total + float(first_x)
    y = float(near_HW.sum(1) @ (np.arange(high) + 0.5)) / total + float(first_y) + top
    return Box(x - width / 2, y - height / 2, width, height)
