"""Features and metrics of clips, a chunk of clips at a time, each chunk saved on disk.

Of every clip: the feature vector, the curves of magi.evaluation.metrics.temporal_curves, and against the true clip (for
the predicted frames) PSNR, SSIM and learned distances; where there is an image network, features of every frame. Chunks
lie under the hash of the protocol card, so that a stopped evaluation goes on where it was and a second one measures
nothing again. A chunk numbers its clips: statistics of a set are merged from those of its chunks, and no clip counts
twice or is left out. Knows no protocols and no models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magi.data.moving_digits import CLASSES
from magi.errors import DataError
from magi.evaluation.metrics.frechet import FeatureStatistics
from magi.evaluation.metrics.psnr_ssim import psnr, ssim
from magi.evaluation.metrics.temporal_curves import CURVES
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.networks.features import FeatureNetwork, FrameDistance, ImageNetwork, extract
from magi.evaluation.protocol.card import NetworkDescription
from magi.progress import Report
from magi.weights import weights_hash, write_tensors

CHUNK = 64
FEATURES, IMAGES, NUMBERS = "features_BD", "images_BTD", "numbers_B"
IMAGE_CLIPS = 2048  # of a set, its first ones: features of all frames of more would fill the disk

Pairs = Iterator[tuple[Tensor, ...]]
"""Batches of video_BTHWC, each alone or with the true clips."""


@dataclass(frozen=True)
class Metrics:
    """What clips are measured with: a feature network, or the classifier of digits; a world's oracle needs neither.

    Pairs of clips are compared after ``context_frames``.
    """

    network: FeatureNetwork | None = None
    images: ImageNetwork | None = None
    distances: tuple[FrameDistance, ...] = ()
    context_frames: int = 0
    classifier: DigitClassifier | None = None

    @property
    def feature_network(self) -> FeatureNetwork:
        """The network of the Frechet distance."""
        assert self.network is not None, "a protocol of ground truth has no feature network"
        return self.network

    def described(self) -> NetworkDescription:
        """The network that the score depends on."""
        if self.network is not None:
            return NetworkDescription(self.network.name, self.network.hash, self.network.dimension)
        if self.classifier is None:
            return NetworkDescription("world-oracle", "", 0)
        return NetworkDescription("digit-classifier", weights_hash(self.classifier.state_dict()), len(CLASSES))

    def other_networks(self) -> dict[str, str]:
        """Name and weight hash of what measures beside the score: frames and pairs of frames."""
        described = {distance.name: distance.hash for distance in self.distances}
        return described if self.images is None else described | {self.images.name: self.images.hash}


@dataclass(frozen=True)
class FeatureSet:
    """Features and metrics of one set of clips on disk: a file for each chunk, in order."""

    files: tuple[Path, ...]

    def statistics(self, first: int, last: int) -> FeatureStatistics:
        """Statistics of the features of clips ``first`` up to ``last`` (not included), merged from those of the chunks.

        ``DataError`` where a clip is missing; ``ValueError`` where one is in two chunks.
        """
        merged = _statistics(self.files[0], first, last)
        for path in self.files[1:]:
            merged.merge(_statistics(path, first, last))
        if merged.count != last - first:
            raise DataError(
                f"{self.files[0].parent}: holds {merged.count} of clips {first} to {last}; delete it and score again"
            )
        return merged

    def values(self, name: str, frame: int | None = None) -> Tensor:
        """The measure called ``name`` of all clips that have it, a row a clip; of frame ``frame`` (from 0) if given."""
        found = []
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 - not a dictionary
                    rows = file.get_slice(name)
                    found.append(rows[:] if frame is None else rows[:, frame])
        return torch.cat(found)

    def names(self) -> list[str]:
        """The measures that the set has."""
        with safe_open(self.files[0], framework="pt") as file:
            return sorted({*file.keys()} - {NUMBERS})


def _statistics(path: Path, first: int, last: int) -> FeatureStatistics:
    """Of those clips of one chunk whose numbers are from ``first`` up to ``last``."""
    with safe_open(path, framework="pt") as file:
        numbers_B, features_BD = file.get_tensor(NUMBERS), file.get_tensor(FEATURES)
    inside_B = (first <= numbers_B) & (numbers_B < last)
    found = FeatureStatistics(features_BD.shape[1])
    found.update(features_BD[inside_B], numbers_B[inside_B].tolist())
    return found


def feature_set(
    metrics: Metrics,
    folder: Path,
    name: str,
    count: int,
    read: Callable[[int, int], Pairs],
    on_progress: Report,
) -> FeatureSet:
    """Measure clips 0 to ``count`` of a set, chunk by chunk; ``read(first, last)`` yields them.

    ``ValueError`` where a read yields another number of clips than asked: a dropped
    last batch must not pass.
    """
    files = []
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        path = folder / f"{name}-{first:06d}-{last:06d}.safetensors"
        if not _is_whole(path, range(first, last)):
            tensors = _measure(metrics, read(first, last), first < IMAGE_CLIPS)
            if (found := len(tensors.get(FEATURES, ()))) != last - first:
                raise ValueError(f"{name}: clips {first} to {last} were asked for and {found} came")
            write_tensors(path, tensors | {NUMBERS: torch.arange(first, last)})
        files.append(path)
        on_progress(last, count)
    return FeatureSet(tuple(files))


def _is_whole(path: Path, clips: range) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            kept, numbers = file.get_slice(FEATURES).get_shape()[0], file.get_tensor(NUMBERS).tolist()
    except (OSError, SafetensorError, KeyError):
        return False
    return bool(kept == len(clips) and numbers == list(clips))


def _measure(metrics: Metrics, pairs: Pairs, with_images: bool) -> dict[str, Tensor]:
    """Every measure of the clips of ``pairs``, by name, a row a clip."""
    found: dict[str, list[Tensor]] = {}
    for video_BTHWC, *real in pairs:
        measures = {FEATURES: extract(metrics.feature_network, [video_BTHWC])}
        measures |= {name: curve(video_BTHWC).float() for name, curve in CURVES.items()}
        if metrics.images is not None and with_images:
            measures[IMAGES] = metrics.images.frame_features(video_BTHWC).float().cpu()
        for real_BTHWC in real:
            given = metrics.context_frames
            measures |= _against(real_BTHWC[:, given:], video_BTHWC[:, given:], metrics.distances)
        for name, values in measures.items():
            found.setdefault(name, []).append(values.contiguous())
    return {name: torch.cat(values) for name, values in found.items()}


def _against(real_BTHWC: Tensor, generated_BTHWC: Tensor, distances: tuple[FrameDistance, ...]) -> dict[str, Tensor]:
    found = {"psnr": psnr(real_BTHWC, generated_BTHWC), "ssim": ssim(real_BTHWC, generated_BTHWC)}
    found["ssim_grey"] = ssim(real_BTHWC, generated_BTHWC, grey=True)
    for distance in distances:
        found[distance.name] = distance.distances(real_BTHWC, generated_BTHWC).float().cpu()
    return {name: values_BT.float() for name, values_BT in found.items()}
