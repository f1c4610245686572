"""I3D, FID's Inception and LPIPS with weights: pixels in, numbers out, under a name that says what was computed.

A network with the published file and the default preprocessing has its plain name (``i3d-kinetics400-logits``); every
deviation is part of the name: another preprocessing or epsilon, a file of unknown hash, synthetic weights. All run in
full float32, in small batches whose size does not change the result beyond rounding. Knows no statistics.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from magi.evaluation.metrics.checks import check_pair, check_video
from magi.evaluation.networks.features import check_clips
from magi.evaluation.networks.i3d import CLASSES, MINIMUM_FRAMES, PUBLISHED_EPS, I3d, I3dPreprocessing, i3d_input
from magi.evaluation.networks.inception import Inception, inception_input
from magi.evaluation.networks.lpips import Lpips, LpipsTrunk
from magi.evaluation.networks.precision import full_precision
from magi.evaluation.networks.published_files import StoredWeights, WeightKind, has_weights, stored_weights
from magi.seeding import torch_generator
from magi.weights import load_weights

I3D_NAME, INCEPTION_NAME = "i3d-kinetics400-logits", "inception-2015-12-05-pool3"
DEFAULT_I3D_PREPROCESSING: I3dPreprocessing = "tats"
LPIPS_KINDS: dict[LpipsTrunk, tuple[WeightKind, WeightKind]] = {
    "alex": ("alexnet", "lpips-alex"),
    "vgg": ("vgg16", "lpips-vgg"),
}
"""Trunk -> the kinds of weights of the trunk and of its heads."""
Network = TypeVar("Network", bound=nn.Module)
_CLIPS_AT_A_TIME, _IMAGES_AT_A_TIME = 4, 32


class _Weighted(Generic[Network]):
    """A network in evaluation mode, the hash of its weights, and a name that says what deviates."""

    def __init__(self, network: Network, weights: str, name: str, *variants: str) -> None:
        self.network, self.hash = network.eval(), weights
        given = ",".join(filter(None, variants))
        self.name = f"{name}[{given}]" if given else name

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the network; clips follow it."""
        self.network.to(device)
        return self

    def in_parts(self, size: int, measure: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``measure`` of ``size`` rows at a time in full float32; what comes of it is where ``inputs`` are."""
        parts = zip(*(rows.split(size) for rows in inputs), strict=True)
        with full_precision():
            found = torch.cat([measure(*(rows.to(self.device) for rows in part)) for part in parts])
        return found.to(inputs[0].device)


class I3dFeatures(_Weighted[I3d]):
    """Kinetics-400 logits of clips (``FeatureNetwork``): the features of the Frechet video distance."""

    dimension = CLASSES
    minimum_frames = MINIMUM_FRAMES

    def __init__(
        self, network: I3d, weights: str, preprocessing: I3dPreprocessing = DEFAULT_I3D_PREPROCESSING, mark: str = ""
    ) -> None:
        """Wrap ``network``; ``weights`` is their hash, ``mark`` a word for the name where they are not published."""
        self.preprocessing: I3dPreprocessing = preprocessing
        eps = "" if network.bn_eps == PUBLISHED_EPS else f"eps{network.bn_eps:g}"
        variant = "" if preprocessing == DEFAULT_I3D_PREPROCESSING else preprocessing
        super().__init__(network, weights, I3D_NAME, mark, variant, eps)

    def features(self, video_BTHWC: Tensor) -> Tensor:
        """Return logits_BC float32 of uint8 clips, on their device; ``ValueError`` below 9 frames."""
        check_clips(video_BTHWC, self)
        return self.in_parts(
            _CLIPS_AT_A_TIME, lambda clips: self.network(i3d_input(clips, self.preprocessing)), video_BTHWC
        )


class InceptionFeatures(_Weighted[Inception]):
    """FID's 2048 features of every frame (``ImageNetwork``)."""

    def __init__(self, network: Inception, weights: str, mark: str = "") -> None:
        """Wrap ``network``; ``weights`` is their hash, ``mark`` a word for the name where they are not published."""
        super().__init__(network, weights, INCEPTION_NAME, mark)

    def frame_features(self, video_BTHWC: Tensor) -> Tensor:
        """Return features_BTC float32 of every frame of uint8 clips, on their device."""
        check_video(video_BTHWC, self.name)
        features = self.in_parts(
            _IMAGES_AT_A_TIME, lambda images: self.network(inception_input(images)), video_BTHWC.flatten(0, 1)
        )
        return features.unflatten(0, video_BTHWC.shape[:2])


class LpipsDistance(_Weighted[Lpips]):
    """LPIPS between frames of uint8 videos, by its own name (``lpips_alex`` or ``lpips_vgg``)."""

    def __init__(self, network: Lpips, weights: str, mark: str = "") -> None:
        """Wrap ``network``; ``weights`` are the hashes of trunk and heads, joined by a plus sign."""
        super().__init__(network, weights, f"lpips_{network.trunk}", mark)

    def distances(self, first_BTHWC: Tensor, second_BTHWC: Tensor) -> Tensor:
        """Return distances_BT float32 of two uint8 videos of one shape, frame against frame."""
        check_pair(first_BTHWC, second_BTHWC)
        frames = (first_BTHWC.flatten(0, 1), second_BTHWC.flatten(0, 1))
        distances = self.in_parts(
            _IMAGES_AT_A_TIME, lambda one, other: self.network(_signed(one), _signed(other)).sum(1), *frames
        )
        return distances.unflatten(0, first_BTHWC.shape[:2])


def load_i3d(
    preprocessing: I3dPreprocessing = DEFAULT_I3D_PREPROCESSING,
    bn_eps: float = PUBLISHED_EPS,
    cache: Path | None = None,
) -> I3dFeatures:
    """I3D with imported weights: those of kind i3d, or else the tensors of the TorchScript file, which the name says.

    ``CheckpointError`` where neither was imported or they are damaged.
    """
    from_torchscript = has_weights("i3d-torchscript", cache) and not has_weights("i3d", cache)
    stored = stored_weights("i3d-torchscript" if from_torchscript else "i3d", cache)
    marks = ["torchscript-tensors"] * from_torchscript + [_mark(stored)]
    network = _loaded(lambda: I3d(bn_eps), stored)
    return I3dFeatures(network, stored.source.sha256, preprocessing, "-".join(filter(None, marks)))


def load_inception(cache: Path | None = None) -> InceptionFeatures:
    """FID's Inception with imported weights; ``CheckpointError`` where they were not imported or are damaged."""
    stored = stored_weights("inception", cache)
    return InceptionFeatures(_loaded(Inception, stored), stored.source.sha256, _mark(stored))


def load_lpips(trunk: LpipsTrunk, cache: Path | None = None) -> LpipsDistance:
    """LPIPS with imported trunk and heads; ``CheckpointError`` where either was not imported or is damaged."""
    both = [stored_weights(kind, cache) for kind in LPIPS_KINDS[trunk]]
    network = _loaded(lambda: Lpips(trunk), *both)
    return LpipsDistance(network, "+".join(stored.source.sha256 for stored in both), _mark(*both))


def synthetic_i3d(
    preprocessing: I3dPreprocessing = DEFAULT_I3D_PREPROCESSING, bn_eps: float = PUBLISHED_EPS
) -> I3dFeatures:
    """I3D with random weights, the same in every run: a dry run of a protocol, whose score means nothing."""
    network, generator = _empty(lambda: I3d(bn_eps)), torch_generator("synthetic")
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, generator=generator)
        else:
            tensor.fill_(name.endswith(("bn.weight", "running_var")))
    return I3dFeatures(network, "synthetic", preprocessing, "synthetic")


def _signed(images_BHWC: Tensor) -> Tensor:
    """images_BCHW float32 in [-1, 1] of uint8 RGB."""
    return 2 * (images_BHWC.permute(0, 3, 1, 2).float() / 255) - 1


def _mark(*stored: StoredWeights) -> str:
    return "" if all(weights.source.known for weights in stored) else "unknown-weights"


def _empty(build: Callable[[], Network]) -> Network:
    """The network with memory for its weights but no values: drawing millions of them first would take a second."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    return network


def _loaded(build: Callable[[], Network], *stored: StoredWeights) -> Network:
    network = _empty(build)
    tensors = {name: tensor for weights in stored for name, tensor in weights.tensors().items()}
    load_weights(network, tensors, stored[0].folder)
    return network
