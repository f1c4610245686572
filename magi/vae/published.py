"""Sizes of the published autoencoders, known without their weights: what a plan and a dry run need.

Source: the model cards of Stable Diffusion 1.4, Cosmos Tokenizer CV4x8x8, OmniTokenizer and LTX-Video; an adapter reads
the same from its weights. It knows configs alone.
"""

from dataclasses import dataclass

from magi.config import DataConfig, LatentShape, VaeConfig
from magi.vae.omnitokenizer.shape import OmniShape, check_square


@dataclass(frozen=True)
class PublishedSize:
    """Channels of a latent, pixels of a side and frames that one covers; the first frame is a latent frame alone."""

    channels: int
    spatial_stride: int
    temporal_stride: int
    square_step: int = 0
    """Where frames must be squares, what divides their side; 0 where they need not."""

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip; ``ValueError`` for a number of frames that is not 1 plus whole strides."""
        if (frames - 1) % self.temporal_stride:
            fitting = 1 + round((frames - 1) / self.temporal_stride) * self.temporal_stride
            raise ValueError(
                f"data.frames {frames}: this autoencoder takes 1 + {self.temporal_stride} k frames; try {fitting}"
            )
        return 1 + (frames - 1) // self.temporal_stride


_OMNI = OmniShape()
PUBLISHED = {
    "sd": PublishedSize(channels=4, spatial_stride=8, temporal_stride=1),
    "cosmos": PublishedSize(channels=16, spatial_stride=8, temporal_stride=4),
    "omni": PublishedSize(_OMNI.channels, _OMNI.patch, _OMNI.temporal_patch, _OMNI.size_step),
    "ltx": PublishedSize(channels=128, spatial_stride=32, temporal_stride=8),
}


def published_size(config: VaeConfig) -> PublishedSize | None:
    """The size of a config's autoencoder; None for one whose size only its weights tell."""
    if config.name == "pixel":
        return PublishedSize(3 * config.pixel_stride**2, config.pixel_stride, temporal_stride=1)
    return PUBLISHED.get(config.name)


def published_latent(config: VaeConfig, data: DataConfig, patch: int) -> LatentShape | None:
    """The size of an encoded clip, None where ``published_size`` is; ``ValueError`` for one that cannot be encoded."""
    size = published_size(config)
    if size is None:
        return None
    stride = size.spatial_stride
    if data.height % (stride * patch) or data.width % (stride * patch):
        raise ValueError(
            f"data.height {data.height} x data.width {data.width}: both must be divisible by {stride * patch} "
            f"(stride {stride} of vae '{config.name}' x model.patch_size {patch})"
        )
    if size.square_step:
        check_square(data.height, data.width, size.square_step)
    return LatentShape(
        frames=size.latent_frames(data.frames),
        channels=size.channels,
        height=data.height // stride,
        width=data.width // stride,
    )
