"""FID's InceptionV3 (the 2015-12-05 TensorFlow network): 2048 features of an image.

Szegedy et al., arXiv 1512.00567, in the variant that FID (arXiv 1706.08500) is defined with: average pools count the
real pixels only, the last block pools by maximum, batch norm epsilon is 1e-3. Knows no weights and no files.
"""

from collections.abc import Callable, Sequence

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


def average_pool(x_BCHW: Tensor) -> Tensor:
    # NOTE: corners divide by 4 and edges by 6; counting the padding changes features by 0.6.
    return functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x_BCHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BCHW, 3, stride=1, padding=1)


def _halving_pool(x_BCHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BCHW, 3, stride=2)


_POOLS: dict[str, Callable[[Tensor], Tensor]] = {"average": average_pool, "max": _max_pool, "halving": _halving_pool}

# Blocks by name: inputs, pool, channels after the pool (0: the pool alone), and the other branches. A branch has its
# name and a layer after the other as OUTPUTS:KERNEL, one number for a square kernel, HEIGHTxWIDTH for another; "/2"
# halves the size, where nothing is padded. Layers between bars take one input, and their outputs are joined.
_SEVENS = (
    "1x1 192:1",
    "7x7 {0}:1 {0}:1x7 192:7x1",
    "7x7dbl {0}:1 {0}:7x1 {0}:1x7 {0}:7x1 192:1x7",
)
_ROWS_AND_COLUMNS = ("1x1 320:1", "3x3 384:1 384:1x3|384:3x1", "3x3dbl 448:1 384:3 384:1x3|384:3x1")
_SQUARES = ("1x1 64:1", "5x5 48:1 64:5", "3x3dbl 64:1 96:3 96:3")
_BLOCKS: dict[str, tuple[int, str, int, tuple[str, ...]]] = {
    "Mixed_5b": (192, "average", 32, _SQUARES),
    "Mixed_5c": (256, "average", 64, _SQUARES),
    "Mixed_5d": (288, "average", 64, _SQUARES),
    "Mixed_6a": (288, "halving", 0, ("3x3 384:3/2", "3x3dbl 64:1 96:3 96:3/2")),
    "Mixed_6b": (768, "average", 192, tuple(branch.format(128) for branch in _SEVENS)),
    "Mixed_6c": (768, "average", 192, tuple(branch.format(160) for branch in _SEVENS)),
    "Mixed_6d": (768, "average", 192, tuple(branch.format(160) for branch in _SEVENS)),
    "Mixed_6e": (768, "average", 192, tuple(branch.format(192) for branch in _SEVENS)),
    "Mixed_7a": (768, "halving", 0, ("3x3 192:1 320:3/2", "7x7x3 192:1 192:1x7 192:7x1 192:3/2")),
    "Mixed_7b": (1280, "average", 192, _ROWS_AND_COLUMNS),
    # NOTE: the last block pools by maximum, a slip of the original that FID's numbers contain.
    "Mixed_7c": (2048, "max", 192, _ROWS_AND_COLUMNS),
}


class InceptionBlock(nn.Module):
    """Branches side by side, the pooled one last: chains of layers, named as in the files."""

    def __init__(self, inputs: int, pool: str, pooled: int, branches: Sequence[str]) -> None:
        super().__init__()
        self.pool = _POOLS[pool]
        self.chains = [self._add(branch, inputs) for branch in branches]
        self.pooled = self._add(f"_pool {pooled}:1", inputs) if pooled else []

    def _add(self, branch: str, inputs: int) -> list[list[str]]:
        """Add the layers of a branch; their names, those that take one input together."""
        name, *steps = branch.split()
        chain: list[list[str]] = []
        for number, step in enumerate(steps, start=1):
            layers = [layer.replace(":", " ").replace("/", " ").split() for layer in step.split("|")]
            stem = f"branch{name}_{number}" if len(steps) > 1 else f"branch{name}"
            chain.append([stem + letter for letter, _ in zip("ab" if len(layers) > 1 else [""], layers, strict=True)])
            for full_name, (outputs, size, *halved) in zip(chain[-1], layers, strict=True):
                height, width = map(int, size.split("x") if "x" in size else (size, size))
                padding = (0, 0) if halved else (height // 2, width // 2)
                unit = ConvUnit(inputs, int(outputs), (height, width), 2 if halved else 1, padding)
                self.add_module(full_name, unit)
            inputs = sum(int(outputs) for outputs, *_ in layers)
        return chain

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the channels of all branches in order; half the size where the pool halves it."""
        found = [self._through(chain, x_BCHW) for chain in self.chains]
        return torch.cat([*found, self._through(self.pooled, self.pool(x_BCHW))], dim=1)

    def _through(self, chain: list[list[str]], x_BCHW: Tensor) -> Tensor:
        for names in chain:
            x_BCHW = torch.cat([self.get_submodule(name)(x_BCHW) for name in names], dim=1)
        return x_BCHW


class Inception(nn.Module):
    """images_BCHW float32 (RGB, about [-1, 1], 299 x 299) -> features_BC (2048); children named as in the files."""

    def __init__(self) -> None:
        super().__init__()
        stem: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": ConvUnit(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": ConvUnit(32, 32, 3),
            "Conv2d_2b_3x3": ConvUnit(32, 64, 3, padding=1),
            "MaxPool_1": nn.MaxPool2d(3, stride=2),
            "Conv2d_3b_1x1": ConvUnit(64, 80, 1),
            "Conv2d_4a_3x3": ConvUnit(80, 192, 3),
            "MaxPool_2": nn.MaxPool2d(3, stride=2),
        }
        layers = stem | {name: InceptionBlock(*block) for name, block in _BLOCKS.items()}
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.trunk_names = list(layers)
        self.fc = nn.Linear(FEATURES, CLASSES)  # not applied: it is here so that an import checks all of the file
        self.requires_grad_(False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the features; ``ValueError`` for another size."""
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != (3, SIDE, SIDE):
            raise ValueError(f"inception takes (B, 3, {SIDE}, {SIDE}), got {tuple(images_BCHW.shape)}")
        x_BCHW = images_BCHW
        for name in self.trunk_names:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW.mean((2, 3))
