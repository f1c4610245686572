"""A finished index takes a few bytes a video in memory, and gives back what was written."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from magi.data.decoding.frames import ADJUSTMENTS
from magi.data.index.index import VideoIndex, load_index
from magi.data.index.records import NUMBERS, IndexColumns, IndexedVideos, IndexHeader, VideoRecord
from magi.data.index.sources import Source
from magi.errors import DataError
from tests.fakes.memory import growth

HEADER = IndexHeader(("a",), 0, {"truncated": 2}, "digest")
PATTERNS = [
    None,
    range(5, 5 + 40 * 512, 512),
    range(-7, 33),
    tuple(n * n + 7 for n in range(40)),
    (-(2**40), *range(1, 40)),
]


def record(
    pts: range | tuple[int, ...] | None,
    path: str = "a/x.mp4",
    label: int | None = 0,
    adjusted: tuple[str, ...] = (),
) -> VideoRecord:
    frames = 40 if pts is None else len(pts)
    return VideoRecord(frames, 240, 320, 29.97003, pts, path, label, 1 << 40, 10**18 + 1, adjusted=adjusted)


def write(root: Path, records: list[VideoRecord]) -> Path:
    columns, path = IndexColumns(), Source.of(root).index_path
    for one in records:
        columns.add(one)
    columns.write(path, HEADER)
    return path


def test_records_come_back(tmp_path: Path) -> None:
    """Whatever their time stamps, paths and labels, and whatever lies beside them."""
    records = [record(pts) for pts in PATTERNS]
    paths = ("b", "\udcff.mp4", "é/\n", "a" * 300)
    records += [
        record(pts, path, None, (ADJUSTMENTS[0], ADJUSTMENTS[-1])) for pts, path in zip(PATTERNS, paths, strict=False)
    ]
    path = write(tmp_path, records)
    videos = IndexedVideos(path)
    assert [videos[number] for number in reversed(range(len(records)))] == records[::-1]
    assert videos[-2] == records[-2] and videos[1:4] == tuple(records[1:4])
    assert videos.frames_V.tolist() == [one.frames for one in records]
    assert videos.labels_V.tolist() == [0] * 5 + [-1] * 4 and videos.header == HEADER


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        contents.add(write(tmp_path / str(number), [record(pts) for pts in PATTERNS]).read_bytes())
    assert len(contents) == 1


def test_an_index_without_a_usable_video_can_be_read(tmp_path: Path) -> None:
    index = load_index(Source.of((write(tmp_path, [])).parent))
    assert len(index.videos) == 0 and index.skipped == 2


def write_many(root: Path, count: int) -> None:
    """An index of files that are not there, some of them with a variable rate."""
    uneven = tuple(np.cumsum(np.random.default_rng(0).integers(1, 999, 300)).tolist())
    write(root, [record(uneven if number % 20 == 19 else range(300), f"a/{number:06d}.mp4") for number in range(count)])


def test_200_000_videos_are_held_in_a_few_bytes_each(tmp_path: Path) -> None:
    """No record and no table of time stamps is held: 12 bytes a video, and more only while the index is read."""
    count = 200_000
    write_many(tmp_path, count)

    def load() -> VideoIndex:
        index = load_index(Source.of(tmp_path))
        assert len(index.videos) == count and len(index.frame_counts()) == count
        assert index.videos[199_999].path == "a/199999.mp4" and isinstance(index.videos[199_999].pts, tuple)
        return index

    assert growth(load) < 96 * count


def test_records_are_read_from_the_file_that_was_opened(tmp_path: Path) -> None:
    write_many(tmp_path, 3)
    index = load_index(Source.of(tmp_path))
    path, records = Source.of(tmp_path).index_path, tuple(index.videos)
    copied = pickle.loads(pickle.dumps(index.videos))
    assert tuple(copied) == records and index.videos == copied and index.videos != copied[:2]
    path.rename(tmp_path / "old")
    path.write_bytes((tmp_path / "old").read_bytes())
    assert tuple(index.videos) == records
    with pytest.raises(DataError, match="has been replaced since it was opened"):
        pickle.loads(pickle.dumps(index.videos))


def test_time_stamps_of_a_constant_rate_take_no_table(tmp_path: Path) -> None:
    with safe_open(write(tmp_path, [record(pts) for pts in PATTERNS[:3]]), "np") as file:
        assert file.get_tensor("steps").size == 0
        assert file.get_tensor("numbers")[:, NUMBERS.index("step")].tolist() == [0, 512, 1]
