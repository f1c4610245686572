"""A file is accepted with what is in it, or rejected with a precise reason; and both survive JSON."""

import json
import os
import random
from base64 import b64encode
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from magi.data.decoding import probe
from magi.data.decoding.containers import declared_end
from magi.data.decoding.frames import ADJUSTMENTS, VideoProbe
from magi.data.decoding.probe import DecodeLimits, RejectedFile, outcome_from_json, outcome_to_json, probe_file
from tests.fakes.numbered_videos import COUNT, HEIGHT, KINDS, UNEVEN_TIMES, WIDTH, good, write, write_kinds, write_sound


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("videos"))


def test_time_stamps_are_kept_as_written(videos: dict[str, Path]) -> None:
    assert good(videos["variable-rate.mkv"]).pts == tuple(UNEVEN_TIMES)
    assert isinstance(good(videos["h264.mp4"]).pts, range)
    assert good(videos["h264.mp4"]).fps == 25


def test_avi_with_b_frames_is_not_trusted_even_if_one_seek_lands(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_seek_is_exact", lambda *_: True)
    assert good(videos["xvid-b-frames.avi"]).pts is None


@pytest.mark.parametrize("times", [[3, None, 5], [0, 2, 2], [0, 3, 2]])
def test_a_frame_without_a_time_of_its_own_means_no_seeking(times: list[int | None]) -> None:
    assert probe._pts_table(times) is None


def test_a_seek_that_returns_another_frame_means_no_seeking(videos: dict[str, Path]) -> None:
    """Time stamps shifted by one frame, as B-frames in AVI shift them: increasing, complete, and wrong."""
    path, gray = videos["h264.mp4"], av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    checksums = [probe._checksum(frame, gray) for frame in frames]
    pts = [int(frame.pts or 0) for frame in frames]
    assert probe._seek_is_exact(path, pts, checksums, gray)
    assert not probe._seek_is_exact(path, pts, checksums[1:] + checksums[:1], gray)


def bad_files(folder: Path, videos: dict[str, Path]) -> dict[str, tuple[Path, str]]:
    """Name -> (file, the reason to expect)."""
    mp4, webm, avi = (videos[name].read_bytes() for name in ("h264.mp4", "vp9.webm", "xvid.avi"))
    faststart = write(folder / "fast.mp4", container_options={"movflags": "faststart"}).read_bytes()
    contents = {
        "empty.mp4": (b"", "empty_file"),
        "text.mp4": (b"this is no video\n" * 40, "not_a_video"),
        "noise.mkv": (random.Random(0).randbytes(5000), "not_a_video"),
        "picture.mp4": (b"\x89PNG\r\n\x1a\n" + bytes(200), "not_a_video"),
        "head-only.mp4": (mp4[:32], "truncated"),
        "half.mp4": (mp4[: len(mp4) // 2], "truncated"),
        "half-faststart.mp4": (faststart[: len(faststart) * 2 // 3], "truncated"),
        "almost.mp4": (faststart[:-20], "truncated"),
        "half.webm": (webm[: len(webm) // 2], "truncated"),
        "half.avi": (avi[: len(avi) // 2], "truncated"),
        "hls.mp4": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "playlist_refused"),
        "hls-bom.mp4": (b"\xef\xbb\xbf\n#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x\n", "playlist_refused"),
        "concat.mp4": (b"ffconcat version 1.0\nfile 'h264.mp4'\n", "playlist_refused"),
        "dash.mp4": (b"<?xml version='1.0'?><MPD></MPD>", "playlist_refused"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    files = {name: (folder / name, reason) for name, (_, reason) in contents.items()}
    write_sound(folder / "sound.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    return files | {
        "sound.mp4": (folder / "sound.mp4", "no_video_stream"),
        "single.mp4": (write(folder / "single.mp4", count=1), "single_frame"),
        "pipe.mp4": (folder / "pipe.mp4", "not_a_regular_file"),
        "folder.mp4": (folder / "folder.mp4", "not_a_regular_file"),
        "gone.mp4": (folder / "gone.mp4", "unreadable"),
    }


def test_every_bad_file_is_rejected_with_its_reason(videos: dict[str, Path], tmp_path: Path) -> None:
    found = {
        name: (probe_file(path, DecodeLimits()), reason) for name, (path, reason) in bad_files(tmp_path, videos).items()
    }
    for name, (outcome, reason) in found.items():
        assert isinstance(outcome, RejectedFile) and outcome.reason == reason, f"{name}: {outcome}"
        assert "\n" not in outcome.detail


def test_limits_refuse_large_frames_and_endless_videos(videos: dict[str, Path]) -> None:
    for limits, reason in [
        (DecodeLimits(pixels=HEIGHT * WIDTH - 1), "too_many_pixels"),
        (DecodeLimits(frames=COUNT - 1), "too_many_frames"),
    ]:
        outcome = probe_file(videos["h264.mp4"], limits)
        assert isinstance(outcome, RejectedFile) and outcome.reason == reason
    assert isinstance(probe_file(videos["h264.mp4"], DecodeLimits(pixels=HEIGHT * WIDTH, frames=COUNT)), VideoProbe)


def test_a_change_of_size_inside_a_file_is_refused(tmp_path: Path) -> None:
    """Two Annex B streams of other sizes behind each other, remuxed into one file."""
    parts = b""
    for size in ((64, 128), (32, 64)):
        options = {"draw": lambda _, size=size: np.zeros((*size, 3), np.uint8), "count": 5, "b_frames": 0}
        parts += write(tmp_path / f"{size[0]}.h264", **options).read_bytes()
    (tmp_path / "both.h264").write_bytes(parts)
    with av.open(str(tmp_path / "both.h264")) as source, av.open(str(tmp_path / "both.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = 40 * number
                packet.time_base, packet.stream = Fraction(1, 1000), stream
                target.mux(packet)
    outcome = probe_file(tmp_path / "both.mkv", DecodeLimits())
    assert isinstance(outcome, RejectedFile) and outcome.reason == "size_changed", outcome


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_end_where_their_container_says(videos: dict[str, Path], name: str) -> None:
    assert declared_end(videos[name]) == videos[name].stat().st_size


def test_bytes_behind_the_end_do_not_make_a_file_truncated(videos: dict[str, Path], tmp_path: Path) -> None:
    for name in ("h264.mp4", "vp9.webm", "xvid.avi"):
        (tmp_path / name).write_bytes(videos[name].read_bytes() + b"\x7f" * 100)
        assert good(tmp_path / name).frames == COUNT


def test_an_avi_with_a_wrong_size_field_but_all_its_frames_is_kept(videos: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(videos["xvid.avi"].read_bytes())
    content[4:8] = b"\xff\xff\xff\x7f"
    (tmp_path / "capture.avi").write_bytes(content)
    assert good(tmp_path / "capture.avi").frames == COUNT


@pytest.mark.parametrize(
    "pts",
    [None, range(5, 5 + 40 * 512, 512), range(-7, 33), tuple(n * n + 7 for n in range(40)), (-(2**40), *range(1, 40))],
)
def test_probes_survive_json(pts: range | tuple[int, ...] | None) -> None:
    found = VideoProbe(40, 64, 48, 24.5, pts, adjusted=ADJUSTMENTS[:2])
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(found)))) == found


def test_a_rejected_file_survives_json() -> None:
    rejected = RejectedFile("truncated", "ends early")
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(rejected)))) == rejected


@pytest.mark.parametrize(
    "change",
    [{"frames": 0}, {"height": -1}, {"width": 1 << 40}, {"fps": float("nan")}, {"fps": float("inf")}, {"fps": -1.0}],
)
def test_impossible_videos_are_refused(change: dict[str, object]) -> None:
    values = outcome_to_json(VideoProbe(3, 64, 48, 25.0, (0, 10, 33)))
    with pytest.raises(ValueError, match="impossible video"):
        outcome_from_json(values | change)


@pytest.mark.parametrize(
    "pts",
    [
        "from the end",
        7,
        None,
        {"start": 0},
        {"start": 0, "step": 0},
        {"start": 0, "step": -4},
        {"start": 1 << 62, "step": 4},
        {"start": 0, "packed_steps": "!"},
        {"start": 0, "packed_steps": "AAAA"},
        {"start": 0, "packed_steps": b64encode(probe.pack_steps(range(39))).decode()},
        {"start": 0, "packed_steps": b64encode(probe.pack_steps((0, 2, 1, *range(3, 40)))).decode()},
    ],
)
def test_damaged_time_stamps_are_refused(pts: object) -> None:
    values = outcome_to_json(VideoProbe(40, 32, 48, 25.0, None)) | {"pts": pts}
    with pytest.raises((ValueError, TypeError, KeyError)):
        outcome_from_json(values)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_hole_of_gigabytes_is_named_at_once(tmp_path: Path, name: str) -> None:
    """A file system says where nothing was written; FFmpeg would go through it for minutes."""
    path = write(tmp_path / name, codec="mpeg4", count=3, b_frames=0)
    assert good(path).frames == 3
    os.truncate(path, 64 << 30)
    outcome = probe_file(path, DecodeLimits())
    assert isinstance(outcome, RejectedFile) and outcome.reason == "never_written"
    assert outcome.detail.endswith(f" of its {64 << 30} bytes were never written; copy it again")
