"""Which clips a step trains on: a pure function of the step, so that a run resumes from one integer.

Step s (0, 1, ...) of a run with batch B takes the sample numbers s B .. s B + B - 1; process r of W takes every W-th of
them from the r-th on. What a sample number means (video, start, interval) is the dataset's own pure function. Nothing
here has state, so the order is the same for any number of loader workers and processes.
"""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


def step_samples(step: int, batch: int, rank: int = 0, world: int = 1) -> range:
    """Sample numbers of one process in one step, counted from 0."""
    return range(step * batch + rank, (step + 1) * batch, world)


def micro_batches(samples: Sequence[int], micro_batch: int) -> list[list[int]]:
    """A process's samples of a step cut into forward passes of ``micro_batch`` clips (0: all at once)."""
    size = micro_batch or len(samples)
    return [list(samples[start : start + size]) for start in range(0, len(samples), size)]


class StepBatchSampler(Sampler[list[int]]):
    """The micro-batches of the steps ``first`` .. ``last`` - 1, one after another, for a ``DataLoader``."""

    def __init__(self, first: int, last: int, batch: int, micro_batch: int, rank: int = 0, world: int = 1) -> None:
        if batch < world:
            raise ValueError(
                f"training.batch {batch} is below the number of processes {world}; raise it or use fewer processes"
            )
        self.first, self.last = first, last
        self.batch, self.micro_batch, self.rank, self.world = batch, micro_batch, rank, world

    def of_step(self, step: int) -> list[list[int]]:
        """The micro-batches of this process in one step."""
        return micro_batches(step_samples(step, self.batch, self.rank, self.world), self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            yield from self.of_step(step)

    def __len__(self) -> int:
        return (self.last - self.first) * len(self.of_step(0))
