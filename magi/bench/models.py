"""Models of the suite: random weights that do something everywhere, on the device."""

import copy

import torch

from magi.bench.case import Setting
from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.presets import size

NOISE = 0.02


def random_model(config: ModelConfig, latent: LatentShape, device: torch.device) -> Magi:
    """A model whose zero-initialised layers are drawn too, since products of zeros are faster."""
    torch.manual_seed(0)
    with device:
        model = Magi(config, latent)
        for layer in (model.head.modulation, model.head.output):
            torch.nn.init.normal_(layer.weight, std=NOISE)
    return model


def bench_model(config: ModelConfig, latent: LatentShape, device: torch.device, dtype: torch.dtype) -> Magi:
    """The same for sampling: in a number format, in evaluation mode, without gradients."""
    return random_model(config, latent, device).to(dtype).eval().requires_grad_(False)


def paper_model(setting: Setting, blocks: int = 20, temporal: str = "softmax") -> Magi:
    """The paper's large model on SD latents of 256 x 256: 256 tokens of 16 channels, bf16; tiny in a smoke test."""
    if setting.smoke:
        return small_model("smoke", setting.device, torch.float32, temporal)
    config = size("large", frames=16, classes=101, class_tokens=1, dropout=0.0, temporal=temporal)
    config = config.model_copy(update={"blocks": blocks})
    return bench_model(config, LatentShape(frames=16, channels=4, height=32, width=32), setting.device, torch.bfloat16)


def in_format(model: Magi, dtype: torch.dtype) -> Magi:
    """The same weights in another number format."""
    return model if model.mask_token.dtype == dtype else copy.deepcopy(model).to(dtype)


def small_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32, temporal: str = "softmax") -> Magi:
    """A named size on latents of 8 x 8: 16 tokens, as in the digits preset; 'smoke' is smaller than any size."""
    if name == "smoke":
        config = ModelConfig(
            width=32, blocks=2, heads=2, frames=16, head_width=32, head_blocks=2, classes=4, class_tokens=1,
            dropout=0.0, temporal=temporal,
        )  # fmt: skip
    else:
        config = size(name, frames=16, classes=10, class_tokens=1, dropout=0.0, temporal=temporal)
    return bench_model(config, LatentShape(frames=16, channels=4, height=8, width=8), device, dtype)


def labelled_conditions(model: Magi, batch: int) -> Conditions:
    """Conditions of ``batch`` videos, each with a label."""
    numbers = torch.arange(batch, device=model.mask_token.device)
    return Conditions(torch.ones_like(numbers), torch.ones_like(numbers), numbers % model.config.classes)


def guided_conditions(model: Magi, batch: int) -> Conditions:
    """Conditions of ``batch`` videos, followed by the same without their label, as guidance takes them."""
    conditions = labelled_conditions(model, batch)
    return Conditions.cat([conditions, conditions.null(model.config)])
