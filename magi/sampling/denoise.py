"""The denoising loop: tokens from their conditions, for all steps of an iteration at once (paper sections 4 and 5).

``denoise_tokens`` is the one function; ``Denoiser`` chooses how it runs. It knows no frames and no transformer.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magi.model.diffusion_head import DiffusionHead, FoldedHead
from magi.model.objectives.contract import ReverseSteps
from magi.sampling.cuda_graphs import Replayed

MODULATION_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Modulations of the head are computed for as many denoising steps at once as fit in this."""

LEAST_ROWS, MOST_ROWS = 8, 128


def draw_noise(generators: Sequence[torch.Generator], steps: int, count: int, channels: int) -> Tensor:
    """All noise of an iteration, (steps, M, C) with M = B * count: one draw a video."""
    noise = [torch.randn(steps, count, channels, generator=generator) for generator in generators]
    return torch.stack(noise, dim=1).flatten(1, 2)


def denoise_tokens(
    head: DiffusionHead | FoldedHead,
    z_GMD: Tensor,
    noise_IMC: Tensor,
    table: ReverseSteps,
    scale: float | Tensor,
    temperature: float,
    time_IW: Tensor | None = None,
) -> Tensor:
    """The denoising loop: tokens x_MC given their conditions.

    Row 0 of the noise is the start, row i the noise of reverse step i. With G = 2 (with the label, then without) the
    halves share x_t and noise, and ``scale`` guides. ``time_IW`` are the table's timesteps, embedded by the head, if
    they are known.
    """
    scaled_IMC = noise_IMC * temperature
    x_MC = table.start(noise_IMC[0], scaled_IMC[0])
    if time_IW is None:
        time_IW = head.embed_time(table.timesteps.to(z_GMD.device))
    for chunk in _chunks(head, z_GMD, len(table)):
        time_I11W = time_IW[chunk[-1] : chunk[0] + 1].flip(0)[:, None, None]
        modulations_I = head.modulations(time_I11W, z_GMD[None]).unbind()
        for index, modulations in zip(chunk, modulations_I, strict=True):
            prediction_GMC = head.denoise(x_MC.to(z_GMD.dtype), modulations).to(x_MC.dtype)
            x_MC = table.step(index, x_MC, prediction_GMC, scale, scaled_IMC[index])
    return x_MC


def _chunks(head: DiffusionHead | FoldedHead, z_GMD: Tensor, steps: int) -> Iterator[list[int]]:
    """Step indices from the last to 0, in pieces whose modulations fit in ``MODULATION_BYTES``."""
    bytes_a_step = z_GMD.shape[0] * z_GMD.shape[1] * head.modulation_width * z_GMD.element_size()
    size = max(1, MODULATION_BYTES[z_GMD.device.type] // bytes_a_step)
    indices = list(range(steps - 1, -1, -1))
    return (indices[start : start + size] for start in range(0, steps, size))


def padded_rows(rows: int) -> int:
    """Rows that a graph is recorded for: a power of two, then multiples of ``MOST_ROWS``, so there are few graphs."""
    if rows >= MOST_ROWS:
        return -(-rows // MOST_ROWS) * MOST_ROWS
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


class Denoiser:
    """``denoise_tokens`` of one head with the weights it has now, fused; with ``graphs`` all steps are one CUDA graph.

    ``dtype`` is that of the head's products (the head's own if None). Rows are independent, so those that pad a graph's
    inputs change nothing; ``padded`` says whether they are there.
    """

    def __init__(
        self,
        head: DiffusionHead,
        temperature: float,
        dtype: torch.dtype | None = None,
        graphs: bool = False,
        pool: Any = None,
    ) -> None:
        self.head, self.temperature = FoldedHead(head, dtype), temperature
        self._replayed, self.padded = Replayed(self._run, pool, graphs), graphs
        self._time: dict[ReverseSteps, Tensor] = {}

    def __call__(self, z_GMD: Tensor, noise_IMC: Tensor, table: ReverseSteps, scale: Tensor) -> Tensor:
        """Tokens x_MC; ``scale`` () of the guidance. A graph's next call overwrites them."""
        rows = z_GMD.shape[1]
        if self.padded:
            z_GMD, noise_IMC = _padded(z_GMD), _padded(noise_IMC)
        if table not in self._time:  # before the recording: what comes from the host does not belong in a graph
            self._time[table] = self.head.embed_time(table.timesteps.to(z_GMD.device)).detach()
        x_MC: Tensor = self._replayed(z_GMD, noise_IMC, scale, key=table, arguments=(table, self._time[table]))
        return x_MC[:rows]

    def _run(self, z_GMD: Tensor, noise_IMC: Tensor, scale: Tensor, table: ReverseSteps, time_IW: Tensor) -> Tensor:
        return denoise_tokens(self.head, z_GMD, noise_IMC, table, scale, self.temperature, time_IW)


def _padded(values: Tensor) -> Tensor:
    """Rows (the last axis but one) up to a number that graphs are recorded for."""
    rows = values.shape[-2]
    return F.pad(values, (0, 0, 0, padded_rows(rows) - rows))
