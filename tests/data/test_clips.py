"""A clip is a pure function of (seed, sample number), and its frames are the ones that its draw names."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from magi.config import DataConfig
from magi.data.clips import Clip, ClipDataset, ClipSampler, clip_span, draw_clip, epoch_order, fit_frames, read_clip
from magi.data.index.index import VideoIndex, open_index
from magi.data.video_writer import write_mp4
from magi.errors import DataError
from tests.fakes.numbered_videos import HEIGHT, WIDTH, number_in
from tests.fakes.numbered_videos import write as write_numbered

LENGTHS = (40, 70, 5, 120)
CONFIG = DataConfig(frames=4, height=32, width=64, interval_min=1, interval_max=25)


def numbered_video(length: int) -> np.ndarray:
    """Eight bars, the bits of the frame number."""
    bits_TN = np.arange(length)[:, None] >> np.arange(8) & 1
    bars_TW = np.repeat(bits_TN * 200 + 20, 8, axis=1).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(bars_TW[:, None, :, None], (length, 32, 64, 3)))


def numbers_in(video_THWC: np.ndarray) -> list[int]:
    bars_TN = video_THWC[:, 16, 4::8].mean(-1)
    return [sum(1 << bit for bit, bar in enumerate(bars_N) if bar > 120) for bars_N in bars_TN]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    """Videos of 40, 70, 5 and 120 frames, in classes a and b."""
    root = tmp_path_factory.mktemp("clips")
    for number, length in enumerate(LENGTHS):
        path = root / "ab"[number // 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_mp4(path, numbered_video(length), 25)
    return open_index(DataConfig(root=str(root), workers=1))


def test_the_frames_of_a_clip_are_the_right_frames(index: VideoIndex) -> None:
    dataset = ClipDataset(index, CONFIG, seed=3)
    for sample in range(40):
        clip, draw = dataset[sample], dataset.draws.draw(sample)
        assert numbers_in(clip.video_THWC) == [draw.start + draw.interval * frame for frame in range(4)]
        assert (clip.interval, clip.label, clip.sample) == (draw.interval, index.videos[draw.video].label, sample)
        assert clip.video_THWC.shape == (4, 32, 64, 3) and clip.video_THWC.dtype == np.uint8


def test_a_clip_depends_on_seed_and_sample_number_alone(index: VideoIndex) -> None:
    first, again, other = (ClipDataset(index, CONFIG, seed) for seed in (3, 3, 4))
    backwards = {sample: again[sample] for sample in reversed(range(12))}
    for sample in range(12):
        assert np.array_equal(first[sample].video_THWC, backwards[sample].video_THWC)
    assert [first.draws.draw(s) for s in range(50)] != [other.draws.draw(s) for s in range(50)]


class _Numbers:
    """A stateless sampler of given sample numbers, far beyond one epoch."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _as_list(clips: list[Clip]) -> list[Clip]:
    return clips


def test_the_order_is_the_same_for_any_number_of_workers(index: VideoIndex) -> None:
    dataset = ClipDataset(index, CONFIG, seed=3)
    numbers = list(range(1000, 1012))

    def load(workers: int) -> list[Clip]:
        loader = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=3,
            sampler=_Numbers(numbers),
            num_workers=workers,
            collate_fn=_as_list,
        )
        return list(chain.from_iterable(loader))

    alone, shared = load(0), load(2)
    assert [clip.sample for clip in alone] == [clip.sample for clip in shared] == numbers
    for one, two in zip(alone, shared, strict=True):
        assert (one.interval, one.label) == (two.interval, two.label)
        assert np.array_equal(one.video_THWC, two.video_THWC)


def test_every_epoch_visits_every_long_enough_video_once_in_a_new_order() -> None:
    draws = ClipSampler(range(1, 101), CONFIG, seed=0)
    assert draws.too_short == 3 and len(draws) == 97
    epochs = [[draws.draw(97 * epoch + place).video for place in range(97)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(3, 100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_an_epochs_order_is_drawn_once_and_cannot_be_written_to() -> None:
    order_V = epoch_order(0, 5, 50)
    assert epoch_order(0, 5, 50) is order_V
    with pytest.raises(ValueError, match="read-only"):
        order_V[0] = 1


@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(1, 20),
    smallest=st.integers(1, 10),
    more=st.integers(0, 20),
    spare=st.integers(0, 300),
    sample=st.integers(0, 10**9),
)
def test_a_drawn_clip_fits_its_video(frames: int, smallest: int, more: int, spare: int, sample: int) -> None:
    config = DataConfig(frames=frames, interval_min=smallest, interval_max=smallest + more)
    length = clip_span(frames, smallest) + spare
    draw = draw_clip(1, sample, 0, length, config)
    assert smallest <= draw.interval <= smallest + more
    assert 0 <= draw.start <= length - clip_span(frames, draw.interval)


def test_interval_and_start_are_uniform_in_what_fits() -> None:
    """A video of 16 frames holds four frames at intervals 1 to 5; chi-squared of 4 and 12 degrees, p = 0.001."""
    draws = [draw_clip(0, sample, 0, 16, CONFIG) for sample in range(5000)]
    intervals = Counter(draw.interval for draw in draws)
    assert sorted(intervals) == [1, 2, 3, 4, 5]
    assert sum((count - 1000) ** 2 / 1000 for count in intervals.values()) < 18.5
    starts = Counter(draw.start for draw in draws if draw.interval == 1)
    expected = intervals[1] / 13
    assert sorted(starts) == list(range(13))
    assert sum((count - expected) ** 2 / expected for count in starts.values()) < 32.9


def test_interval_and_start_do_not_follow_the_sample_number_or_each_other() -> None:
    draws = [draw_clip(0, sample, 0, 1000, CONFIG) for sample in range(2000)]
    together = np.corrcoef([[draw.interval for draw in draws], [draw.start for draw in draws], range(2000)])
    assert np.abs(together - np.eye(3)).max() < 0.08


def test_short_videos_are_left_out_and_none_left_is_an_error(index: VideoIndex) -> None:
    dataset = ClipDataset(index, replace_config(frames=16), seed=0)
    assert dataset.too_short == 1 and len(dataset) == 3
    with pytest.raises(DataError) as caught:
        ClipDataset(index, replace_config(frames=16, interval_min=9), seed=0)
    for part in ("16 frames at interval 9", "136 frames", "longest of 4 videos has 120", "data.frames"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="longest of 0 videos has 0"):
        ClipSampler([], CONFIG, 0)


def replace_config(**changes: int) -> DataConfig:
    return CONFIG.model_copy(update=changes)


def test_a_chosen_clip_is_read_as_asked(index: VideoIndex) -> None:
    clip = read_clip(index, 3, start=100, frames=5, interval=4, config=CONFIG)
    assert numbers_in(clip.video_THWC) == [100, 104, 108, 112, 116]
    assert (clip.interval, clip.label, clip.sample) == (4, 1, -1)
    assert numbers_in(read_clip(index, 3, 0, 120, 1, CONFIG).video_THWC) == list(range(120))


@pytest.mark.parametrize(
    ("video", "start", "frames", "interval", "line"),
    [
        (4, 0, 1, 1, "video number 4 is not within the 4"),
        (-1, 0, 1, 1, "video number -1"),
        (3, 100, 6, 4, "has 120 frames, but 6 frames at interval 4 from frame 100"),
        (3, -1, 2, 1, "from frame -1"),
        (3, 0, 0, 1, "0 frames"),
        (3, 0, 2, 0, "interval 0"),
    ],
)
def test_a_clip_that_is_not_there_is_refused(
    index: VideoIndex, video: int, start: int, frames: int, interval: int, line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        read_clip(index, video, start, frames, interval, CONFIG)


def test_a_vanished_file_is_named(index: VideoIndex) -> None:
    gone = replace(index.videos[3], path="b/gone.mp4")
    with pytest.raises(DataError, match=r"b/gone\.mp4.*magi data index"):
        read_clip(replace(index, videos=(gone,)), 0, 0, 2, 1, CONFIG)


def test_frames_that_fit_are_not_touched() -> None:
    video_THWC = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    assert fit_frames(video_THWC, 20, 30) is video_THWC


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (200, 31), (31, 200), (33, 47)])
@pytest.mark.parametrize("target", [(16, 16), (24, 16), (15, 22), (64, 64)])
def test_fitted_frames_keep_proportions_and_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Coordinates painted into the frame come out as those of the largest centred rectangle with the target's shape."""
    (height, width), (new_height, new_width) = size, target
    rows_HW, columns_HW = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    frame_HWC = np.stack([rows_HW, columns_HW, np.full(size, 77.0)], axis=-1).round().astype(np.uint8)
    fitted_HWC = fit_frames(frame_HWC[None], *target)[0].astype(float)
    scale = max(new_height / height, new_width / width)
    rows_H = height / 2 + (np.arange(new_height) + 0.5 - new_height / 2) / scale
    columns_W = width / 2 + (np.arange(new_width) + 0.5 - new_width / 2) / scale
    tolerance = 1.0 + 1.0 / scale
    assert fitted_HWC.shape == (*target, 3)
    assert np.abs(fitted_HWC[..., 0] - rows_H[:, None]).max() <= tolerance
    assert np.abs(fitted_HWC[..., 1] - columns_W).max() <= tolerance
    middle = np.s_[new_height // 4 : -(new_height // 4), new_width // 4 : -(new_width // 4)]
    assert np.abs(fitted_HWC[..., 0] - rows_H[:, None])[middle].max() <= 1.0
    assert np.abs(fitted_HWC[..., 1] - columns_W)[middle].max() <= 1.0
    assert (fitted_HWC[..., 2] == 77).all()


def test_shrinking_is_antialiased() -> None:
    """A fine checkerboard turns gray; picking single pixels would keep black and white."""
    board_HW = np.indices((64, 64)).sum(0) % 2 * 255
    fitted = fit_frames(np.repeat(board_HW[None, :, :, None], 3, axis=3).astype(np.uint8), 16, 16)
    assert np.abs(fitted.astype(int) - 127)[:, 2:-2, 2:-2].max() <= 2


def test_clips_are_fitted_to_the_size_of_the_config(index: VideoIndex) -> None:
    whole = read_clip(index, 1, 0, 3, 5, CONFIG).video_THWC
    small = read_clip(index, 1, 0, 3, 5, replace_config(height=16, width=24)).video_THWC
    assert np.array_equal(small, fit_frames(whole, 16, 24))


def test_clips_need_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, magi.data.clips; assert 'torch' not in sys.modules"], check=True)


def test_at_a_constant_rate_videos_move_equally_fast(tmp_path: Path) -> None:
    """Of 25 and of 50 frames a second: a clip has the frames of the same moments, in any process."""
    for name, milliseconds in (("slow.mkv", 40), ("fast.mkv", 20)):
        write_numbered(tmp_path / name, times=[milliseconds * number for number in range(90)])
    config = DataConfig(root=str(tmp_path), frames=4, height=HEIGHT, width=WIDTH, interval_max=3, fps=12.5)
    index = open_index(config)
    assert [record.path for record in index.videos] == ["fast.mkv", "slow.mkv"]
    assert index.frame_counts().tolist() == [23, 45] == [record.frames for record in index.videos]
    for video, step in enumerate((4, 2)):
        clip = read_clip(index, video, 3, 4, 5, config)
        assert [number_in(frame) for frame in clip.video_THWC] == [step * number for number in (3, 8, 13, 18)]
    dataset = ClipDataset(index, config, seed=0)
    shared = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=_as_list)  # type: ignore[arg-type]
    for (clip,), alone in zip(shared, (dataset[0], dataset[1]), strict=True):
        assert clip.interval == alone.interval and np.array_equal(clip.video_THWC, alone.video_THWC)
    assert open_index(config.model_copy(update={"fps": 0})).frame_counts().tolist() == [90, 90]
