"""Measures what an autoencoder lets the future tell the past, and says so.

A model that continues a video is given the latents of the context. If those latents were cut out of the latents of the
whole clip, a leaky encoder would hand it the answer; so context is always encoded alone, and this module shows which
autoencoder would leak. It knows no adapter.
"""

from dataclasses import dataclass

import torch

from magi.vae.contract import VideoAutoencoder

CAUSAL_BELOW = 1e-3
"""Largest change, in units of the latents' deviation, that rounding can explain."""


@dataclass(frozen=True)
class Leak:
    """What changes in the first frames when all later ones are replaced."""

    context_frames: int
    context_latents: int
    encoder: float
    """Largest change of the first latents of the whole clip, in the units of the latents; 0 is causal."""
    decoder: int
    """Largest change of a pixel (0..255) of the first decoded frames; 0 is causal."""

    @property
    def leaks(self) -> bool:
        """Whether latents of the first frames depend on later frames."""
        return self.encoder > CAUSAL_BELOW


def measure_leak(vae: VideoAutoencoder, video_BTHWC: torch.Tensor, context_frames: int) -> Leak:
    """Replace the frames (for the decoder: the latents) after the first ``context_frames`` and compare the first ones.

    ``ValueError`` where the clip or its beginning have a length that the autoencoder cannot encode, or nothing is left.
    """
    frames, context_latents = video_BTHWC.shape[1], vae.latent_frames(context_frames)
    if not 0 < context_frames < frames:
        raise ValueError(f"context_frames {context_frames}: expected 1..{frames - 1} of a clip of {frames} frames")
    whole_BTCHW = vae.encode(video_BTHWC)
    # Another future altogether: the frames of the clip backwards, in negative.
    future_BTHWC = 255 - video_BTHWC[:, context_frames:].flip(1)
    other_BTCHW = vae.encode(torch.cat([video_BTHWC[:, :context_frames], future_BTHWC], dim=1))
    encoder = (whole_BTCHW - other_BTCHW)[:, :context_latents].abs().max().item()
    future_BTCHW = -whole_BTCHW[:, context_latents:].flip(1)
    decoded_BTHWC = vae.decode(whole_BTCHW)
    again_BTHWC = vae.decode(torch.cat([whole_BTCHW[:, :context_latents], future_BTCHW], dim=1))
    decoder = (decoded_BTHWC.int() - again_BTHWC.int())[:, :context_frames].abs().max().item()
    return Leak(context_frames, context_latents, encoder, int(decoder))
