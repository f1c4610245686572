"""Captions of parts of a video: a clip has that of the part that holds all of its frames."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magi.data.caption_table import CaptionTable
from magi.data.clips import ClipDataset, clip_span
from magi.data.index.index import VideoIndex
from magi.latents.dataset import LatentDataset, latent_captions
from tests.fakes.encoded_videos import CLIPS, CONFIG, encode, encode_clip, in_raw_units, make_index, write

PARTS = [(0, 12, "x"), (13, 29, "y"), (15, 20, "z")]
"""Of a video of 30 frames at 25 a second."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def index(made: VideoIndex, tmp_path: Path) -> VideoIndex:
    """Every video has its parts, all but the first a caption of its own, too."""
    index = replace(made, root=shutil.copytree(made.root, tmp_path / "videos"))
    for number, record in enumerate(index.videos):
        video = index.root / record.path
        lines = [{"start": first / 25, "end": last / 25, "caption": text} for first, last, text in PARTS]
        video.with_name(f"{video.stem}.captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        if number:
            video.with_suffix(".txt").write_text(f"video {number}")
    return index


def expected(video: int, start: int, span: int) -> str | None:
    """By hand: the parts are few."""
    last = start + span - 1
    if start >= 15 and last <= 20:
        return "z"
    if last <= 12 or (start >= 13 and last <= 29):
        return "x" if last <= 12 else "y"
    return f"video {video}" if video else None


def test_a_clip_has_the_caption_of_the_shortest_part_that_holds_it() -> None:
    table = CaptionTable.of([PARTS, [*PARTS, (0, 2**40, "all")], "one", None])
    spans = [(0, 12), (13, 29), (15, 20), (12, 13), (28, 30)]
    assert [table.of_clip(0, *span) for span in spans] == ["x", "y", "z", None, None]
    assert [table.of_clip(1, *span) for span in spans] == ["x", "y", "z", "all", "all"]
    assert table.of_clip(2, 3, 4) == "one" == table[2] and table.of_clip(3, 0, 1) is None
    assert table[0] is None and table[1] == "all" and table.segments(1) == PARTS and table.segments(2) == []
    assert list(table.texts()) == ["x", "y", "z", "x", "y", "z", "all", "one"] and (table.count, len(table)) == (3, 4)


def test_the_digest_of_whole_captions_is_what_runs_remember() -> None:
    ends_V = np.array([2, 2, 3], np.int64)
    assert CaptionTable.of(["ab", None, "c"]).digest == hashlib.sha256(ends_V.tobytes() + b"abc").hexdigest()[:16]
    tables = [[[(0, 5, "a")]], [[(0, 6, "a")]], ["a"], [[(0, 5, "a"), (0, 2**31 - 1, "a")]]]
    assert len({CaptionTable.of(table).digest for table in tables}) == 4


def test_times_become_frames_at_the_rate_that_is_read(index: VideoIndex) -> None:
    table, reasons = CaptionTable.beside(index, 0)
    assert reasons == [] and table.segments(1) == PARTS and table[1] == "video 1" and table[0] is None
    slow = replace(index, videos=index.videos.at_rate(12.5))  # type: ignore[attr-defined]
    assert CaptionTable.beside(slow, 0)[0].segments(1) == [(0, 6, "x"), (7, 14, "y"), (8, 10, "z")]


def test_clips_of_videos_and_of_latents_have_the_caption_of_their_frames(index: VideoIndex, tmp_path: Path) -> None:
    table = CaptionTable.beside(index, 0)[0]
    videos = ClipDataset(index, CONFIG, 0, captions=table)
    write(index, tmp_path / "frames", CONFIG, encode, captions=table)
    frames = LatentDataset(tmp_path / "frames", CONFIG, 0, "mean-1", in_raw_units(tmp_path / "frames"), True)
    found = []
    for sample in range(40):
        draw = frames.draws.draw(sample)
        found.append(expected(draw.video, draw.start, clip_span(CONFIG.frames, draw.interval)))
        assert frames[sample].caption == found[-1]
        if sample < 8:
            assert videos[sample].caption == found[-1]
    assert {"x", "y", "z"} <= set(found) and None in found, "the samples show every case"
    write(index, tmp_path / "clips", CLIPS, encode_clip, captions=table)
    clips = LatentDataset(tmp_path / "clips", CLIPS, 0, "mean-1", in_raw_units(tmp_path / "clips"), True)
    chosen = [json.loads(line) for path in sorted((tmp_path / "clips").glob("*.jsonl"))
              for line in path.read_text().splitlines()[1:]]  # fmt: skip
    for sample in range(30):
        draw = clips.draws.draw(sample)
        start, interval = chosen[draw.video]["clips"][draw.start // clips.header.latent_frames]
        assert clips[sample].caption == expected(draw.video, start, clip_span(CLIPS.frames, interval))
    for folder in ("frames", "clips"):
        assert latent_captions(tmp_path / folder).digest == table.digest
