"""Magi: patchify, embed, spatial-temporal blocks, diffusion head (paper section 3).

One ``forward`` for training; ``observe`` and ``predict`` for sampling. It knows no loss, no loop and no random state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magi.model.conditioning import Conditioning, Conditions, of_slots
from magi.model.diffusion_head import DiffusionHead
from magi.model.objectives.contract import make_objective
from magi.model.positions import interpolate_rows, sinusoidal_1d, sinusoidal_2d
from magi.model.teacher_forcing import ForcedSequence
from magi.model.temporal.contract import TemporalState
from magi.model.transformer import Transformer

if TYPE_CHECKING:
    from magi.config import LatentShape, ModelConfig

HEAD_ROWS = 128
"""In training the head's rows are padded with zeros to a multiple of this."""


class Magi(nn.Module):
    """The generator. Weights are drawn from ``generator`` (the global state if None).

    Raises ValueError if the latent size is not divisible by the patch size.
    """

    def __init__(self, config: ModelConfig, latent: LatentShape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        patch = config.patch_size
        if latent.height % patch or latent.width % patch:
            raise ValueError(
                f"latent size {latent.height}x{latent.width} is not divisible by model.patch_size {patch}; "
                "change data.height and data.width to multiples of VAE stride x patch size"
            )
        self.config, self.latent = config, latent
        self.rows, self.columns = latent.height // patch, latent.width // patch
        self.tokens_per_frame = self.rows * self.columns
        self.token_channels = latent.channels * patch**2
        width = config.width

        self.embed_token = nn.Linear(self.token_channels, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.conditioning = Conditioning(config)
        self.positions = self.conditioning.tokens + self.tokens_per_frame
        self.observation_position = nn.Parameter(torch.empty(self.positions, width))
        self.masked_position = nn.Parameter(torch.empty(self.positions, width))
        self.transformer = Transformer(config)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head_position = nn.Parameter(torch.empty(self.tokens_per_frame, width))
        outputs = make_objective(config).outputs_per_channel
        self.head = DiffusionHead(self.token_channels, width, config.head_width, config.head_blocks, outputs)

        space_ND = sinusoidal_2d(self.rows, self.columns, width)
        space_PD = torch.cat([torch.zeros(self.conditioning.tokens, width), space_ND])
        self.register_buffer("space_PD", space_PD, persistent=False)
        time_TD = sinusoidal_1d(config.frames, width)
        if config.temporal == "gated_linear":  # whose gates say what is earlier, at any length of a video
            time_TD = torch.zeros_like(time_TD)
        self.register_buffer("time_TD", time_TD, persistent=False)
        self.space_PD: Tensor
        self.time_TD: Tensor
        self.initialize_weights(generator)

    def initialize_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter, as MAR does."""
        # Linear layers: Xavier; biases: zero; norms: identity.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
        # Learned positions, the mask token and what reads the text: small, beside sinusoids of size 1.
        small = [self.mask_token, self.observation_position, self.masked_position, self.head_position]
        if self.conditioning.text is not None:
            small.append(self.conditioning.text.query_KD)
        for parameter in small:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        # What stands in a text: of size 1, as the sinusoids of its place, or texts would hardly differ.
        for table in self.conditioning.text.tables if self.conditioning.text is not None else ():
            nn.init.normal_(table.weight, generator=generator)
        # Modulation and output of the head: zero, so that every residual block starts as the identity.
        nn.init.zeros_(self.head.modulation.weight)
        nn.init.zeros_(self.head.output.weight)

    # Latents and tokens

    def patchify(self, latents_BTCHW: Tensor) -> Tensor:
        """Latents to tokens_BTNC, one token a patch."""
        patch = self.config.patch_size
        return rearrange(latents_BTCHW, "B T C (h p) (w q) -> B T (h w) (C p q)", p=patch, q=patch)

    def unpatchify(self, tokens_BTNC: Tensor) -> Tensor:
        """Inverse of ``patchify``."""
        patch = self.config.patch_size
        return rearrange(tokens_BTNC, "B T (h w) (C p q) -> B T C (h p) (w q)", h=self.rows, p=patch, q=patch)

    # Training

    def forward(
        self,
        sequence: ForcedSequence,
        conditions: Conditions,
        picked_M: Tensor,
        noisy_RMC: Tensor,
        timestep_RM: Tensor,
    ) -> Tensor:
        """What the objective has the head predict of the picked tokens; for DDPM noise and variance, (R, M, 2C).

        ``picked_M`` (long) names the M tokens whose noisy versions are given, as indices into the flattened (B, U, N)
        tokens of the predicted slots; all of them should be masked. Indices, because a device that looks for the true
        ones of a mask makes its host wait.
        """
        is_observation_S = torch.arange(len(sequence.time_S), device=sequence.time_S.device) < sequence.observations
        x_BSPD = self._embed(
            sequence.tokens_BSNC, sequence.masked_BSN, is_observation_S, sequence.time_S, conditions, sequence.time_S
        )
        x_BUPD = self.transformer(x_BSPD, sequence.attend, first_query=sequence.observations)
        z_MD = self._condition(x_BUPD).flatten(0, 2).index_select(0, picked_M)
        # A CPU keeps a compiled product for every number of rows it has met, gigabytes in all: so few numbers occur.
        rows, spare = len(z_MD), -len(z_MD) % HEAD_ROWS
        padded = self.head(
            F.pad(noisy_RMC, (0, 0, 0, spare)), F.pad(timestep_RM, (0, spare)), F.pad(z_MD, (0, 0, 0, spare))
        )
        return padded[:, :rows]

    # Sampling

    def new_cache(self, batch: int, frames: int) -> TemporalState:
        """An empty cache for ``frames`` latent frames of ``batch`` videos."""
        return self.transformer.new_state(batch * self.positions, frames, like=self.mask_token.detach())

    def observe(
        self,
        tokens_BTNC: Tensor,
        time_T: Tensor,
        conditions: Conditions,
        cache: TemporalState,
        masked_BTN: Tensor | None = None,
    ) -> None:
        """Append finished frames to the cache; frame i attends to the cache and to frames up to i.

        ``time_T`` are their positions in time, fractional ones allowed; ``conditions`` that vary by frame have a value
        for each of these frames. Under masked teacher forcing a finished frame takes the stream that predicted it, with
        nothing masked; ``masked_BTN`` hides tokens all the same, as training under it does.
        """
        frames = tokens_BTNC.shape[1]
        if masked_BTN is None:
            masked_BTN = torch.zeros(tokens_BTNC.shape[:3], dtype=torch.bool, device=tokens_BTNC.device)
        complete = self.config.teacher_forcing == "complete"
        is_observation_T = torch.full((frames,), complete, device=tokens_BTNC.device)
        x_BTPD = self._embed(tokens_BTNC, masked_BTN, is_observation_T, time_T, conditions)
        self.transformer.follow(x_BTPD, cache, finished=True)
        cache.advance(frames)

    def predict(
        self, tokens_BNC: Tensor, masked_BN: Tensor, time: Tensor, conditions: Conditions, cache: TemporalState
    ) -> Tensor:
        """z_BND of the frame being generated, given the cached frames; finished frames are only read.

        ``time`` () is the frame's position in time.
        """
        is_observation_T = torch.zeros(1, dtype=torch.bool, device=tokens_BNC.device)
        x_BTPD = self._embed(tokens_BNC[:, None], masked_BN[:, None], is_observation_T, time[None], conditions)
        return self._condition(self.transformer.follow(x_BTPD, cache, finished=False)).squeeze(1)

    # Both

    def _embed(
        self,
        tokens_BSNC: Tensor,
        masked_BSN: Tensor,
        is_observation_S: Tensor,
        time_S: Tensor,
        conditions: Conditions,
        frame_S: Tensor | None = None,
    ) -> Tensor:
        """Hidden states x_BSPD: condition tokens, then tokens or mask tokens, with positions and interval added.

        ``conditions`` that vary by frame have a value a slot, or a value a frame with ``frame_S``, the slots' frames.
        """
        x_BSND = torch.where(masked_BSN[..., None], self.mask_token, self.embed_token(tokens_BSNC))
        condition_BFKD, added_BFD = (of_slots(values, frame_S) for values in self.conditioning(conditions))
        condition_BSKD = condition_BFKD.expand(-1, x_BSND.shape[1], -1, -1)
        stream_SPD = torch.where(is_observation_S[:, None, None], self.observation_position, self.masked_position)
        time_SD = interpolate_rows(self.time_TD, time_S)
        position_SPD = stream_SPD + self.space_PD + time_SD[:, None]
        return torch.cat([condition_BSKD, x_BSND], dim=2) + position_SPD + added_BFD[:, :, None]

    def _condition(self, x_BTPD: Tensor) -> Tensor:
        """z_BTND, the diffusion head's condition for every token."""
        return self.norm(x_BTPD[:, :, self.conditioning.tokens :]) + self.head_position
