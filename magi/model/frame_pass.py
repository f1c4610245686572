"""One frame through the model with finished frames in the cache: what sampling runs again and again (section 5).

The same function as ``Magi.predict`` and ``Magi.observe`` of one frame, which are its reference, laid out for speed and
exact in what it leaves out: after the last spatial attention a token depends on its own position alone, so only the
picked tokens go on; a finished frame ends with the keys and values of the last temporal layer; embeddings that stay the
same over a video are added once. Nothing waits for the device. It knows no iterations and no denoising.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from magi.model.attention import SelfAttention
from magi.model.packed_linear import PackedLinear, packed
from magi.model.positions import interpolate_rows
from magi.model.temporal.contract import TemporalState
from magi.model.transformer import Block

if TYPE_CHECKING:
    from magi.model.conditioning import Conditions
    from magi.model.magi import Magi

EPSILON = 1e-6

Norm = tuple[Tensor, Tensor]
"""Weight and bias, as ``F.layer_norm`` takes them."""


def _norm(x: Tensor, weights: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights, eps=EPSILON)


def add_norm(x: Tensor, change: Tensor, weights: Norm) -> tuple[Tensor, Tensor]:
    """A residual sum, and the LayerNorm of it that the next layer reads."""
    x = x + change
    return x, _norm(x, weights)


class PreparedSpatial:
    """Full attention among P positions, its weights laid out for sampling: (B, P, D) -> (B, P, D).

    Nothing is copied: flash attention reads the heads where the linear layer put them, and writes them side by side.
    """

    def __init__(self, layer: SelfAttention, dtype: torch.dtype | None) -> None:
        self.heads = layer.heads
        self.qkv, self.proj = packed(layer.qkv, dtype), packed(layer.proj, dtype)

    @cached_property
    def q_and_kv(self) -> tuple[PackedLinear, PackedLinear]:
        """``qkv`` in two."""
        return self.qkv.split(len(self.qkv.bias) // 3)

    def __call__(self, normed_BPD: Tensor) -> Tensor:
        """All positions."""
        q, k, v = self.qkv(normed_BPD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self._attend(q, k, v)

    def picked(self, normed_BPD: Tensor, index_BmD: Tensor) -> Tensor:
        """The picked positions alone."""
        to_q, to_kv = self.q_and_kv
        k, v = to_kv(normed_BPD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = to_q(normed_BPD.gather(1, index_BmD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FramePass:
    """The passes over one frame after another, of videos under ``conditions`` (G x B of them: halves of guidance).

    Each half of a block takes x and its norm, and returns x and the norm that the next half reads: a residual sum and
    the LayerNorm after it are then one step. With ``kernels`` that step is one Triton kernel, and so is attention to
    the cache, which reads the number of cached frames from the device. Matrix products are computed in ``dtype`` (the
    model's own if None); residual sums, norms and the cache keep the model's.
    """

    def __init__(
        self,
        model: Magi,
        conditions: Conditions,
        halves: int = 1,
        kernels: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.halves, self.kernels = model, halves, kernels
        blocks = [cast(Block, block) for block in model.transformer.blocks]
        self.spatial = [PreparedSpatial(block.spatial_attention, dtype) for block in blocks]
        self.temporal = [block.temporal_attention.prepared(dtype, kernels) for block in blocks]
        mlps = [mlp for block in blocks for mlp in (block.spatial_mlp, block.temporal_mlp)]
        self.mlps = [(packed(mlp[0], dtype), packed(mlp[2], dtype)) for mlp in mlps]
        self.norms: list[Norm] = []
        for block in blocks:
            norms = (block.spatial_norm, block.spatial_mlp_norm, block.temporal_norm, block.temporal_mlp_norm)
            self.norms += [(norm.weight, norm.bias) for norm in norms]
        self.norms.append((model.norm.weight, model.norm.bias))
        # What a captured graph reads stays where it is: new conditions and a new frame are written over the last ones.
        shape, like = (conditions.batch, model.positions, model.config.width), model.mask_token.detach()
        self._predicted_BPD, self._observed_BPD = like.new_empty(shape), like.new_empty(shape)
        self._predicted_at_time_BPD, self._observed_at_time_BPD = like.new_empty(shape), like.new_empty(shape)
        self.set_conditions(conditions)

    @torch.no_grad()
    def set_conditions(self, conditions: Conditions) -> None:
        """Conditions (B,) of the frame that the next passes are about, in place; ``set_time`` comes next."""
        model = self.model
        condition_BKD, added_BD = (values.squeeze(1) for values in model.conditioning(conditions))
        tokens_BND = condition_BKD.new_zeros(len(added_BD), model.tokens_per_frame, added_BD.shape[-1])
        conditioned_BPD = torch.cat([condition_BKD, tokens_BND], dim=1) + model.space_PD + added_BD[:, None]
        complete = model.config.teacher_forcing == "complete"
        self._predicted_BPD.copy_(conditioned_BPD + model.masked_position)
        self._observed_BPD.copy_(conditioned_BPD + (model.observation_position if complete else model.masked_position))
        self._predicted_at_time_BPD.copy_(self._predicted_BPD)
        self._observed_at_time_BPD.copy_(self._observed_BPD)

    def set_time(self, time: Tensor) -> None:
        """Position in time () of the frame that the next passes are about."""
        (time_D,) = interpolate_rows(self.model.time_TD, time[None])
        torch.add(self._predicted_BPD, time_D, out=self._predicted_at_time_BPD)
        torch.add(self._observed_BPD, time_D, out=self._observed_at_time_BPD)

    @property
    def any_length(self) -> bool:
        """Whether a recorded graph of a pass serves a cache of any length."""
        return all(mixer.any_length for mixer in self.temporal)

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor, cache: TemporalState) -> Tensor:
        """z_GBmD of the picked tokens, given the unmasked ones and the frames in the cache."""
        tokens_BND = self.model.embed_token(tokens_BNC.to(self.model.mask_token.dtype))
        x_BPD = self._embed(
            torch.where(masked_BN[..., None], self.model.mask_token, tokens_BND), self._predicted_at_time_BPD
        )
        normed_BPD = _norm(x_BPD, self.norms[0])
        rows, last, width = len(x_BPD), len(self.spatial) - 1, x_BPD.shape[-1]
        picked_Bm = picked_Bm.repeat(self.halves, 1)
        position_Bm = picked_Bm + self.model.conditioning.tokens
        for i in range(last):
            x_BPD, normed_BPD = self._finish(x_BPD, self.spatial[i](normed_BPD), 2 * i)
            x_BPD, normed_BPD = self._finish(x_BPD, self.temporal[i].predict(normed_BPD, cache.layer(i)), 2 * i + 1)
        index_BmD = position_Bm[..., None].expand(-1, -1, width)
        change_BmD = self.spatial[last].picked(normed_BPD, index_BmD)
        x_BmD, normed_BmD = self._finish(x_BPD.gather(1, index_BmD), change_BmD, 2 * last)
        rows_Bm = torch.arange(rows, device=x_BPD.device)[:, None] * self.model.positions + position_Bm
        change_BmD = self.temporal[last].predict(normed_BmD, cache.layer(last), rows_Bm.flatten())
        _, normed_BmD = self._finish(x_BmD, change_BmD, 2 * last + 1)
        z_BmD = normed_BmD + self.model.head_position[picked_Bm]
        return z_BmD.unflatten(0, (self.halves, -1))

    def observe(self, tokens_BNC: Tensor, cache: TemporalState) -> None:
        """Write one finished frame after those in the cache, which does not advance."""
        x_BPD = self._embed(self.model.embed_token(tokens_BNC), self._observed_at_time_BPD)
        normed_BPD, last = _norm(x_BPD, self.norms[0]), len(self.spatial) - 1
        for i in range(last):
            x_BPD, normed_BPD = self._finish(x_BPD, self.spatial[i](normed_BPD), 2 * i)
            x_BPD, normed_BPD = self._finish(x_BPD, self.temporal[i].observe(normed_BPD, cache.layer(i)), 2 * i + 1)
        _, normed_BPD = self._finish(x_BPD, self.spatial[last](normed_BPD), 2 * last)
        # Nobody reads what the last layer makes of it.
        self.temporal[last].write(normed_BPD, cache.layer(last))

    def _finish(self, x: Tensor, change: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """What follows an attention's ``change``: the MLP; x and its norm for the next half."""
        first, second = self.mlps[half]
        x, normed = self._add_norm(x, change, self.norms[2 * half + 1])
        return self._add_norm(x, second(first.with_gelu(normed)), self.norms[2 * half + 2])

    def _add_norm(self, x: Tensor, change: Tensor, weights: Norm) -> tuple[Tensor, Tensor]:
        if not self.kernels:
            return add_norm(x, change, weights)
        from magi.model.kernels import add_norm as norm_kernels

        return norm_kernels.add_norm(x, change, weights, EPSILON)

    def _embed(self, tokens_BND: Tensor, base_BPD: Tensor) -> Tensor:
        """Hidden states: position, time and conditions, and the token."""
        x_BPD = base_BPD.clone()
        conditions = self.model.conditioning.tokens
        x_BPD.unflatten(0, (self.halves, -1))[:, :, conditions:] += tokens_BND
        return x_BPD
