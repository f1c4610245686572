"""Decoding with the Cosmos tokenizer latent by latent: the decoder of diffusers with a cache of the past.

The decoder is causal: a convolution over time looks at two earlier frames, attention over time at all of them. Here
each of those layers keeps what the next chunk needs, so that a chunk costs its own frames and the joined chunks are
what the whole clip gives. It knows the decoder's layers and no video.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class CosmosStream:
    """One video, or one batch of them, decoded chunk by chunk; streams of one network share no state."""

    def __init__(self, network: Any) -> None:
        """``network`` is an AutoencoderKLCosmos; its weights are shared, not copied."""
        weights = {id(tensor): tensor for tensor in (*network.decoder.parameters(), *network.decoder.buffers())}
        self._decoder = copy.deepcopy(network.decoder, weights)
        self._post_quant_conv = network.post_quant_conv
        _add_caches(self._decoder)

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """images_BCTHW of the next latents in the network's units; the very first latent frame gives one frame."""
        images_BCTHW: Tensor = self._decoder(self._post_quant_conv(latents_BCTHW))
        return images_BCTHW


def _add_caches(module: nn.Module) -> None:
    """Give every layer under ``module`` that looks along time a cache."""
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos

    for name, child in module.named_children():
        if isinstance(child, cosmos.CosmosCausalConv3d) and child.temporal_pad:
            setattr(module, name, _CachedCausalConv(child))
        elif isinstance(child, cosmos.CosmosUnpatcher3d):
            setattr(module, name, _StreamingUnpatcher(child))
        elif isinstance(child, cosmos.CosmosUpsample3d) and child.temporal_upsample:
            _add_caches(child)
            setattr(module, name, _StreamingUpsample(child))
        else:
            if isinstance(child, cosmos.CosmosCausalAttention) and isinstance(
                child.processor, cosmos.CosmosTemporalAttentionProcessor2_0
            ):
                child.processor = _CachedAttention(child.processor)
            _add_caches(child)


class _CachedCausalConv(nn.Module):
    """A causal convolution whose padding in front is the end of the last chunk instead of copies of the first frame."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        assert conv.stride[0] == 1, "a stride in time needs a cache of its own"
        self.conv = conv
        self.past_BCTHW: Tensor | None = None

    def forward(self, hidden_BCTHW: Tensor) -> Tensor:
        conv, pad = self.conv, self.conv.temporal_pad
        past_BCTHW = self.past_BCTHW
        if past_BCTHW is None:
            past_BCTHW = hidden_BCTHW[:, :, :1].expand(-1, -1, pad, -1, -1)
        hidden_BCTHW = torch.cat([past_BCTHW, hidden_BCTHW], dim=2)
        self.past_BCTHW = hidden_BCTHW[:, :, -pad:].clone()
        padded_BCTHW = nn.functional.pad(hidden_BCTHW, (*conv.spatial_pad, 0, 0), mode=conv.pad_mode, value=0.0)
        return nn.Conv3d.forward(conv, padded_BCTHW)


class _CachedAttention:
    """Attention over time that sees the inputs of earlier chunks before those of its own."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.past_BCTHW: Tensor | None = None

    def __call__(self, attention: Any, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        new = hidden_states.shape[2]
        if self.past_BCTHW is not None:
            hidden_states = torch.cat([self.past_BCTHW, hidden_states], dim=2)
        self.past_BCTHW = hidden_states
        frames = hidden_states.shape[2]
        past_or_now_TT = torch.ones(frames, frames, dtype=torch.bool, device=hidden_states.device).tril()
        seen_BCTHW: Tensor = self.processor(attention, hidden_states=hidden_states, attention_mask=past_or_now_TT)
        return seen_BCTHW[:, :, -new:]


class _StreamingUpsample(nn.Module):
    """Every frame twice, but the very first of the video once; the layer's convolution has its own cache."""

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.upsample = upsample
        self.begun = False

    def forward(self, hidden_BCTHW: Tensor) -> Tensor:
        twice = []
        for frame_BCTHW in hidden_BCTHW.split(1, dim=2):  # NOTE: given one frame alone, the layer does not repeat it
            twice += [self.upsample(frame_BCTHW) for _ in range(2 if self.begun else 1)]
            self.begun = True
        return torch.cat(twice, dim=2)


class _StreamingUnpatcher(nn.Module):
    """The first latent frame makes one frame, each later one ``patch_size``: only the first chunk loses frames."""

    def __init__(self, unpatcher: Any) -> None:
        super().__init__()
        self.unpatcher = unpatcher
        self.begun = False

    def forward(self, hidden_BCTHW: Tensor) -> Tensor:
        new = hidden_BCTHW.shape[2] * self.unpatcher.patch_size
        if self.begun:  # NOTE: the unpatcher cuts the first frames of whatever it is given, so it gets some to cut
            hidden_BCTHW = torch.cat([hidden_BCTHW[:, :, :1], hidden_BCTHW], dim=2)
        begun, self.begun = self.begun, True
        images_BCTHW: Tensor = self.unpatcher(hidden_BCTHW)
        return images_BCTHW[:, :, -new:] if begun else images_BCTHW
