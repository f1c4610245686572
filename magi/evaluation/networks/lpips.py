"""LPIPS v0.1: a perceptual distance between two images, from five layers of AlexNet or VGG16 and learned weights.

Zhang et al., arXiv 1801.03924. The images are scaled by ImageNet's statistics (v0.0 did not), features are normalised
to unit length over channels, squared differences are weighted, averaged over positions and added up. Knows no weights
and no files.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

LpipsTrunk = Literal["alex", "vgg"]
LPIPS_TRUNKS: tuple[LpipsTrunk, ...] = get_args(LpipsTrunk)
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10
_Convolution = tuple[int, int, int, int, int, int]  # index in the file, inputs, outputs, kernel, stride, padding

# Five stages; features are taken after the last ReLU of each, and a max pool stands before those in POOLED_STAGES.
_STAGES: dict[LpipsTrunk, tuple[tuple[_Convolution, ...], ...]] = {
    "alex": (
        ((0, 3, 64, 11, 4, 2),),
        ((3, 64, 192, 5, 1, 2),),
        ((6, 192, 384, 3, 1, 1),),
        ((8, 384, 256, 3, 1, 1),),
        ((10, 256, 256, 3, 1, 1),),
    ),
    "vgg": (
        ((0, 3, 64, 3, 1, 1), (2, 64, 64, 3, 1, 1)),
        ((5, 64, 128, 3, 1, 1), (7, 128, 128, 3, 1, 1)),
        ((10, 128, 256, 3, 1, 1), (12, 256, 256, 3, 1, 1), (14, 256, 256, 3, 1, 1)),
        ((17, 256, 512, 3, 1, 1), (19, 512, 512, 3, 1, 1), (21, 512, 512, 3, 1, 1)),
        ((24, 512, 512, 3, 1, 1), (26, 512, 512, 3, 1, 1), (28, 512, 512, 3, 1, 1)),
    ),
}
_POOLED_STAGES: dict[LpipsTrunk, tuple[int, ...]] = {"alex": (1, 2), "vgg": (1, 2, 3, 4)}
_POOL_KERNEL: dict[LpipsTrunk, int] = {"alex": 3, "vgg": 2}
SMALLEST_SIDE: dict[LpipsTrunk, int] = {"alex": 31, "vgg": 16}


def unit_length(features_BCHW: Tensor) -> Tensor:
    """Features divided by their norm over channels, plus 1e-10 outside the root; a zero vector stays zero."""
    return features_BCHW / (features_BCHW.square().sum(1, keepdim=True).sqrt() + _NORM_EPS)


class Lpips(nn.Module):
    """Two batches of images_BCHW (RGB, [-1, 1], native size) -> layers_BL, whose sum is the distance.

    Keys are those of the published files.
    """

    def __init__(self, trunk: LpipsTrunk) -> None:
        super().__init__()
        if trunk not in _STAGES:
            raise ValueError(f"lpips trunk {trunk!r}; known: {', '.join(LPIPS_TRUNKS)}")
        self.trunk = trunk
        convolutions = [convolution for stage in _STAGES[trunk] for convolution in stage]
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(inputs, outputs, kernel, stride, padding)
                for index, inputs, outputs, kernel, stride, padding in convolutions
            }
        )
        for layer, stage in enumerate(_STAGES[trunk]):
            # The index is 1 because the published network drops out first.
            head = nn.Sequential(OrderedDict([("1", nn.Conv2d(stage[-1][2], 1, 1, bias=False))]))
            self.add_module(f"lin{layer}", nn.Sequential(OrderedDict(model=head)))
        self.requires_grad_(False)

    def taps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Five feature maps, each after its ReLU and before the next pool, of images in [-1, 1]."""
        shift, scale = (images_BCHW.new_tensor(values).reshape(1, 3, 1, 1) for values in (SHIFT, SCALE))
        x_BCHW = (images_BCHW - shift) / scale
        taps = []
        for number, stage in enumerate(_STAGES[self.trunk]):
            if number in _POOLED_STAGES[self.trunk]:
                x_BCHW = functional.max_pool2d(x_BCHW, _POOL_KERNEL[self.trunk], stride=2)
            for index, *_ in stage:
                x_BCHW = functional.relu(self.features[str(index)](x_BCHW))
            taps.append(x_BCHW)
        return taps

    def forward(self, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
        """Return the parts of the distance of each pair; ``ValueError`` for shapes that differ or are too small."""
        self._check(first_BCHW, second_BCHW)
        layers = []
        for layer, (a, b) in enumerate(zip(self.taps(first_BCHW), self.taps(second_BCHW), strict=True)):
            squares_BCHW = (unit_length(a) - unit_length(b)).square()
            layers.append(self.get_submodule(f"lin{layer}")(squares_BCHW).mean((1, 2, 3)))
        return torch.stack(layers, dim=1)

    def _check(self, first_BCHW: Tensor, second_BCHW: Tensor) -> None:
        shapes = f"{tuple(first_BCHW.shape)} and {tuple(second_BCHW.shape)}"
        if first_BCHW.shape != second_BCHW.shape or first_BCHW.ndim != 4 or first_BCHW.shape[1] != 3:
            raise ValueError(f"lpips takes two batches of the same (B, 3, H, W), got {shapes}")
        smallest = SMALLEST_SIDE[self.trunk]
        if min(first_BCHW.shape[2:]) < smallest:
            raise ValueError(f"lpips with {self.trunk} needs images of at least {smallest} pixels a side, got {shapes}")
