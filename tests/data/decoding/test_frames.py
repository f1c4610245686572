"""Exactly the frames that were asked for, whatever the file; and a precise reason where there are none."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from magi.data.decoding import frames as decoder
from magi.data.decoding.frames import DecodeLimits, Skip, VideoProbe, declared_end, probe_file, read_frames
from magi.errors import DataError

LIMITS = DecodeLimits()
COUNT, HEIGHT, WIDTH, BITS = 90, 64, 128, 8
VP9 = {"deadline": "realtime", "cpu-used": "8"}
# Milliseconds, in gaps of 10 to 73: a frame rate that never settles.
UNEVEN_TIMES = list(accumulate([10 + (n * n) % 64 for n in range(COUNT - 1)], initial=0))


def numbered_frame(number: int) -> np.ndarray:
    """The bits of the number as dark and bright bars, which survive any codec."""
    bits_W = np.repeat([number >> bit & 1 for bit in range(BITS)], WIDTH // BITS)
    return np.broadcast_to((bits_W * 200 + 20).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3))


def number_in(frame_HWC: np.ndarray) -> int:
    bars = frame_HWC[HEIGHT // 2, WIDTH // BITS // 2 :: WIDTH // BITS].mean(-1)
    return sum(1 << bit for bit, bar in enumerate(bars) if bar > 120)


def write(
    path: Path,
    codec: str = "libx264",
    count: int = COUNT,
    times: list[int] | None = None,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
    draw: Callable[[int], np.ndarray] = numbered_frame,
    format: str | None = None,
) -> Path:
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = draw(0).shape[:2]
        stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", 24, 1
        stream.codec_context.max_b_frames = b_frames
        tick = Fraction(1, 25) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = tick
        prepare(stream)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw(number)), format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def good(path: Path) -> VideoProbe:
    probe = probe_file(path, LIMITS)
    assert isinstance(probe, VideoProbe), probe
    return probe


KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264-one-keyframe.mp4": {"options": {"g": "250", "sc_threshold": "0"}, "b_frames": 3},
    "h264-open-gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "variable-rate.mp4": {"times": UNEVEN_TIMES},
    "variable-rate.mkv": {"times": UNEVEN_TIMES},
    "late-start.mp4": {"times": [4000 + time for time in UNEVEN_TIMES]},
    "xvid-b-frames.avi": {"codec": "mpeg4"},
    "xvid.avi": {"codec": "mpeg4", "b_frames": 0},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9, "b_frames": 0},
    "uneven-vp9.webm": {"codec": "libvpx-vp9", "options": VP9, "b_frames": 0, "times": UNEVEN_TIMES},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: write(folder / name, **options) for name, options in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_are_the_ones_asked_for(videos: dict[str, Path], name: str) -> None:
    probe = good(videos[name])
    assert (probe.frames, probe.height, probe.width) == (COUNT, HEIGHT, WIDTH)
    choose = random.Random(name)
    asked = [list(range(COUNT)), [0], [COUNT - 1], [23, 24, 25], [47, 89], list(range(3, 90, 7))]
    asked += [sorted(choose.sample(range(COUNT), choose.randint(1, 9))) for _ in range(12)]
    for indices in asked:
        frames_THWC = read_frames(videos[name], indices, probe)
        assert frames_THWC.dtype == np.uint8
        assert [number_in(frame_HWC) for frame_HWC in frames_THWC] == indices


def test_time_stamps_are_kept_as_written(videos: dict[str, Path]) -> None:
    assert good(videos["variable-rate.mkv"]).pts == tuple(UNEVEN_TIMES)
    assert isinstance(good(videos["h264.mp4"]).pts, range)
    assert good(videos["h264.mp4"]).fps == 25


def test_a_late_frame_is_reached_by_a_seek_and_avi_with_b_frames_from_the_start(videos: dict[str, Path]) -> None:
    def first_decoded(name: str) -> int:
        return next(decoder._numbered_frames(videos[name], 80, good(videos[name]).pts))[0]

    assert good(videos["xvid-b-frames.avi"]).pts is None
    assert good(videos["xvid.avi"]).pts is not None
    assert first_decoded("xvid-b-frames.avi") == 0
    assert all(first_decoded(name) >= 48 for name in ("h264.mp4", "variable-rate.mkv", "vp9.webm"))


def test_avi_with_b_frames_is_not_trusted_even_if_one_seek_lands(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_seek_is_exact", lambda *_: True)
    assert good(videos["xvid-b-frames.avi"]).pts is None


@pytest.mark.parametrize("times", [[3, None, 5], [0, 2, 2], [0, 3, 2]])
def test_a_frame_without_a_time_of_its_own_means_no_seeking(times: list[int | None]) -> None:
    assert decoder._pts_table(times) is None


def test_a_seek_that_returns_another_frame_means_no_seeking(videos: dict[str, Path]) -> None:
    """Time stamps shifted by one frame, as B-frames in AVI shift them: increasing, complete, and wrong."""
    path, gray = videos["h264.mp4"], av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    checksums = [decoder._checksum(frame, gray) for frame in frames]
    pts = [int(frame.pts or 0) for frame in frames]
    assert decoder._seek_is_exact(path, pts, checksums, gray)
    assert not decoder._seek_is_exact(path, pts, checksums[1:] + checksums[:1], gray)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_as_a_player_shows_them(tmp_path: Path, degrees: int) -> None:
    """A counter-clockwise display rotation is carried out, size included."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :32] = (250, 20, 20)
    turn = {"prepare": lambda stream: stream.set_display_rotation(degrees)} if degrees else {}
    path = write(tmp_path / "turned.mp4", count=3, draw=lambda _: picture, **turn)
    probe, expected = good(path), np.rot90(picture, degrees // 90)
    assert (probe.height, probe.width) == expected.shape[:2]
    assert np.abs(read_frames(path, [1], probe)[0].astype(int) - expected).mean() < 4


@pytest.mark.parametrize("space", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("span", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_follow_the_matrix_and_range_that_the_file_names(tmp_path: Path, space: Any, span: Any) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:] = (220, 60, 30)
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 64, 64, "yuv420p", 1
        stream.codec_context.colorspace, stream.codec_context.color_range = space, span
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=span)
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(read_frames(path, [1], good(path))[0].astype(int) - picture).max() <= 6


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("odd.webm", "libvpx-vp9", "yuv420p", (33, 47)),
        ("alpha.webm", "libvpx-vp9", "yuva420p", (34, 46)),
        ("odd.avi", "mpeg4", "yuv420p", (33, 47)),
        ("ten-bit.mp4", "libx264", "yuv420p10le", (34, 46)),
        ("full-colour.mp4", "libx264", "yuv444p", (33, 47)),
        ("lossless.mkv", "ffv1", "bgr0", (33, 47)),
        ("jpeg.mov", "mjpeg", "yuvj422p", (34, 46)),
    ],
)
def test_any_size_and_pixel_format_is_read(
    tmp_path: Path, name: str, codec: str, pixels: str, size: tuple[int, int]
) -> None:
    def shade(number: int) -> np.ndarray:
        return np.full((*size, 3), 20 + 10 * number, np.uint8)

    options = {**VP9, "auto-alt-ref": "0"} if name.endswith("webm") else {}
    path = write(
        tmp_path / name,
        codec,
        count=20,
        b_frames=0,
        options=options,
        draw=shade,
        prepare=lambda stream: setattr(stream, "pix_fmt", pixels),
    )
    probe = good(path)
    assert (probe.height, probe.width) == size and probe.pts is not None
    frames_THWC = read_frames(path, [3, 11, 19], probe).astype(int)
    assert np.abs(frames_THWC - np.array([50, 130, 210])[:, None, None, None]).max() <= 6


@pytest.mark.parametrize("indices", [[3, 3], [4, 2], [-1], [COUNT], [0, 5, COUNT]])
def test_impossible_frame_numbers_are_refused(videos: dict[str, Path], indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"strictly within 0\.\.89"):
        read_frames(videos["h264.mp4"], indices, good(videos["h264.mp4"]))


def test_a_changed_file_is_an_error_not_other_frames(videos: dict[str, Path], tmp_path: Path) -> None:
    probe = good(videos["h264.mp4"])
    write_sound(tmp_path / "sound.mp4")
    shorter = write(tmp_path / "shorter.mp4", count=40)
    larger = write(tmp_path / "larger.mp4", draw=lambda _: np.zeros((96, 128, 3), np.uint8))
    for path, promised, frame in [
        (tmp_path / "gone.mp4", probe, 5),
        (shorter, probe, 60),
        (shorter, replace(probe, pts=None), 60),
        (larger, probe, 5),
        (tmp_path / "sound.mp4", probe, 5),
    ]:
        with pytest.raises(DataError, match="magi data index"):
            read_frames(path, [frame], promised)
    other_times = read_frames(videos["h264.mp4"], [60], good(videos["variable-rate.mp4"]))
    assert number_in(other_times[0]) == 60


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


def test_every_bad_file_is_skipped_with_its_reason(videos: dict[str, Path], tmp_path: Path) -> None:
    found = {name: (probe_file(path, LIMITS), reason) for name, (path, reason) in bad_files(tmp_path, videos).items()}
    for name, (outcome, reason) in found.items():
        assert isinstance(outcome, Skip) and outcome.reason == reason, f"{name}: {outcome}"
        assert "\n" not in outcome.detail


def test_limits_refuse_large_frames_and_endless_videos(videos: dict[str, Path]) -> None:
    for limits, reason in [
        (DecodeLimits(pixels=HEIGHT * WIDTH - 1), "too_many_pixels"),
        (DecodeLimits(frames=COUNT - 1), "too_many_frames"),
    ]:
        outcome = probe_file(videos["h264.mp4"], limits)
        assert isinstance(outcome, Skip) and outcome.reason == reason
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
    outcome = probe_file(tmp_path / "both.mkv", LIMITS)
    assert isinstance(outcome, Skip) and outcome.reason == "size_changed", outcome


def test_odd_names_work(videos: dict[str, Path], tmp_path: Path) -> None:
    for name in ("-dash.mp4", "new\nline.mp4", "emoji 🎬 \"quote'.mp4", "a:b,c|d.mp4", "x" * 251 + ".mp4"):
        (tmp_path / name).write_bytes(videos["h264.mp4"].read_bytes())
        assert number_in(read_frames(tmp_path / name, [33], good(tmp_path / name))[0]) == 33
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4")
    Path(undecodable).write_bytes(videos["h264.mp4"].read_bytes())
    assert good(Path(undecodable)).frames == COUNT


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
