"""The captions of a data set by the numbers of its videos, and what becomes of those that cannot be read."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from magi.config import DataConfig
from magi.data.caption_table import CaptionTable
from magi.data.clips import ClipDataset
from magi.data.index.index import VideoIndex
from magi.errors import DataError
from tests.fakes.encoded_videos import CONFIG, make_index

GIVEN = ["a", None, "", "ein Bär 🐻", "e"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def index(made: VideoIndex, tmp_path: Path) -> VideoIndex:
    """Videos without captions."""
    return replace(made, root=shutil.copytree(made.root, tmp_path / "videos"))


def caption_all(index: VideoIndex) -> None:
    for number, record in enumerate(index.videos):
        (index.root / record.path).with_suffix(".txt").write_text(f"video {number}")


def test_captions_by_number() -> None:
    table = CaptionTable.of(GIVEN)
    assert [table[video] for video in range(len(table))] == ["a", None, None, "ein Bär 🐻", "e"] and table.count == 3
    again = pickle.loads(pickle.dumps(table))
    assert again[3] == GIVEN[3] and again.digest == table.digest


def test_the_digest_knows_which_video_has_which() -> None:
    tables = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc", ""], ["", "abc"]]
    assert len({CaptionTable.of(table).digest for table in tables}) == 5


def test_clips_have_the_caption_of_their_video(index: VideoIndex) -> None:
    caption_all(index)
    table, reasons = CaptionTable.beside(index, 0)
    assert reasons == [] and table.count == len(index.videos)
    clips = ClipDataset(index, CONFIG, 0, captions=table)
    for sample in range(10):
        assert clips[sample].caption == f"video {clips.draws.draw(sample).video}"
    assert ClipDataset(index, CONFIG, 0)[0].caption is None


def test_bad_captions_are_told_and_too_many_are_refused(index: VideoIndex) -> None:
    caption_all(index)
    bad = (index.root / index.videos[1].path).with_suffix(".txt")
    bad.write_bytes(b"caf\xe9")
    table, reasons = CaptionTable.beside(index, 0.5)
    assert table[1] is None and table.count == len(index.videos) - 1
    (reason,) = reasons
    assert str(bad) in reason and "\n" not in reason
    with pytest.raises(DataError, match=r"1 of 6 captions cannot be read, more than max_bad_fraction 0.01; the first"):
        CaptionTable.beside(index, DataConfig().max_bad_fraction)
