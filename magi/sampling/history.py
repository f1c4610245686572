"""The finished frames as the model sees them: cache, positions in time, and growing longer than trained (section 5).

Knows the model's passes over a frame and which frames they are given; no masks, no denoising.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass
from magi.model.magi import Magi
from magi.sampling.cuda_graphs import Replayed
from magi.sampling.execution import Execution

LEAST_PICKED = 8


def time_positions(frames: int, trained: int, config: SamplingConfig) -> Tensor:
    """Positions in time of the frames that are in view together, on the CPU.

    Up to ``trained`` frames these are 0, 1, ... (long). More frames either share the trained range, every position
    interpolated (paper section 5: (frames,) float), or pass through a window of the trained length.
    """
    if frames > trained and config.longer == "interpolate":
        return torch.arange(frames, dtype=torch.float32) * (trained - 1) / (frames - 1)
    return torch.arange(min(frames, trained))


def observation_noise(model: Magi, noise_level: int) -> float:
    """Amplitude of the noise that belongs to a level: 0 for level 1, else the middle of the level's bucket."""
    if noise_level == 1:
        return 0.0
    return (noise_level - 0.5) / model.config.noise_levels * model.config.noise_max


class History:
    """The frames before the one being generated, of B videos under ``conditions`` (G x B: guidance doubles the batch).

    In "window" mode a full window slides: the newest ``window_keep`` frames are observed anew as a fresh context from
    position 0, so everything the model sees, it has seen in training, and the cost a frame stays the same for ever.
    ``generators`` (one a video) give the noise of observations at noise levels above 1; a frame's noise is drawn once.
    ``execution`` says how the passes over a frame run (the plain way if None); graphs share the memory of ``pool``.
    """

    def __init__(
        self,
        model: Magi,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
        config: SamplingConfig,
        execution: Execution | None = None,
        pool: Any = None,
    ) -> None:
        execution = execution or Execution.plain(model)
        self.model, self.keep = model, config.window_keep
        self.observes_anew = config.prompt_change == "observe_anew"
        self.halves = conditions.batch // len(generators)
        self.time_T = time_positions(frames, model.config.frames, config).to(model.mask_token.device)
        # The last frame in view is only ever predicted, so the cache needs no room for it.
        self.cache = model.new_cache(conditions.batch, len(self.time_T) - 1)
        self.frame_pass = FramePass(model, conditions.frame(0), self.halves, execution.kernels, execution.pass_products)
        self.padded = execution.graphs
        self._predict = Replayed(self.frame_pass.predict, pool, execution.graphs)
        self._observe = Replayed(self.frame_pass.observe, pool, execution.graphs)
        self.begin(conditions, generators)

    def begin(self, conditions: Conditions, generators: Sequence[torch.Generator]) -> None:
        """Forget everything, and start with other videos, as many as before: buffers and graphs stay."""
        videos, rows = len(generators), conditions.batch
        assert (rows, rows // videos) == (self.cache.rows // self.model.positions, self.halves)
        self.conditions, self.generators = conditions, generators
        self.amplitudes = [observation_noise(self.model, level) for level in conditions.noise_level_B[:videos].tolist()]
        self.recent_BTNC: Tensor | None = None
        self.finished = 0
        self.led: deque[dict[str, Tensor]] = deque(maxlen=self.cache.capacity)
        self.cache.clear()
        self.frame_pass.set_conditions(conditions.frame(0))
        self.frame_pass.set_time(self.time_T[0])

    @property
    def nbytes(self) -> int:
        """Memory of the cache."""
        return self.cache.nbytes

    def lead(self, values: Mapping[str, Tensor]) -> None:
        """What leads to the next frame, by field of ``Conditions``, instead of what the conditions say.

        One call a frame, from frame 0 on; those of a context come before it is observed.
        """
        self.led.append(dict(values))
        self._set_conditions(self.finished)
        self.frame_pass.set_time(self.time_T[self.cache.length])

    def observe_anew(self, values: Mapping[str, Tensor]) -> None:
        """Observe the frames in view once more, as if ``values`` had led to all frames until now.

        Their noise stays: where the values are what they were the cache is the same, up to rounding.
        """
        for led in self.led:
            led.update(values)
        if count := self.cache.length:
            assert self.recent_BTNC is not None
            self.cache.clear()
            self._observe_together(self.recent_BTNC[:, -count:])

    def observe(self, tokens_BTNC: Tensor) -> None:
        """Add finished frames, under the conditions that led to them.

        Of a first context longer than the window only the newest that fit are seen.
        """
        self.finished += tokens_BTNC.shape[1]
        if self.recent_BTNC is None:
            tokens_BTNC = tokens_BTNC[:, -self.cache.capacity :]
        tokens_BTNC = self._with_noise(tokens_BTNC)
        recent_BTNC = tokens_BTNC if self.recent_BTNC is None else torch.cat([self.recent_BTNC, tokens_BTNC], dim=1)
        # All that may be in view, where it may have to be observed anew.
        self.recent_BTNC = recent_BTNC[:, -(self.cache.capacity if self.observes_anew else self.keep) :]
        if self.cache.length + tokens_BTNC.shape[1] > self.cache.capacity:
            self.cache.clear()
            tokens_BTNC = self.recent_BTNC[:, -self.keep :]
        if tokens_BTNC.shape[1] == 1:
            self._set_frame(self.finished - 1, self.cache.length)
            self._observe(tokens_BTNC[:, 0], key=self._graph_key(), arguments=(self.cache,))
            self.cache.advance(1)
        else:
            self._observe_together(tokens_BTNC)
        self._set_frame(self.finished, self.cache.length)

    def _observe_together(self, tokens_BTNC: Tensor) -> None:
        """Add the newest finished frames after those in the cache."""
        first, count = self.cache.length, tokens_BTNC.shape[1]
        conditions = self.conditions.between(self.finished - count, self.finished)
        if self.led:
            newest = list(self.led)[-count:]
            changed: dict[str, Any] = {
                name: torch.stack([values[name] for values in newest], dim=1) for name in newest[0]
            }
            conditions = replace(conditions, **changed)
        self.model.observe(self._double(tokens_BTNC), self.time_T[first : first + count], conditions, self.cache)

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        """z_GBmD of the picked tokens of the next frame: G is 2 under guidance (with the label, then without), else 1.

        The next call of a graph overwrites it.
        """
        count = picked_Bm.shape[1]
        if self.padded:
            room = max(LEAST_PICKED, 1 << (count - 1).bit_length())
            picked_Bm = torch.nn.functional.pad(picked_Bm, (0, room - count))
        inputs = (tokens_BNC, masked_BN, picked_Bm)
        z_GBmD: Tensor = self._predict(*inputs, key=self._graph_key(), arguments=(self.cache,))
        return z_GBmD[:, :, :count]

    def _set_frame(self, number: int, position: int) -> None:
        """The next passes are about frame ``number`` of the video, at ``position`` of those in view."""
        if self.conditions.frames is not None:
            self._set_conditions(number)
        self.frame_pass.set_time(self.time_T[position])

    def _set_conditions(self, number: int) -> None:
        """Those of frame ``number``, with the newest values where some are given one by one."""
        changed: dict[str, Any] = self.led[-1] if self.led else {}
        self.frame_pass.set_conditions(replace(self.conditions.frame(number), **changed))

    def _graph_key(self) -> int:
        """Graphs are for one length of the cache, unless what they hold serves any."""
        return 0 if self.frame_pass.any_length else self.cache.length

    def _double(self, values: Tensor) -> Tensor:
        return torch.cat([values] * self.halves) if self.halves > 1 else values

    def _with_noise(self, tokens_BTNC: Tensor) -> Tensor:
        tokens_BTNC = tokens_BTNC.to(self.model.mask_token.dtype)
        if not any(self.amplitudes):
            return tokens_BTNC
        noise_BTNC = torch.zeros(tokens_BTNC.shape)
        for noise_TNC, amplitude, generator in zip(noise_BTNC, self.amplitudes, self.generators, strict=True):
            if amplitude:
                noise_TNC.copy_(amplitude * torch.randn(noise_TNC.shape, generator=generator))
        return tokens_BTNC + noise_BTNC.to(tokens_BTNC)
