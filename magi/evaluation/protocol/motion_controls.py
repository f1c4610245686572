"""Motion sanity checks: real clips that are corrupted on purpose, which a measure of video must score worse.

Three corruptions leave single frames as they are: the frames in another order, the first frame throughout, and twice
the interval. Each is applied to the first clips of the floor set that allow it, and compared with the floor of the same
number of the same clips as they were: a measure that scores them no worse is insensitive to motion. Knows no networks,
distances and models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from magi.data.clips import clip_span
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.features import Pairs
from magi.evaluation.protocol.real_clips import RealClips, frozen, shuffled

CLIPS = 2048  # of a larger set, the first ones: each corruption costs one more pass over them


@dataclass(frozen=True)
class CorruptedSet:
    """Clips with one corruption: ``read(first, last)`` yields them; ``numbers`` are those of their rows."""

    numbers: tuple[int, ...]
    read: Callable[[int, int], Pairs]


def corrupted_sets(clips: RealClips, rows: Sequence[ClipRow], batch: int, fewest: int) -> dict[str, CorruptedSet | str]:
    """Corruption -> its clips, or one line that says why there are fewer than ``fewest`` of them."""
    doubled = 2 * clips.protocol.interval
    span = clip_span(clips.protocol.frames, doubled)
    every = tuple(range(len(rows)))
    long = tuple(number for number in every if clips.lengths[rows[number].video] >= span)

    def corrupted(
        numbers: tuple[int, ...], corrupt: Callable[[Tensor, int], Tensor], interval: int = 0
    ) -> CorruptedSet | str:
        """``corrupt`` gets video_BTHWC and the number of its first clip."""
        if len(numbers) < fewest:
            return f"{len(numbers)} of {len(rows)} clips are of videos with {span} frames, at least {fewest} are needed"
        numbers = numbers[:CLIPS]

        def read(first: int, last: int) -> Pairs:
            videos = clips.batches([rows[k] for k in numbers[first:last]], batch, interval=interval)
            return ((corrupt(video, first + part * batch),) for part, video in enumerate(videos))

        return CorruptedSet(numbers, read)

    return {
        "frames_shuffled": corrupted(every, shuffled),
        "first_frame_frozen": corrupted(every, lambda video, first: frozen(video)),
        "interval_doubled": corrupted(long, lambda video, first: video, doubled),
    }
