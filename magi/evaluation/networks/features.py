"""What a feature network promises: clips in, one vector a clip out; and how features of many clips are gathered.

A Frechet video distance is a distance between feature vectors, so the network is half of the measure: its name and the
hash of its weights stand on every protocol card. Networks are applied in full float32: TF32, which torch allows for
convolutions by default, changes scores. Knows no network, no distance and no protocol.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from magi.evaluation.metrics.checks import check_video
from magi.evaluation.networks.precision import full_precision


class NamedNetwork(Protocol):
    """Weights under a name: both stand on the protocol card or beside it."""

    @property
    def name(self) -> str:
        """Which network, training data and layer, as in 'i3d-kinetics400-logits'."""

    @property
    def hash(self) -> str:
        """SHA-256 of the weight file."""


class FeatureNetwork(NamedNetwork, Protocol):
    """Turns video_BTHWC (uint8 RGB) into features_BD (float32); row k depends on clip k alone."""

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""

    @property
    def minimum_frames(self) -> int:
        """The shortest clip that the network takes, in frames."""

    def features(self, video_BTHWC: Tensor) -> Tensor:
        """Return features_BD float32 of video_BTHWC uint8, without gradients."""


class ImageNetwork(NamedNetwork, Protocol):
    """Turns every frame of video_BTHWC (uint8 RGB) into a vector: FID's Inception, for a distance at every frame."""

    def frame_features(self, video_BTHWC: Tensor) -> Tensor:
        """Return features_BTD float32 of video_BTHWC uint8, without gradients."""


class FrameDistance(NamedNetwork, Protocol):
    """A learned distance between two frames, as LPIPS is."""

    def distances(self, first_BTHWC: Tensor, second_BTHWC: Tensor) -> Tensor:
        """Return distances_BT float32 of two uint8 RGB videos of one size, without gradients."""


def check_clips(video_BTHWC: Tensor, network: FeatureNetwork) -> None:
    """Refuse, with a ``ValueError``, what is not uint8 RGB video or is shorter than ``network`` takes."""
    check_video(video_BTHWC, network.name)
    if video_BTHWC.shape[1] < network.minimum_frames:
        raise ValueError(
            f"{network.name}: clips of {video_BTHWC.shape[1]} frames, the network needs at least "
            f"{network.minimum_frames}; use longer clips"
        )


def extract(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """Features_ND float32 on the CPU of all clips of ``batches`` (video_BTHWC each), in their order.

    ``ValueError`` for clips that the network does not take, for none at all, and for features that are not finite.
    """
    found = []
    with full_precision():
        for video_BTHWC in batches:
            check_clips(video_BTHWC, network)
            found.append(network.features(video_BTHWC).float().cpu())
    if not found:
        raise ValueError(f"{network.name}: no clips to take features of")
    features_ND = torch.cat(found)
    if not bool(features_ND.isfinite().all()):
        raise ValueError(f"{network.name}: features are not finite; the weights are damaged or of another network")
    return features_ND
