"""Real clips that are spoilt on purpose: a measure that does not score them worse than the floor is blind to motion.

Three faults that leave single frames as they are: the frames in another order, the first frame all along, and twice the
interval. Each is done to the first clips of the floor set that it can be done to, and held against the floor of the
same clips unspoilt, the same number. Knows no networks, distances and models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magi.data.clips import clip_span
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.features import Pairs
from magi.evaluation.protocol.real_clips import RealClips, frozen, shuffled

CLIPS = 2048  # of a larger set, the first ones: each fault costs one more pass over them


@dataclass(frozen=True)
class SpoiltSet:
    """Clips with one fault: ``read(first, last)`` yields them; ``numbers`` are those of the rows that they are of."""

    numbers: tuple[int, ...]
    read: Callable[[int, int], Pairs]


def spoilt_sets(clips: RealClips, rows: Sequence[ClipRow], batch: int, fewest: int) -> dict[str, SpoiltSet | str]:
    """Name of the fault -> the spoilt clips, or one line that says why there are fewer than ``fewest`` of them."""
    interval = 2 * clips.protocol.interval
    span = clip_span(clips.protocol.frames, interval)
    every = tuple(range(len(rows)))
    long = tuple(number for number in every if clips.lengths[rows[number].video] >= span)

    def read_doubled(part: list[ClipRow], first: int) -> Pairs:
        yield from ((video, None) for video in clips.batches(part, batch, interval=interval))

    def read_shuffled(part: list[ClipRow], first: int) -> Pairs:
        numbers = iter(range(first, first + len(part)))
        for video in clips.batches(part, batch):
            yield shuffled(video, [next(numbers) for _ in video]), None

    def read_frozen(part: list[ClipRow], first: int) -> Pairs:
        yield from ((frozen(video), None) for video in clips.batches(part, batch))

    def spoilt(numbers: tuple[int, ...], read: Callable[[list[ClipRow], int], Pairs]) -> SpoiltSet | str:
        if len(numbers) < fewest:
            return f"{len(numbers)} of {len(rows)} clips are of videos with {span} frames, at least {fewest} are needed"
        numbers = numbers[:CLIPS]
        return SpoiltSet(numbers, lambda first, last: read([rows[k] for k in numbers[first:last]], first))

    return {
        "frames_shuffled": spoilt(every, read_shuffled),
        "first_frame_frozen": spoilt(every, read_frozen),
        "interval_doubled": spoilt(long, read_doubled),
    }
