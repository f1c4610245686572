"""The sizes of OmniTokenizer's continuous autoencoder.

Source: Wang et al., "OmniTokenizer", 2024, and the flags of its released training scripts (KL variant). The defaults
are those of the released K600 and UCF weights. This module knows no tensors.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from magi.config import Section

PIXEL_CHANNELS = 3


class OmniShape(Section):
    """What ``config.json`` holds: the architecture."""

    name: Literal["omni"] = "omni"
    channels: int = Field(8, ge=1, le=1024, description="channels of a latent")
    patch: int = Field(8, ge=1, le=64, description="pixels of a side of a patch; also the spatial stride")
    temporal_patch: int = Field(4, ge=1, le=64, description="frames of a patch, after the first frame, which is alone")
    width: int = Field(512, ge=2, le=8192, description="channels of a token")
    heads: int = Field(8, ge=1, le=256, description="attention heads")
    head_width: int = Field(64, ge=4, le=1024, description="channels of a head in full attention")
    encoder_blocks: str = Field(
        "ttww", pattern="^[tw]{1,64}$", description="spatial layers: t full, w window attention"
    )
    decoder_blocks: str = Field("tttt", pattern="^[tw]{1,64}$", description="spatial layers of the decoder")
    temporal_depth: int = Field(4, ge=1, le=64, description="layers of each of the two temporal transformers")
    window: int = Field(8, ge=1, le=64, description="patches of a side of an attention window")
    source_sha256: str = Field("", description="of the released checkpoint that the weights were imported from")

    @property
    def feed_forward_width(self) -> int:
        """Width inside a feed-forward: 4 x 2/3 of the token's, truncated (1365 for 512)."""
        return int(4.0 * (2.0 / 3.0) * self.width)

    @property
    def first_patch_values(self) -> int:
        """Numbers in a patch of the first frame."""
        return PIXEL_CHANNELS * self.patch**2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch of the frames after the first."""
        return self.temporal_patch * self.first_patch_values

    @property
    def size_step(self) -> int:
        """What height and width in pixels must be divisible by: a patch, times a window where windows occur."""
        return self.patch * (self.window if "w" in self.encoder_blocks + self.decoder_blocks else 1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head_width % 4:
            raise ValueError(
                f"head_width {self.head_width} must be a multiple of 4, for rotations by row and by column"
            )
        if "w" in self.encoder_blocks + self.decoder_blocks and self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}, for window attention")
        return self
