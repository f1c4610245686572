"""The denoising loop: tokens from their conditions, for all steps of an iteration at once (paper sections 4 and 5).

``denoise_tokens`` is the one function; ``Denoiser`` chooses how it runs. It knows no frames and no transformer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    x_MC = noise_IMC[0]
    noise_IMC = noise_IMC * temperature
    if time_IW is None:
        time_IW = head.embed_time(table.timesteps.to(z_GMD.device))
    for chunk in _chunks(head, z_GMD, len(table)):
        time_I11W = time_IW[chunk[-1] : chunk[0] + 1].flip(0)[:, None, None]
        modulations_I = head.modulations(time_I11W, z_GMD[None]).unbind()
        for index, modulations in zip(chunk, modulations_I, strict=True):
            prediction_GMC = head.denoise(x_MC.to(z_GMD.dtype), modulations).to(x_MC.dtype)
            x_MC = table.step(index, x_MC, prediction_GMC, scale, noise_IMC[index])
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
        self.graph = Replayed(self._run, pool) if graphs else None
        self.padded = graphs
        self._steps: dict[int, _Steps] = {}

    def __call__(self, z_GMD: Tensor, noise_IMC: Tensor, table: ReverseSteps, scale: Tensor) -> Tensor:
        """Tokens x_MC; ``scale`` () of the guidance. A graph's next call overwrites them."""
        rows = z_GMD.shape[1]
        if self.padded:
            z_GMD, noise_IMC = _padded(z_GMD), _padded(noise_IMC)
        # Before the recording: what comes from the host does not belong in a graph.
        steps = self._prepared(z_GMD.device, table)
        if self.graph is None:
            return self._run(z_GMD, noise_IMC, scale, steps)[:rows]
        x_MC = self.graph(z_GMD, noise_IMC, scale, key=id(table), arguments=(steps,))
        assert x_MC is not None
        return x_MC[:rows]

    def _run(self, z_GMD: Tensor, noise_IMC: Tensor, scale: Tensor, steps: "_Steps") -> Tensor:
        return denoise_tokens(self.head, z_GMD, noise_IMC, steps.table, scale, self.temperature, steps.time_IW)

    def _prepared(self, device: torch.device, table: ReverseSteps) -> "_Steps":
        """What does not depend on tokens, computed once a table."""
        if id(table) not in self._steps:
            self._steps[id(table)] = _Steps(table, self.head.embed_time(table.timesteps.to(device)).detach())
        return self._steps[id(table)]


@dataclass(frozen=True)
class _Steps:
    """A table of reverse steps (held, so that its ``id`` stays its own) with its timesteps embedded."""

    table: ReverseSteps
    time_IW: Tensor


def _padded(values: Tensor) -> Tensor:
    """Rows (the last axis but one) up to a number that graphs are recorded for."""
    rows = values.shape[-2]
    return F.pad(values, (0, 0, 0, padded_rows(rows) - rows))
