"""What a feature network promises: clips in, one vector a clip out; and how features of many clips are gathered.

A Frechet video distance is a distance between feature vectors, so the network is half of the measure: its name and the
hash of its weights stand on every protocol card. Networks are applied in full float32: TF32, which torch allows for
convolutions by default, changes scores. Knows no network, no distance and no protocol.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from magi.evaluation.networks.precision import full_precision


class FeatureNetwork(Protocol):
    """Turns video_BTHWC (uint8 RGB) into features_BD (float32); row k depends on clip k alone."""

    @property
    def name(self) -> str:
        """Which network, training data and layer, as in 'i3d-kinetics400-logits'."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 of the weight file."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        ...

    @property
    def minimum_frames(self) -> int:
        """The shortest clip that the network takes, in frames."""
        ...

    def features(self, video_BTHWC: Tensor) -> Tensor:
        """Return features_BD float32 of video_BTHWC uint8, without gradients."""
        ...


class ImageNetwork(Protocol):
    """Turns every frame of video_BTHWC (uint8 RGB) into a vector: FID's Inception, for a distance at every frame."""

    @property
    def name(self) -> str:
        """Which network, training data and layer."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 of the weight file."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        ...

    def frame_features(self, video_BTHWC: Tensor) -> Tensor:
        """Return features_BTD float32 of video_BTHWC uint8, without gradients."""
        ...


class FrameDistance(Protocol):
    """A learned distance between two frames, as LPIPS is."""

    @property
    def name(self) -> str:
        """Which distance and trunk, as in 'lpips_alex'."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 of the weight files."""
        ...

    def distances(self, first_BTHWC: Tensor, second_BTHWC: Tensor) -> Tensor:
        """Return distances_BT float32 of two uint8 RGB videos of one size, without gradients."""
        ...


def check_clips(video_BTHWC: Tensor, network: FeatureNetwork) -> None:
    """Refuse, with a ``ValueError``, what is not uint8 RGB video or is shorter than ``network`` takes."""
    if video_BTHWC.dtype != torch.uint8 or video_BTHWC.ndim != 5 or video_BTHWC.shape[-1] != 3:
        raise ValueError(
            f"{network.name}: expected video_BTHWC of uint8 RGB, got {tuple(video_BTHWC.shape)} of {video_BTHWC.dtype}"
        )
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
