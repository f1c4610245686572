"""What a training clip costs: floating-point operations and the memory that backward needs, from shapes alone.

Products of matrices only, two operations a multiply-add, as ``torch.utils.flop_counter`` counts them; everything else
is memory traffic. Paper section 2: complete teacher forcing runs twice the frames of masked teacher forcing. It knows
shapes; no tensors, devices, processes or prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magi.model.conditioning import condition_tokens
from magi.model.text import LAYERS as TEXT_LAYERS

if TYPE_CHECKING:
    from magi.config import LatentShape, ModelConfig

TIMESTEP_FEATURES = 256
RESIDUAL_BYTES = 4
"""The stream between layers, norms and the loss are float32 in every precision."""


@dataclass(frozen=True)
class ClipShape:
    """What a training clip is to the transformer: ``slots`` S in time, ``positions`` P a slot, ``tokens`` N of them.

    ``queries`` are the slots whose output the head reads, ``pasts`` those that others attend to; ``channels`` C is the
    size of a token.
    """

    slots: int
    queries: int
    pasts: int
    positions: int
    tokens: int
    channels: int


def clip_shape(config: ModelConfig, latent: LatentShape, views: int = 1, first_frame_views: int = 0) -> ClipShape:
    """Slots and positions of a clip: S = T - 1 + kT + e under complete teacher forcing with k views and e more of the
    first frame, T under masked.
    """
    frames, patch = latent.frames, config.patch_size
    tokens = (latent.height // patch) * (latent.width // patch)
    conditions = condition_tokens(config)
    complete = config.teacher_forcing == "complete"
    observed = frames - 1 if complete else 0
    return ClipShape(
        slots=observed + views * frames + first_frame_views,
        queries=views * frames + first_frame_views,
        pasts=observed if complete else frames,
        positions=conditions + tokens,
        tokens=tokens,
        channels=latent.channels * patch**2,
    )


@dataclass(frozen=True)
class ClipFlops:
    """Operations of one training clip, forward and backward, in floating-point operations."""

    forward: float
    backward: float
    recomputed: float
    """What activation checkpointing runs a second time: the blocks, without the last product of each."""

    @property
    def total(self) -> float:
        """Forward and backward, each once."""
        return self.forward + self.backward


def clip_flops(
    config: ModelConfig, latent: LatentShape, masked: float, noisings: int, views: int = 1, first_frame_views: int = 0
) -> ClipFlops:
    """Operations of one clip with ``masked`` masked tokens (of all frames and views), each noised ``noisings`` times.

    Its text is taken to be of ``text_length``. Backward of a product is two products, one where its input needs no
    gradient (tokens, timesteps, noisy tokens, states of a frozen encoder).
    """
    shape = clip_shape(config, latent, views, first_frame_views)
    blocks = sum(_block(config, shape, last=number == config.blocks - 1) for number in range(config.blocks))
    embed = 2 * shape.slots * shape.tokens * shape.channels * config.width
    head, head_inputs = _head(config, shape.channels, masked, noisings)
    last_products = 2 * shape.positions * config.width * int(config.width * config.mlp_ratio)
    text, embed = _text(config), embed + 2 * config.text_length * config.text_width * config.width
    return ClipFlops(
        forward=blocks + text + embed + head + head_inputs,
        backward=2 * (blocks + text + head) + embed + head_inputs,
        recomputed=blocks - last_products * ((config.blocks - 1) * shape.slots + shape.queries),
    )


def _block(config: ModelConfig, shape: ClipShape, last: bool) -> float:
    """A spatial and a temporal layer; in the last temporal one, slots that nobody reads give keys and values only.

    In time, queries meet the slots that may be attended to; a slot's own key is no product of matrices.
    """
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    slots, queries, places = shape.slots, shape.queries if last else shape.slots, shape.positions
    spatial = slots * places * (4 * width**2 + 2 * width * hidden) + 2 * slots * places**2 * width
    features, gates = _time_features(config)
    projections = slots * width * (features + width + gates) + queries * width * (features + width)
    mixing = queries * shape.pasts * (features + width)
    temporal = places * (projections + queries * 2 * width * hidden + mixing)
    return 2 * (spatial + temporal)


def _text(config: ModelConfig) -> float:
    """The layers that read a clip's text, once."""
    if not config.text_encoder:
        return 0.0
    width, hidden, places = config.width, int(config.width * config.mlp_ratio), config.text_tokens + config.text_length
    return 2 * TEXT_LAYERS * (places * (4 * width**2 + 2 * width * hidden) + 2 * places**2 * width)


def _time_features(config: ModelConfig) -> tuple[int, int]:
    """Of a slot and position along time: numbers of its key, over all heads, and how many gates it has."""
    if config.temporal == "gated_linear":
        return config.heads * config.state_width, config.heads
    return config.width, 0


def _head(config: ModelConfig, channels: int, masked: float, noisings: int) -> tuple[float, float]:
    """Forward of the head: layers whose input needs a gradient, and layers whose input does not."""
    width, rows = config.head_width, masked * noisings
    modulation = width * (3 * config.head_blocks + 2) * width
    residual = 2 * config.head_blocks * width**2
    inner = rows * (width**2 + modulation + residual + width * 2 * channels) + masked * config.width * width
    return 2 * inner, 2 * rows * (TIMESTEP_FEATURES * width + channels * width)


def clip_activation_bytes(
    config: ModelConfig,
    latent: LatentShape,
    masked: float,
    noisings: int,
    compute_bytes: int,
    views: int = 1,
    recompute: bool = False,
    first_frame_views: int = 0,
) -> float:
    """Bytes that a clip's forward keeps for backward; ``compute_bytes`` of a number in products (2 in bfloat16).

    With ``recompute`` (activation checkpointing) blocks keep their inputs alone. Attention keeps queries, keys, values,
    its result and a number a head, as fused kernels do; gated linear attention has none and keeps its weights, too.
    """
    shape = clip_shape(config, latent, views, first_frame_views)
    if recompute:
        blocks = float(config.blocks * shape.slots * shape.positions * config.width * RESIDUAL_BYTES)
    else:
        blocks = (config.blocks - 1) * block_activation_bytes(config, shape, compute_bytes)
        blocks += block_activation_bytes(config, shape, compute_bytes, last=True)
    text = (config.text_tokens + config.text_length) * TEXT_LAYERS * _spatial_bytes(config, compute_bytes)
    text = text if config.text_encoder else 0.0
    return blocks + text + masked * noisings * _head_row_bytes(config, shape.channels, compute_bytes)


def block_activation_bytes(config: ModelConfig, shape: ClipShape, compute_bytes: int, last: bool = False) -> float:
    """The part of one block, of a clip: two attentions and two MLPs."""
    width, hidden, number = config.width, int(config.width * config.mlp_ratio), compute_bytes
    dropped = width if config.dropout else 0  # a byte each: kept or dropped
    norm = RESIDUAL_BYTES * width + number * width + 8  # its input, its result as the next product takes it, statistics
    result = number * width + 4 * config.heads + dropped  # of attention, and a logarithm a head
    mlp = norm + number * 2 * hidden + dropped
    queries = shape.queries if last else shape.slots
    spatial = shape.slots * _spatial_bytes(config, number)
    mixing = float(shape.slots * number * 2 * width + queries * number * width)
    if config.temporal == "gated_linear":
        mixing = _linear_mixing_bytes(config, shape, queries)
    temporal = shape.slots * norm + mixing + queries * (result + mlp)
    return shape.positions * (spatial + temporal)


def _spatial_bytes(config: ModelConfig, number: int) -> float:
    """The attention among positions and its MLP, of a slot and position."""
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    dropped = width if config.dropout else 0
    norm = RESIDUAL_BYTES * width + number * width + 8
    attention = number * 3 * width + number * width + 4 * config.heads + dropped
    return 2 * norm + attention + number * 2 * hidden + dropped


def _linear_mixing_bytes(config: ModelConfig, shape: ClipShape, queries: int) -> float:
    """In float32, of a position: features, values (those that others attend to twice) and gates, result, and of every
    query and past slot the product, its decay and the weight."""
    features, gates = _time_features(config)
    slots, pasts, width = shape.slots, shape.pasts, config.width
    slot_numbers = slots * (features + width + 2 * gates) + pasts * width + queries * (features + width)
    return 4.0 * (slot_numbers + 3 * gates * queries * pasts)


def _head_row_bytes(config: ModelConfig, channels: int, number: int) -> float:
    """One noising of one token: time and condition (4 W), modulations, 6 numbers and a norm a block, the last norm."""
    width, blocks = config.head_width, config.head_blocks
    numbers = 4 + (3 * blocks + 2) + 6 * blocks + 3
    return width * (number * numbers + RESIDUAL_BYTES * (blocks + 1)) + number * (TIMESTEP_FEATURES + channels)


def mean_mask_ratio(mean: float, std: float, minimum: float) -> float:
    """Mean of a normal truncated to [minimum, 1], which mask ratios are drawn from."""
    low, high = (minimum - mean) / std, (1.0 - mean) / std
    density = [math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi) for bound in (low, high)]
    share = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    return mean + std * (density[0] - density[1]) / share
