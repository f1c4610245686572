"""One frame through the model with finished frames in the cache: what sampling runs again and again (section 5).

The same function as ``Magi.predict`` and ``Magi.observe`` of one frame, which are its reference, laid out for speed and
exact in what it leaves out: after the last spatial attention a token depends on its own position alone, so only the
picked tokens go on; a finished frame ends with the keys and values of the last temporal layer; embeddings that stay the
same over a video are added once. Nothing waits for the device. It knows no iterations and no denoising.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magi.model.kv_cache import KVCache
from magi.model.packed_linear import PackedLinear
from magi.model.positions import interpolate_rows

if TYPE_CHECKING:
    from magi.model.conditioning import Conditions
    from magi.model.magi import Magi

EPSILON = 1e-6

Norm = tuple[Tensor, Tensor]
"""Weight and bias, as ``F.layer_norm`` takes them."""


@dataclass(frozen=True)
class LayerWeights:
    """Layers of one attention and its MLP: linear ones and norms."""

    norm: Norm
    qkv: PackedLinear
    proj: PackedLinear
    mlp_norm: Norm
    mlp_in: PackedLinear
    mlp_out: PackedLinear

    @staticmethod
    def spatial(block: nn.Module, dtype: torch.dtype | None) -> LayerWeights:
        """Of a block's spatial half; products in ``dtype``, the weights' if None."""
        return _weights(block, "spatial", dtype)

    @staticmethod
    def temporal(block: nn.Module, dtype: torch.dtype | None) -> LayerWeights:
        """Of a block's temporal half."""
        return _weights(block, "temporal", dtype)


def _weights(block: nn.Module, half: str, dtype: torch.dtype | None) -> LayerWeights:
    def pair(name: str) -> Norm:
        module = block.get_submodule(f"{half}_{name}")
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        return weight, bias

    def linear(name: str) -> PackedLinear:
        return PackedLinear(*pair(name), dtype)

    return LayerWeights(
        norm=pair("norm"),
        qkv=linear("attention.qkv"),
        proj=linear("attention.proj"),
        mlp_norm=pair("mlp_norm"),
        mlp_in=linear("mlp.0"),
        mlp_out=linear("mlp.2"),
    )


def _norm(x: Tensor, weights: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights, eps=EPSILON)


def add_norm(x: Tensor, change: Tensor, weights: Norm) -> tuple[Tensor, Tensor]:
    """A residual sum, and the LayerNorm of it that the next layer reads."""
    x = x + change
    return x, _norm(x, weights)


def spatial_attention(normed_BPD: Tensor, w: LayerWeights, heads: int) -> Tensor:
    """Full attention among P positions, (B, P, D), before its projection.

    Nothing is copied: flash attention reads the heads where the linear layer put them, and writes them side by side.
    """
    q, k, v = w.qkv(normed_BPD).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(normed_BPD.shape)


def picked_spatial_attention(
    normed_BPD: Tensor, q_and_kv: tuple[PackedLinear, PackedLinear], heads: int, picked_BmD: Tensor
) -> Tensor:
    """``spatial_attention`` of the picked positions alone; ``q_and_kv`` is its ``qkv`` in two."""
    to_q, to_kv = q_and_kv
    k, v = to_kv(normed_BPD).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    q = to_q(normed_BPD.gather(1, picked_BmD)).unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(picked_BmD.shape)


def cached_attention(qkv_R3hd: Tensor, stored_RT2hd: Tensor) -> Tensor:
    """Attention of one new slot to T finished ones and itself: qkv (R, 3, heads, d), stored (R, T, 2, heads, d).

    One query a sequence: sums, not matrix products, and the new slot's own keys never move.
    """
    # One conversion of all three: operands of two formats are converted at every operation.
    dtype = torch.promote_types(qkv_R3hd.dtype, torch.float32)
    q, own_key, own_value = qkv_R3hd.to(dtype).unbind(1)
    q = q * q.shape[-1] ** -0.5
    past = (q[:, None] * stored_RT2hd[:, :, 0]).sum(-1)
    own = (q * own_key).sum(-1)
    weight = torch.cat([past, own[:, None]], dim=1).softmax(dim=1)[..., None]
    mixed = (weight[:, :-1] * stored_RT2hd[:, :, 1]).sum(1) + weight[:, -1] * own_value
    return mixed.to(qkv_R3hd.dtype)


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
        self.model, self.halves, self.heads, self.kernels = model, halves, model.config.heads, kernels
        self.spatial = [LayerWeights.spatial(block, dtype) for block in model.transformer.blocks]
        self.temporal = [LayerWeights.temporal(block, dtype) for block in model.transformer.blocks]
        norms = [*(half.norm for pair in zip(self.spatial, self.temporal, strict=True) for half in pair)]
        self.next_norms = [*norms[1:], (model.norm.weight, model.norm.bias)]
        # Of the last block one pass needs the queries of few positions, the other no queries.
        self.last_spatial = self.spatial[-1].qkv.split(model.config.width)
        _, self.last_keys_and_values = self.temporal[-1].qkv.split(model.config.width)
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

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor, cache: KVCache) -> Tensor:
        """z_GBmD of the picked tokens, given the unmasked ones and the frames in the cache."""
        tokens_BND = self.model.embed_token(tokens_BNC.to(self.model.mask_token.dtype))
        x_BPD = self._embed(
            torch.where(masked_BN[..., None], self.model.mask_token, tokens_BND), self._predicted_at_time_BPD
        )
        normed_BPD = _norm(x_BPD, self.spatial[0].norm)
        rows, last, width = len(x_BPD), len(self.spatial) - 1, x_BPD.shape[-1]
        picked_Bm = picked_Bm.repeat(self.halves, 1)
        position_Bm = picked_Bm + self.model.conditioning.tokens
        for i in range(last):
            x_BPD, normed_BPD = self._spatial_half(x_BPD, normed_BPD, i)
            x_BPD, normed_BPD, _ = self._temporal_half(x_BPD, normed_BPD, i, cache)
        index_BmD = position_Bm[..., None].expand(-1, -1, width)
        mixed_BmD = picked_spatial_attention(normed_BPD, self.last_spatial, self.heads, index_BmD)
        x_BmD, normed_BmD = self._finish(x_BPD.gather(1, index_BmD), mixed_BmD, 2 * last)
        rows_Bm = torch.arange(rows, device=x_BPD.device)[:, None] * self.model.positions + position_Bm
        _, normed_BmD, _ = self._temporal_half(x_BmD, normed_BmD, last, cache, rows_Bm.flatten())
        z_BmD = normed_BmD + self.model.head_position[picked_Bm]
        return z_BmD.unflatten(0, (self.halves, -1))

    def observe(self, tokens_BNC: Tensor, cache: KVCache) -> None:
        """Write the keys and values of one finished frame after those in the cache, which does not advance."""
        x_BPD = self._embed(self.model.embed_token(tokens_BNC), self._observed_at_time_BPD)
        normed_BPD, last = _norm(x_BPD, self.spatial[0].norm), len(self.spatial) - 1
        for i in range(len(self.spatial)):
            x_BPD, normed_BPD = self._spatial_half(x_BPD, normed_BPD, i)
            if i == last:  # nobody reads what the last layer makes of it
                new_R2hd = self.last_keys_and_values(normed_BPD.flatten(0, 1)).view(-1, 2, *cache.stored.shape[-2:])
            else:
                x_BPD, normed_BPD, new_R2hd = self._temporal_half(x_BPD, normed_BPD, i, cache)
            cache.stored[i].index_copy_(1, cache.length_1, new_R2hd[:, None].to(cache.stored.dtype))

    def _spatial_half(self, x_BPD: Tensor, normed_BPD: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Attention among positions and MLP; x and its norm for the next half."""
        mixed_BPD = spatial_attention(normed_BPD, self.spatial[block], self.heads)
        return self._finish(x_BPD, mixed_BPD, 2 * block)

    def _temporal_half(
        self, x_BPD: Tensor, normed_BPD: Tensor, block: int, cache: KVCache, rows_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention along time and MLP of R = B x P positions (rows ``rows_M`` of the cache, or all of them).

        x, its norm for the next half, and the positions' keys and values (R, 2, heads, d).
        """
        stored_RT2hd = cache.stored[block]
        qkv_R3hd = self.temporal[block].qkv(normed_BPD.flatten(0, 1)).view(-1, 3, *stored_RT2hd.shape[-2:])
        if self.kernels:
            from magi.model.kernels.cache_attention import read_cache

            mixed = read_cache(qkv_R3hd, stored_RT2hd, cache.length_1, rows_M)
        else:
            known = stored_RT2hd[:, : cache.length]
            mixed = cached_attention(qkv_R3hd, known if rows_M is None else known[rows_M])
        return *self._finish(x_BPD, mixed.view(x_BPD.shape), 2 * block + 1), qkv_R3hd[:, 1:]

    def _finish(self, x: Tensor, mixed: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """What follows the mixing of an attention: projection and MLP; x and its norm for the next half."""
        w = (self.temporal if half % 2 else self.spatial)[half // 2]
        x, normed = self._add_norm(x, w.proj(mixed), w.mlp_norm)
        return self._add_norm(x, w.mlp_out(w.mlp_in.with_gelu(normed)), self.next_norms[half])

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
