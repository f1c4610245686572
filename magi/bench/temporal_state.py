"""Break-even of the temporal layers: a frame against frames in view, of a cache that grows and a state that does not.

Two models of one size, random weights, one video. A frame is its masked passes and its observation, as a sampler runs
them, without the head, which is the same for both. Beside it one temporal layer alone. It knows nothing of quality.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.models import in_format, paper_model, small_model
from magi.bench.runner import time_calls
from magi.bench.sampling import EXACT_LIMIT, filled_sampler, random_frame
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.temporal.kv_cache import KVCache
from magi.sampling.prepared import PreparedSampler

IN_VIEW = (16, 64, 256, 1024, 4096)
SMOKE_IN_VIEW = (3, 6)
PASSES = 4
"""Masked passes of a frame."""
FRAMES = 4
"""Frames that are timed together; so many more are in view at the end."""
SETTINGS = SamplingConfig(iterations=PASSES, steps=1, longer="interpolate")


class ViewedFrames:
    """A video with ``known`` frames in view, to which frames can be added and taken away again."""

    def __init__(self, model: Magi, known: int, settings: SamplingConfig = SETTINGS) -> None:
        cached = model.config.temporal == "softmax"
        # A cache is filled with random numbers; a state costs the same whatever it has seen.
        self.known, seen = known, known if cached else 0
        frames = known + FRAMES + 1
        self.sampler: PreparedSampler = filled_sampler(model, settings, 1, known=seen, frames=frames)
        self.tokens_BTNC = random_frame(self.sampler.model, 1)
        device, tokens = self.tokens_BTNC.device, model.tokens_per_frame
        self.masked_BN = torch.ones(1, tokens, device=device, dtype=torch.bool)
        self.picked_Bm = torch.arange(tokens // PASSES, device=device)[None]
        for _ in range(0 if cached else min(known, 3)):
            self.sampler.observe(self.tokens_BTNC)

    def again(self) -> None:
        """``known`` frames in view."""
        cache = self.sampler.history.cache
        if isinstance(cache, KVCache):
            cache.rewind(self.known)
        else:
            cache.length = self.known

    def add(self) -> None:
        """The passes and observations of ``FRAMES`` frames."""
        for _ in range(FRAMES):
            for _ in range(PASSES):
                self.sampler.masked_pass(self.tokens_BTNC[:, 0], self.masked_BN, self.picked_Bm)
            self.sampler.observe(self.tokens_BTNC)

    def layer_seconds(self, setting: Setting) -> float:
        """One temporal layer in a masked pass of all positions."""
        self.again()
        history = self.sampler.history
        mixer, layer = history.frame_pass.temporal[0], history.cache.layer(0)
        normed_BPD = random_positions(self.sampler.model)
        return time_calls(partial(mixer.predict, normed_BPD, layer), setting)


def random_positions(model: Magi) -> Tensor:
    """normed_BPD of one video."""
    weight = model.mask_token
    return torch.randn(1, model.positions, model.config.width, device=weight.device, dtype=weight.dtype)


def pass_parity(model: Magi, known: int) -> Parity:
    """In float32: a prepared pass after frames observed one by one, against the plain one after all at once."""
    exact = in_format(model, torch.float32)
    sampler = filled_sampler(exact, SETTINGS.changed(precision="fp32"), 1, known=0, frames=known + 1)
    tokens_BTNC = torch.cat([random_frame(exact, 1) for _ in range(known)], dim=1)
    for frame_BTNC in tokens_BTNC.split(1, dim=1):
        sampler.observe(frame_BTNC)
    history, masked_BN = sampler.history, torch.ones_like(tokens_BTNC[:, 0, :, 0], dtype=torch.bool)
    picked_Bm = torch.arange(exact.tokens_per_frame, device=masked_BN.device)[None]
    got_BND = sampler.masked_pass(tokens_BTNC[:, 0], masked_BN, picked_Bm)[0].clone()
    cache = exact.new_cache(1, known)
    exact.observe(tokens_BTNC, history.time_T[:known], history.conditions, cache)
    expected_BND = exact.predict(tokens_BTNC[:, 0], masked_BN, history.time_T[known], history.conditions, cache)
    allowed = EXACT_LIMIT[masked_BN.device.type]
    return Parity(f"float32 pass, {exact.config.temporal}", relative_error(got_BND, expected_BND), allowed)


def break_even_case(setting: Setting) -> PreparedCase:
    """A frame of the tiny model on a CPU, of two blocks of the paper's on a GPU; OURS has the state."""
    make: Callable[..., Magi] = partial(paper_model, setting, blocks=2)
    if setting.device.type == "cpu":
        make = partial(small_model, "smoke" if setting.smoke else "tiny", setting.device)
    linear, softmax = make(temporal="gated_linear"), make(temporal="softmax")
    lengths = SMOKE_IN_VIEW if setting.smoke else IN_VIEW
    sides = {OURS: ViewedFrames(linear, max(lengths))}
    sides |= {f"cache of {known} frames": ViewedFrames(softmax, known) for known in lengths}

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        longest = seconds[f"cache of {max(lengths)} frames"] / seconds[OURS]
        layers = {f"layer us, {name}": side.layer_seconds(setting) * 1e6 for name, side in sides.items()}
        return {"x longest cache": longest} | layers

    config, model = linear.config, sides[OURS].sampler.model
    return PreparedCase(
        tuple(Candidate(name, side.add, before=side.again) for name, side in sides.items()),
        check=lambda: tuple(pass_parity(model, min(lengths)) for model in (linear, softmax)),
        units=FRAMES,
        metrics=metrics,
        shapes={
            "frames in view": list(lengths),
            "bytes": {name: side.sampler.history.nbytes for name, side in sides.items()},
            "passes a frame": PASSES,
            "width": config.width,
            "blocks": config.blocks,
            "heads": config.heads,
            "state width": config.state_width,
            "positions": model.positions,
            "dtype": str(model.mask_token.dtype),
        },
    )
