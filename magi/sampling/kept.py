"""What one generation made and the next one can use: buffers, recorded graphs, folded and packed weights (section 5).

Recording the graphs of the paper's model takes seconds, and they hold for every video of the same shapes, settings and
weights. It knows no frames and no loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion import ReverseTable
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser
from magi.sampling.fast_path import FastPath
from magi.sampling.history import History, time_positions

TOLD_ANEW = {"guidance", "guidance_schedule", "noise_level", "context_frames"}
"""Settings that reach what is recorded as inputs or not at all; only whether there is guidance counts."""
MOST_BYTES = 4 * 2**30
"""A larger cache is not kept: recording is little beside what its batch takes, and between calls memory is not ours."""
_cuda: Any = torch.backends.cuda  # its parts are replaced at run time
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Parts:
    """A past, the denoising loop, and the reverse steps of each iteration, by which the loop knows its graphs.

    They serve what has the same ``key``.
    """

    key: Hashable
    past: History
    denoiser: Denoiser
    tables: tuple[ReverseTable, ...]


class Kept:
    """The parts of the last generation, for one that can use them.

    Who takes parts has them alone until they are given back, so generations that run at the same time, in threads too,
    share nothing. One set is kept, with a cache of at most ``most_bytes`` (0 keeps nothing): parts that do not fit are
    freed before others are made. A copy keeps nothing yet.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        # A deque's appends and pops are each one step for all threads, and an append to a full one drops the old parts.
        self._shelf: deque[Parts] = deque(maxlen=1)

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        return Kept, (self.most_bytes,)

    def take(
        self,
        model: Magi,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
        config: SamplingConfig,
        tables: tuple[ReverseTable, ...],
    ) -> Parts:
        """Parts with an empty past, the kept ones if they fit; ``conditions`` are G x B of B ``generators``."""
        path = FastPath.of(model)
        key = _key(model, conditions, generators, frames, config, path) if self.most_bytes else None
        parts = self._fitting(key)
        if parts is not None:
            parts.past.begin(conditions, generators)
            return parts
        past = path.past(model, conditions, generators, frames, config)
        return Parts(key, past, path.denoiser(model, config), tables)

    def give_back(self, parts: Parts) -> None:
        """Keep parts that nobody uses any more; they must be whole: no pass over a frame was interrupted."""
        if self.most_bytes and parts.past.cache.stored.nbytes <= self.most_bytes:
            self._shelf.append(parts)

    def forget(self) -> None:
        """Free what is kept."""
        self._shelf.clear()

    def _fitting(self, key: Hashable) -> Parts | None:
        """The kept parts, no longer kept; None, and they are freed, if there are none for ``key``."""
        try:
            parts = self._shelf.pop()
        except IndexError:
            return None
        return parts if parts.key == key else None


def _key(
    model: Magi,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    frames: int,
    config: SamplingConfig,
    path: FastPath,
) -> Hashable:
    """All that parts depend on and are not told anew."""
    device = model.mask_token.device.type
    return (
        (id(model), model.config),  # the past holds the model, so nothing else has its number
        fingerprint([*model.parameters(), *model.buffers()]),
        replace(path, pool=None),
        (len(conditions.interval_B), len(generators)),
        tuple(time_positions(frames, model.config.frames, config).tolist()),
        tuple(config.model_dump(exclude=TOLD_ANEW).items()),
        # PyTorch's switches choose the operations that are recorded.
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.are_deterministic_algorithms_enabled(),
        (_cuda.matmul.fp32_precision, _cuda.matmul.allow_bf16_reduced_precision_reduction),
        _cuda.matmul.allow_fp16_reduced_precision_reduction,
        (_cuda.flash_sdp_enabled(), _cuda.mem_efficient_sdp_enabled()),
        (_cuda.math_sdp_enabled(), _cuda.cudnn_sdp_enabled()),
    )


def fingerprint(tensors: Sequence[Tensor]) -> Hashable:
    """Where tensors lie, how often autograd saw them change, and two sums of their bits.

    Fused optimizers and writes through ``parameter.data`` change values and no version, so versions are not enough. All
    is read, which takes as long as a few copies and room for the largest tensor's; the host waits once.
    """
    sums = torch.stack([one for tensor in tensors for one in _sums_of_bits(tensor)]).unflatten(0, (-1, 2)).tolist()
    versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]
    places = [(tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors]
    return tuple(zip(places, versions, map(tuple, sums), strict=True))


def _sums_of_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Of words: a changed one changes their sum, and those that change places the sum of running sums.

    Words have 64 bits, as these are summed fastest, or are the elements where they fill no whole number of such words.
    """
    flat = tensor.reshape(-1)
    together = 8 // flat.element_size()
    whole = flat.numel() % together == 0 and flat.storage_offset() % together == 0
    running = flat.view(torch.int64 if whole else WHOLE_NUMBERS[flat.element_size()]).cumsum(0)
    return running[-1:].sum(), running.sum()
