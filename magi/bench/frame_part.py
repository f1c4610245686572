"""An evenly spread part of a frame's iterations, which both sides of a case can be timed on.

What an iteration costs depends on how many tokens it predicts and on its denoising steps, not on their values. So where
whole frames take long, a case times some iterations of each part of the frame, chosen so that they predict as many
tokens on average as all; the rest is not computed. What was chosen, and how near it is to the frame, is recorded.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from magi.sampling.denoise import padded_rows
from magi.sampling.generate import FramePlan


@dataclass(frozen=True)
class FramePart:
    """Some ``iterations`` (rising) of the ``frame``'s."""

    frame: FramePlan
    iterations: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the iterations of the frame: how many frames one run of the part counts for."""
        return len(self.iterations) / len(self.frame.counts)

    @cached_property
    def plan(self) -> FramePlan:
        """The part as the sampler takes it, with the counts, scales and steps that its iterations have in the frame."""
        frame = self.frame
        return FramePlan(
            counts=tuple(frame.counts[i] for i in self.iterations),
            scales=tuple(frame.scales[i] for i in self.iterations),
            tables=tuple(frame.tables[i] for i in self.iterations),
        )

    def order(self, order_BN: Tensor) -> Tensor:
        """The order of a whole frame with the tokens of these iterations first."""
        pieces = order_BN.split(list(self.frame.counts), dim=1)
        others = [i for i in range(len(pieces)) if i not in self.iterations]
        return torch.cat([pieces[i] for i in (*self.iterations, *others)], dim=1)

    def facts(self, videos: int) -> dict[str, object]:
        """Which iterations, and of them and of the frame the tokens and steps an iteration and the rows of the head."""
        return {
            "iterations": list(self.iterations),
            "of": len(self.frame.counts),
            "the part": _a_plan(self.plan, videos),
            "the frame": _a_plan(self.frame, videos),
        }


def _a_plan(plan: FramePlan, videos: int) -> dict[str, object]:
    count = len(plan.counts)
    rows = Counter(padded_rows(videos * tokens) for tokens in plan.counts)
    return {
        "tokens an iteration": sum(plan.counts) / count,
        "steps an iteration": sum(len(table) for table in plan.tables) / count,
        "share of iterations by rows of the head": {size: round(rows[size] / count, 3) for size in sorted(rows)},
    }


def frame_part(plan: FramePlan, every: int) -> FramePart:
    """One iteration of every ``every`` (of all, if there are fewer).

    Of each stretch it is the one that brings the tokens so far nearest to the share that they have in the frame; of
    several, the one nearest to the middle of the stretch.
    """
    counts, size = plan.counts, max(1, len(plan.counts) // every)
    chosen: list[int] = []
    tokens = 0
    for number in range(size):
        first, last = number * len(counts) // size, (number + 1) * len(counts) // size
        wanted, middle = sum(counts[:last]) * size / len(counts), (first + last - 1) / 2

        def distance(i: int, wanted: float = wanted - tokens, middle: float = middle) -> tuple[float, float]:
            return abs(counts[i] - wanted), abs(i - middle)

        chosen.append(min(range(first, last), key=distance))
        tokens += counts[chosen[-1]]
    return FramePart(plan, tuple(chosen))
