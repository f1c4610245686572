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


@dataclass(frozen=True)
class LayerWeights:
    """Layers of one attention and its MLP: linear ones, and parameters as ``F.layer_norm`` takes them."""

    norm: tuple[Tensor, Tensor]
    qkv: PackedLinear
    proj: PackedLinear
    mlp_norm: tuple[Tensor, Tensor]
    mlp_in: PackedLinear
    mlp_out: PackedLinear

    @staticmethod
    def spatial(block: nn.Module) -> LayerWeights:
        """Of a block's spatial half."""
        return _weights(block, "spatial")

    @staticmethod
    def temporal(block: nn.Module) -> LayerWeights:
        """Of a block's temporal half."""
        return _weights(block, "temporal")


def _weights(block: nn.Module, half: str) -> LayerWeights:
    def pair(name: str) -> tuple[Tensor, Tensor]:
        module = block.get_submodule(f"{half}_{name}")
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        return weight, bias

    def linear(name: str) -> PackedLinear:
        return PackedLinear(*pair(name))

    return LayerWeights(
        norm=pair("norm"),
        qkv=linear("attention.qkv"),
        proj=linear("attention.proj"),
        mlp_norm=pair("mlp_norm"),
        mlp_in=linear("mlp.0"),
        mlp_out=linear("mlp.2"),
    )


def _norm(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights, eps=EPSILON)


def _finish(x: Tensor, mixed: Tensor, w: LayerWeights) -> Tensor:
    """What follows the mixing of an attention: projection, residual, MLP, residual."""
    x = x + w.proj(mixed)
    return x + w.mlp_out(F.gelu(w.mlp_in(_norm(x, w.mlp_norm))))


def spatial_layer(x_BPD: Tensor, w: LayerWeights, heads: int) -> Tensor:
    """Full attention among P positions and the MLP."""
    q, k, v = w.qkv(_norm(x_BPD, w.norm)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return _finish(x_BPD, mixed.transpose(1, 2).reshape(x_BPD.shape), w)


def picked_spatial_layer(
    x_BPD: Tensor, w: LayerWeights, q_and_kv: tuple[PackedLinear, PackedLinear], heads: int, picked_BmD: Tensor
) -> Tensor:
    """``spatial_layer`` of the picked positions alone; ``q_and_kv`` is its ``qkv`` in two."""
    to_q, to_kv = q_and_kv
    normed = _norm(x_BPD, w.norm)
    k, v = to_kv(normed).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    q = to_q(normed.gather(1, picked_BmD)).unflatten(-1, (heads, -1)).transpose(1, 2)
    x_BmD = x_BPD.gather(1, picked_BmD)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return _finish(x_BmD, mixed.transpose(1, 2).reshape(x_BmD.shape), w)


def cached_attention(qkv_R3hd: Tensor, stored_RT2hd: Tensor) -> Tensor:
    """Attention of one new slot to T finished ones and itself: qkv (R, 3, heads, d), stored (R, T, 2, heads, d).

    One query a sequence: sums, not matrix products, and the new slot's own keys never move.
    """
    q, own_key, own_value = qkv_R3hd.unbind(1)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q = q.to(dtype) * q.shape[-1] ** -0.5
    past = (q[:, None] * stored_RT2hd[:, :, 0]).sum(-1)
    own = (q * own_key).sum(-1)
    weight = torch.cat([past, own[:, None]], dim=1).softmax(dim=1)[..., None]
    mixed = (weight[:, :-1] * stored_RT2hd[:, :, 1]).sum(1) + weight[:, -1] * own_value
    return mixed.to(qkv_R3hd.dtype)


class FramePass:
    """The passes of one frame after another, for videos told ``conditions`` (G x B of them: halves of guidance).

    With ``kernels`` the cache is read by a kernel, to which its length is a number on the device.
    """

    def __init__(self, model: Magi, conditions: Conditions, halves: int = 1, kernels: bool = False) -> None:
        self.model, self.halves, self.heads, self.kernels = model, halves, model.config.heads, kernels
        self.spatial = [LayerWeights.spatial(block) for block in model.transformer.blocks]
        self.temporal = [LayerWeights.temporal(block) for block in model.transformer.blocks]
        # Of the last block one pass needs the queries of few positions, the other no queries.
        self.last_spatial = self.spatial[-1].qkv.split(model.config.width)
        _, self.last_keys_and_values = self.temporal[-1].qkv.split(model.config.width)
        condition_BKD, added_BD = model.conditioning(conditions)
        tokens_BND = condition_BKD.new_zeros(len(added_BD), model.tokens_per_frame, added_BD.shape[-1])
        told_BPD = (torch.cat([condition_BKD, tokens_BND], dim=1) + model.space_PD + added_BD[:, None]).detach()
        complete = model.config.teacher_forcing == "complete"
        self._predicted_BPD = told_BPD + model.masked_position.detach()
        self._observed_BPD = told_BPD + (model.observation_position if complete else model.masked_position).detach()
        # What a captured graph reads stays where it is: a new frame is written over the last one.
        self._now_predicted_BPD = self._predicted_BPD.clone()
        self._now_observed_BPD = self._observed_BPD.clone()

    def place(self, time: Tensor) -> None:
        """Position in time () of the frame that the next passes are about."""
        (time_D,) = interpolate_rows(self.model.time_TD, time[None])
        torch.add(self._predicted_BPD, time_D, out=self._now_predicted_BPD)
        torch.add(self._observed_BPD, time_D, out=self._now_observed_BPD)

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor, cache: KVCache) -> Tensor:
        """z_GBmD of the picked tokens, given the unmasked ones and the frames in the cache."""
        tokens_BND = self.model.embed_token(tokens_BNC.to(self.model.mask_token.dtype))
        x_BPD = self._embed(
            torch.where(masked_BN[..., None], self.model.mask_token, tokens_BND), self._now_predicted_BPD
        )
        rows, last, width = len(x_BPD), len(self.spatial) - 1, x_BPD.shape[-1]
        picked_Bm = picked_Bm.repeat(self.halves, 1)
        position_Bm = picked_Bm + self.model.conditioning.tokens
        index_BmD = position_Bm[..., None].expand(-1, -1, width)
        first_B1 = torch.arange(rows, device=x_BPD.device)[:, None] * self.model.positions
        for i, spatial in enumerate(self.spatial):
            if i == last:
                x_BPD = picked_spatial_layer(x_BPD, spatial, self.last_spatial, self.heads, index_BmD)
            else:
                x_BPD = spatial_layer(x_BPD, spatial, self.heads)
            rows_M = (first_B1 + position_Bm).flatten() if i == last else None
            x_RD, _ = self._temporal_layer(x_BPD.flatten(0, 1), i, cache, rows_M)
            x_BPD = x_RD.unflatten(0, (rows, -1))
        z_BmD = _norm(x_BPD, (self.model.norm.weight, self.model.norm.bias)) + self.model.head_position[picked_Bm]
        return z_BmD.unflatten(0, (self.halves, -1))

    def observe(self, tokens_BNC: Tensor, cache: KVCache) -> None:
        """Write the keys and values of one finished frame after those in the cache, which does not advance."""
        x_BPD = self._embed(self.model.embed_token(tokens_BNC), self._now_observed_BPD)
        rows, last = len(x_BPD), len(self.spatial) - 1
        for i, spatial in enumerate(self.spatial):
            x_RD = spatial_layer(x_BPD, spatial, self.heads).flatten(0, 1)
            if i == last:  # nobody reads what the last layer makes of it
                new_R2hd = self._keys_and_values(x_RD)
            else:
                x_RD, new_R2hd = self._temporal_layer(x_RD, i, cache)
                x_BPD = x_RD.unflatten(0, (rows, -1))
            cache.stored[i].index_copy_(1, cache.length_1, new_R2hd[:, None])

    def _temporal_layer(
        self, x_RD: Tensor, layer: int, cache: KVCache, rows_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention along time and MLP of R positions (rows ``rows_M`` of the cache, or all); their keys and values."""
        w, stored_RT2hd = self.temporal[layer], cache.stored[layer]
        qkv_R3hd = w.qkv(_norm(x_RD, w.norm)).view(len(x_RD), 3, self.heads, -1)
        if self.kernels:
            from magi.model.cache_kernels import read_cache

            mixed = read_cache(qkv_R3hd, stored_RT2hd, cache.length_1, rows_M)
        else:
            known = stored_RT2hd[:, : cache.length]
            mixed = cached_attention(qkv_R3hd, known if rows_M is None else known[rows_M])
        return _finish(x_RD, mixed.reshape(x_RD.shape), w), qkv_R3hd[:, 1:]

    def _keys_and_values(self, x_RD: Tensor) -> Tensor:
        """Keys and values (R, 2, heads, d) of the last layer."""
        return self.last_keys_and_values(_norm(x_RD, self.temporal[-1].norm)).view(len(x_RD), 2, self.heads, -1)

    def _embed(self, tokens_BND: Tensor, base_BPD: Tensor) -> Tensor:
        """Hidden states: what a position is told, and its token."""
        x_BPD = base_BPD.clone()
        conditions = self.model.conditioning.tokens
        x_BPD.unflatten(0, (self.halves, -1))[:, :, conditions:] += tokens_BND
        return x_BPD
