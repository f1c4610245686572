"""FID's InceptionV3 (the 2015-12-05 TensorFlow network): 2048 features of an image, and 1008 logits.

Szegedy et al., arXiv 1512.00567, in the variant that FID (arXiv 1706.08500) is defined with: average pools count the
real pixels only, the last block pools by maximum, batch norm epsilon is 1e-3. Knows no weights and no files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from magi.evaluation.metrics.resize import resize_bilinear
from magi.evaluation.networks.batch_norm import StoredBatchNorm

FEATURES = 2048
CLASSES = 1008
SIDE = 299
_EPS = 1e-3
Size2 = tuple[int, int]


@dataclass(frozen=True)
class InceptionOutput:
    """``features_BC`` (2048), and ``logits_BC`` (1008, with the bias)."""

    features_BC: Tensor
    logits_BC: Tensor


def inception_input(images_BHWC: Tensor) -> Tensor:
    """Return images_BCHW float32 of 299 x 299, about [-1, 1], from uint8 RGB; a frame that is not square is squashed.

    The arithmetic is that of the TensorFlow original (torch-fidelity's, too). ``ValueError`` for images of another
    kind.
    """
    if images_BHWC.ndim != 4 or images_BHWC.shape[-1] != 3 or images_BHWC.dtype != torch.uint8:
        raise ValueError(f"inception input must be uint8 BHWC RGB, got {images_BHWC.dtype} {tuple(images_BHWC.shape)}")
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
    return (resize_bilinear(images_BCHW, SIDE, SIDE, "tf1") - 128) / 128


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | Size2, stride: int = 1, padding: int | Size2 = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = StoredBatchNorm(outputs, _EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the activations."""
        return functional.relu(self.bn(self.conv(x_BCHW)))


def _row(inputs: int, outputs: int, width: int) -> ConvUnit:
    return ConvUnit(inputs, outputs, (1, width), padding=(0, width // 2))


def _column(inputs: int, outputs: int, height: int) -> ConvUnit:
    return ConvUnit(inputs, outputs, (height, 1), padding=(height // 2, 0))


def average_pool(x_BCHW: Tensor) -> Tensor:
    # NOTE: corners divide by 4 and edges by 6; counting the padding changes features by 0.6.
    return functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x_BCHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BCHW, 3, stride=1, padding=1)


def _halving_pool(x_BCHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BCHW, 3, stride=2)


class InceptionBlock(nn.Module):
    """Branches side by side, the pooled one last: chains of units, named as in the files.

    Units of one chain whose names differ in a last ``a`` or ``b`` take the same input, and their outputs are joined.
    """

    def __init__(
        self, *branches: Mapping[str, ConvUnit], pool: Callable[[Tensor], Tensor], pooled: ConvUnit | None = None
    ) -> None:
        super().__init__()
        self.pool, self.pooled_names = pool, [("branch_pool",)] if pooled else []
        self.chains = [
            [tuple(step) for _, step in groupby(units, lambda name: name.rstrip("ab"))] for units in branches
        ]
        for units in (*branches, {"branch_pool": pooled} if pooled else {}):
            for name, unit in units.items():
                self.add_module(name, unit)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the channels of all branches in order; half the size where the pool halves it."""
        found = [self._through(chain, x_BCHW) for chain in self.chains]
        return torch.cat([*found, self._through(self.pooled_names, self.pool(x_BCHW))], dim=1)

    def _through(self, chain: Sequence[tuple[str, ...]], x_BCHW: Tensor) -> Tensor:
        for names in chain:
            x_BCHW = torch.cat([self.get_submodule(name)(x_BCHW) for name in names], dim=1)
        return x_BCHW


def block_a(inputs: int, pooled: int) -> InceptionBlock:
    """1x1; 5x5; double 3x3; average pool. 224 + ``pooled`` channels."""
    return InceptionBlock(
        {"branch1x1": ConvUnit(inputs, 64, 1)},
        {"branch5x5_1": ConvUnit(inputs, 48, 1), "branch5x5_2": ConvUnit(48, 64, 5, padding=2)},
        {
            "branch3x3dbl_1": ConvUnit(inputs, 64, 1),
            "branch3x3dbl_2": ConvUnit(64, 96, 3, padding=1),
            "branch3x3dbl_3": ConvUnit(96, 96, 3, padding=1),
        },
        pool=average_pool,
        pooled=ConvUnit(inputs, pooled, 1),
    )


def block_b(inputs: int) -> InceptionBlock:
    """Halves the size: 3x3; double 3x3; max pool."""
    return InceptionBlock(
        {"branch3x3": ConvUnit(inputs, 384, 3, stride=2)},
        {
            "branch3x3dbl_1": ConvUnit(inputs, 64, 1),
            "branch3x3dbl_2": ConvUnit(64, 96, 3, padding=1),
            "branch3x3dbl_3": ConvUnit(96, 96, 3, stride=2),
        },
        pool=_halving_pool,
    )


def block_c(middle: int) -> InceptionBlock:
    """1x1; 7x7 in two steps; 7x7 twice in four; average pool. 768 channels."""
    return InceptionBlock(
        {"branch1x1": ConvUnit(768, 192, 1)},
        {
            "branch7x7_1": ConvUnit(768, middle, 1),
            "branch7x7_2": _row(middle, middle, 7),
            "branch7x7_3": _column(middle, 192, 7),
        },
        {
            "branch7x7dbl_1": ConvUnit(768, middle, 1),
            "branch7x7dbl_2": _column(middle, middle, 7),
            "branch7x7dbl_3": _row(middle, middle, 7),
            "branch7x7dbl_4": _column(middle, middle, 7),
            "branch7x7dbl_5": _row(middle, 192, 7),
        },
        pool=average_pool,
        pooled=ConvUnit(768, 192, 1),
    )


def block_d() -> InceptionBlock:
    """Halves the size: 3x3; 7x7 then 3x3; max pool."""
    return InceptionBlock(
        {"branch3x3_1": ConvUnit(768, 192, 1), "branch3x3_2": ConvUnit(192, 320, 3, stride=2)},
        {
            "branch7x7x3_1": ConvUnit(768, 192, 1),
            "branch7x7x3_2": _row(192, 192, 7),
            "branch7x7x3_3": _column(192, 192, 7),
            "branch7x7x3_4": ConvUnit(192, 192, 3, stride=2),
        },
        pool=_halving_pool,
    )


def block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> InceptionBlock:
    """1x1; 3x3 split into a row and a column; the same after a 3x3; a pool. 2048 channels."""
    return InceptionBlock(
        {"branch1x1": ConvUnit(inputs, 320, 1)},
        {
            "branch3x3_1": ConvUnit(inputs, 384, 1),
            "branch3x3_2a": _row(384, 384, 3),
            "branch3x3_2b": _column(384, 384, 3),
        },
        {
            "branch3x3dbl_1": ConvUnit(inputs, 448, 1),
            "branch3x3dbl_2": ConvUnit(448, 384, 3, padding=1),
            "branch3x3dbl_3a": _row(384, 384, 3),
            "branch3x3dbl_3b": _column(384, 384, 3),
        },
        pool=pool,
        pooled=ConvUnit(inputs, 192, 1),
    )


class Inception(nn.Module):
    """images_BCHW float32 (RGB, about [-1, 1], 299 x 299) -> ``InceptionOutput``; children named as in the files."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk_names = []
        for name, layer in (
            ("Conv2d_1a_3x3", ConvUnit(3, 32, 3, stride=2)),
            ("Conv2d_2a_3x3", ConvUnit(32, 32, 3)),
            ("Conv2d_2b_3x3", ConvUnit(32, 64, 3, padding=1)),
            ("MaxPool_1", nn.MaxPool2d(3, stride=2)),
            ("Conv2d_3b_1x1", ConvUnit(64, 80, 1)),
            ("Conv2d_4a_3x3", ConvUnit(80, 192, 3)),
            ("MaxPool_2", nn.MaxPool2d(3, stride=2)),
            ("Mixed_5b", block_a(192, 32)),
            ("Mixed_5c", block_a(256, 64)),
            ("Mixed_5d", block_a(288, 64)),
            ("Mixed_6a", block_b(288)),
            ("Mixed_6b", block_c(128)),
            ("Mixed_6c", block_c(160)),
            ("Mixed_6d", block_c(160)),
            ("Mixed_6e", block_c(192)),
            ("Mixed_7a", block_d()),
            ("Mixed_7b", block_e(1280, average_pool)),
            # NOTE: the last block pools by maximum, a slip of the original that FID's numbers contain.
            ("Mixed_7c", block_e(2048, _max_pool)),
        ):
            self.add_module(name, layer)
            self.trunk_names.append(name)
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.requires_grad_(False)

    def forward(self, images_BCHW: Tensor) -> InceptionOutput:
        """Return features and logits; ``ValueError`` for another size."""
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != (3, SIDE, SIDE):
            raise ValueError(f"inception takes (B, 3, {SIDE}, {SIDE}), got {tuple(images_BCHW.shape)}")
        x_BCHW = images_BCHW
        for name in self.trunk_names:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        features_BC = x_BCHW.mean((2, 3))
        return InceptionOutput(features_BC, self.fc(features_BC))
