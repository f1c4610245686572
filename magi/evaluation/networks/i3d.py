"""I3D (RGB, Kinetics-400), the network behind the Frechet video distance: logits before softmax, averaged over time.

Carreira and Zisserman, arXiv 1705.07750; the layout is that of the published TensorFlow graph: SAME padding from the
run-time size in every convolution and max pool, batch norms with epsilon 1e-3, one VALID average pool. Needs at least
9 frames of 224 x 224. The ways of getting there, under which published distances were computed, differ in the resize,
in what happens to a frame that is not square, and in whether pixels are scaled before or after the resize. Knows no
weights and no files (``magi.evaluation.networks.published_files``), no statistics, no protocol.
"""

import math
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from magi.evaluation.metrics.checks import check_video
from magi.evaluation.metrics.resize import resize_bilinear
from magi.evaluation.networks.batch_norm import StoredBatchNorm

I3dPreprocessing = Literal["tats", "videogpt", "google", "magvit_train"]
I3D_PREPROCESSINGS: tuple[I3dPreprocessing, ...] = get_args(I3dPreprocessing)
SIDE = 224
MINIMUM_FRAMES = 9
CLASSES = 400
PUBLISHED_EPS = 1e-3
TORCH_PORT_EPS = 1e-5  # what the widely copied torch ports hard-code; their numbers need it
BN_EPS = {"published": PUBLISHED_EPS, "torch-port": TORCH_PORT_EPS}
_POOLED = 1024
_WHITE = 255.0

# Channels of the four branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1.
_MIXED = {
    "3b": (192, (64, 96, 128, 16, 32, 32)),
    "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)),
    "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)),
    "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}

Size3 = tuple[int, int, int]


def i3d_input(video_BTHWC: Tensor, variant: I3dPreprocessing = "tats") -> Tensor:
    """Return video_BCTHW float32 of 224 x 224 in [-1, 1] from uint8 RGB frames, by the named variant.

    ``ValueError`` for an unknown variant and for a video that is not uint8 with three channels last.
    """
    check_video(video_BTHWC, "i3d")
    batch = video_BTHWC.shape[0]
    frames_NCHW = video_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float()
    scaled_NCHW = _scaled(frames_NCHW, variant)
    return scaled_NCHW.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def _scaled(frames_NCHW: Tensor, variant: I3dPreprocessing) -> Tensor:
    """Frames of 0..255 -> 224 x 224 in [-1, 1]; the order of scaling and resizing is the variant's own."""
    if variant == "tats":
        return 2 * resize_bilinear(frames_NCHW, SIDE, SIDE, "half_pixel") / _WHITE - 1
    if variant == "videogpt":
        return (_short_side_crop(frames_NCHW / _WHITE) - 0.5) * 2
    if variant == "google":
        return 2 * resize_bilinear(frames_NCHW, SIDE, SIDE, "tf1") / _WHITE - 1
    if variant == "magvit_train":
        return 2 * resize_bilinear(frames_NCHW / _WHITE, SIDE, SIDE, "tf1") - 1
    raise ValueError(f"i3d preprocessing {variant!r}; known: {', '.join(I3D_PREPROCESSINGS)}")


def _short_side_crop(frames_NCHW: Tensor) -> Tensor:
    """Short side to 224, long side rounded up, centre crop."""
    height, width = frames_NCHW.shape[2:]
    scale = SIDE / min(height, width)
    # NOTE: rounding up 100 * (224 / 100) in float64 gives 225, not 224; a square is treated as tall. Kept, because
    # the published numbers of this variant have it.
    rows, columns = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    top, left = (rows - SIDE) // 2, (columns - SIDE) // 2
    resized_NCHW = resize_bilinear(frames_NCHW, rows, columns, "half_pixel")
    return resized_NCHW[:, :, top : top + SIDE, left : left + SIDE]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of ``size`` so that ceil(size / stride) windows fit; an odd one goes after."""
    windows = -(-size // stride)
    total = max((windows - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(video_BCTHW: Tensor, kernel: Size3, stride: Size3, value: float = 0.0) -> Tensor:
    """The video with SAME padding on its last three axes, each by its own size."""
    pads: list[int] = []
    for size, window, step in zip(reversed(video_BCTHW.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        pads.extend(same_padding(size, window, step))  # F.pad takes the last axis first
    return functional.pad(video_BCTHW, pads, value=value) if any(pads) else video_BCTHW


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, eps: float, stride: int = 1) -> None:
        super().__init__()
        self.kernel: Size3 = (kernel, kernel, kernel)
        self.stride: Size3 = (stride, stride, stride)
        self.conv3d = nn.Conv3d(inputs, outputs, self.kernel, self.stride, bias=False)
        self.bn = StoredBatchNorm(outputs, eps)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return ceil(size / stride) of each axis."""
        return functional.relu(self.bn(self.conv3d(pad_same(video_BCTHW, self.kernel, self.stride))))


class SameMaxPool(nn.Module):
    """Max pool with SAME padding that no window ever picks."""

    def __init__(self, kernel: Size3, stride: Size3) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return ceil(size / stride) of each axis."""
        padded_BCTHW = pad_same(video_BCTHW, self.kernel, self.stride, value=-torch.inf)
        return functional.max_pool3d(padded_BCTHW, self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side, concatenated in the order 0, 1, 2, 3."""

    def __init__(self, inputs: int, channels: tuple[int, ...], eps: float) -> None:
        super().__init__()
        c0, c1, c2, c3, c4, c5 = channels
        self.b0 = Unit(inputs, c0, 1, eps)
        self.b1a, self.b1b = Unit(inputs, c1, 1, eps), Unit(c1, c2, 3, eps)
        self.b2a, self.b2b = Unit(inputs, c3, 1, eps), Unit(c3, c4, 3, eps)
        self.b3a, self.b3b = SameMaxPool((3, 3, 3), (1, 1, 1)), Unit(inputs, c5, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same size with c0 + c2 + c4 + c5 channels."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class I3d(nn.Module):
    """video_BCTHW float32 (RGB, [-1, 1], 224 x 224, at least 9 frames) -> logits_BC (400).

    ``bn_eps`` is one of ``BN_EPS``: the published graph's, or that of the torch ports. Children are named as in the
    published files, so their names are the weights' names. In a strided network of even sizes SAME padding is
    larger at the end than at the start: a symmetric padding is another network.
    """

    def __init__(self, bn_eps: float = PUBLISHED_EPS) -> None:
        super().__init__()
        if bn_eps not in BN_EPS.values():
            raise ValueError(f"bn_eps {bn_eps}; known: {PUBLISHED_EPS} (published), {TORCH_PORT_EPS} (torch ports)")
        self.bn_eps = bn_eps
        mixed = {name: Mixed(inputs, channels, bn_eps) for name, (inputs, channels) in _MIXED.items()}
        self.trunk_names = []
        for name, layer in (
            ("Conv3d_1a_7x7", Unit(3, 64, 7, bn_eps, stride=2)),
            ("MaxPool3d_2a_3x3", SameMaxPool((1, 3, 3), (1, 2, 2))),
            ("Conv3d_2b_1x1", Unit(64, 64, 1, bn_eps)),
            ("Conv3d_2c_3x3", Unit(64, 192, 3, bn_eps)),
            ("MaxPool3d_3a_3x3", SameMaxPool((1, 3, 3), (1, 2, 2))),
            *((f"Mixed_{name}", mixed[name]) for name in ("3b", "3c")),
            ("MaxPool3d_4a_3x3", SameMaxPool((3, 3, 3), (2, 2, 2))),
            *((f"Mixed_{name}", mixed[name]) for name in ("4b", "4c", "4d", "4e", "4f")),
            ("MaxPool3d_5a_2x2", SameMaxPool((2, 2, 2), (2, 2, 2))),
            *((f"Mixed_{name}", mixed[name]) for name in ("5b", "5c")),
            ("AvgPool", nn.AvgPool3d((2, 7, 7), (1, 1, 1))),
        ):
            self.add_module(name, layer)
            self.trunk_names.append(name)
        self.logits = nn.Sequential(OrderedDict(conv3d=nn.Conv3d(_POOLED, CLASSES, 1)))
        self.requires_grad_(False)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return logits, the mean of those of every step in time; ``ValueError`` for too few frames or another size."""
        check_input(video_BCTHW)
        x_BCTHW = video_BCTHW
        for name in self.trunk_names:
            x_BCTHW = self.get_submodule(name)(x_BCTHW)
        logits_BCT: Tensor = self.logits(x_BCTHW).flatten(2)
        return logits_BCT.mean(2)


def check_input(video_BCTHW: Tensor) -> None:
    """Raise ``ValueError`` for a video that I3D cannot take."""
    if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3 or tuple(video_BCTHW.shape[3:]) != (SIDE, SIDE):
        raise ValueError(f"i3d takes (B, 3, T, {SIDE}, {SIDE}), got {tuple(video_BCTHW.shape)}; use i3d_input")
    if video_BCTHW.shape[2] < MINIMUM_FRAMES:
        raise ValueError(
            f"i3d needs at least {MINIMUM_FRAMES} frames, got clips of {video_BCTHW.shape[2]}; "
            "its last pool spans two steps of 8 frames: evaluate longer clips"
        )
