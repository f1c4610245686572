"""Exactly the frames that were asked for, whatever the file."""

import os
import random
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
from av.codec.context import Flags
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from magi.data.decoding import frames as decoder
from magi.data.decoding.deinterlace import deinterlaced
from magi.data.decoding.frames import at_rate, read_frames
from magi.data.decoding.probe import DecodeLimits, RejectedFile, probe_file
from magi.errors import DataError
from tests.fakes.numbered_videos import (
    COUNT,
    HEIGHT,
    KINDS,
    UNEVEN_TIMES,
    VP9,
    WIDTH,
    good,
    number_in,
    write,
    write_kinds,
    write_sound,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("videos"))


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


def test_a_late_frame_is_reached_by_a_seek_and_avi_with_b_frames_from_the_start(videos: dict[str, Path]) -> None:
    def first_decoded(name: str) -> int:
        return next(decoder.numbered_frames(videos[name], 80, good(videos[name])))[0]

    assert good(videos["xvid-b-frames.avi"]).pts is None
    assert good(videos["xvid.avi"]).pts is not None
    assert first_decoded("xvid-b-frames.avi") == 0
    assert all(first_decoded(name) >= 48 for name in ("h264.mp4", "variable-rate.mkv", "vp9.webm"))


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


@pytest.mark.parametrize(("default", "shown"), [(None, 128), (0, 64), (1, 128)])
def test_of_two_video_streams_the_one_that_ffmpeg_chooses(tmp_path: Path, default: int | None, shown: int) -> None:
    """The larger, unless another alone is marked as the default."""
    with av.open(tmp_path / "two.mkv", "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for number, (stream, width) in enumerate(zip(streams, (64, 128), strict=True)):
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for stream in streams:
            for _ in range(3):
                picture = np.full((64, stream.width, 3), stream.width, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    probe = good(tmp_path / "two.mkv")
    assert probe.adjusted == ("other_video_streams_ignored",)
    frame_HWC = read_frames(tmp_path / "two.mkv", [1], probe)[0]
    assert frame_HWC.shape == (64, shown, 3)
    assert abs(frame_HWC.mean() - shown) < 3


@pytest.mark.parametrize(
    ("aspect", "shown", "adjusted"),
    [
        (None, (64, 128), ()),
        (Fraction(64, 45), (64, 182), ("pixels_made_square",)),
        (Fraction(2), (64, 256), ("pixels_made_square",)),
        (Fraction(8, 9), (72, 128), ("pixels_made_square",)),
        (Fraction(5), (64, 128), ("pixel_shape_ignored",)),
        (Fraction(1, 6), (64, 128), ("pixel_shape_ignored",)),
    ],
)
@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "xvid.avi"])
def test_pixels_are_made_square_as_a_player_does(
    tmp_path: Path, name: str, aspect: Fraction | None, shown: tuple[int, int], adjusted: tuple[str, ...]
) -> None:
    """A disc that is stored squashed comes out round; a shape beyond 1:4 and 4:1 is ignored and counted."""
    scale = aspect if aspect and adjusted == ("pixels_made_square",) else 1
    rows, columns = np.mgrid[:64, :128]
    disc = (rows - 31.5) ** 2 + ((columns - 63.5) * float(scale)) ** 2 < 24**2
    picture = np.repeat(disc[..., None] * np.uint8(200), 3, axis=2)

    def set_aspect(stream: Any) -> None:
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect

    codec = "mpeg4" if name == "xvid.avi" else "libx264"
    path = write(tmp_path / name, codec, count=3, b_frames=0, draw=lambda _: picture, prepare=set_aspect)
    probe = good(path)
    assert (probe.height, probe.width) == shown and probe.adjusted == adjusted
    frame_HWC = read_frames(path, [1], probe)[0]
    bright = np.argwhere(frame_HWC[..., 0] > 100)
    height, width = bright.max(0) - bright.min(0) + 1
    assert abs(height - width) <= 2 and frame_HWC.shape == (*shown, 3)


def test_a_turned_video_has_its_pixels_made_square_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "turned.mp4",
        count=3,
        prepare=lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(2)),
    )
    set_display_matrix(path, 0, 1, -1, 0)
    probe = good(path)
    assert (probe.height, probe.width) == (256, 64)
    assert probe.adjusted == ("pixels_made_square", "turned_or_mirrored")
    assert read_frames(path, [1], probe).shape == (1, 256, 64, 3)


def two_fields(number: int) -> np.ndarray:
    """A bar that has moved on by the time that the lower rows are shot."""
    picture = np.full((64, 128, 3), 20, np.uint8)
    for field in (0, 1):
        left = 4 * (number % 24) + 2 * field
        picture[field::2, left : left + 24] = 220
    return picture


def combs(frame_HWC: np.ndarray) -> float:
    """How much each row differs from the rows around it."""
    rows = frame_HWC.astype(int)
    return float(np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean())


def in_fields(stream: Any) -> None:
    stream.codec_context.flags |= Flags.interlaced_dct | Flags.interlaced_me


INTERLACED: dict[str, dict[str, Any]] = {
    "top-first.mp4": {"options": {"x264-params": "tff=1"}},
    "bottom-first.mkv": {"options": {"x264-params": "bff=1"}, "times": UNEVEN_TIMES},
    "mpeg2.mkv": {"codec": "mpeg2video", "prepare": in_fields},
    "xvid.avi": {"codec": "mpeg4", "b_frames": 0, "prepare": in_fields},
    "xvid-b-frames.avi": {"codec": "mpeg4", "prepare": in_fields},
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_frames_are_deinterlaced_and_the_same_however_they_are_reached(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, draw=two_fields, **INTERLACED[name])
    probe = good(path)
    assert probe.adjusted == ("deinterlaced",)
    stored_THWC = read_frames(path, range(COUNT), replace(probe, adjusted=()))
    shown_THWC = read_frames(path, range(COUNT), probe)
    assert [combs(shown) < 0.15 * combs(stored) for shown, stored in zip(shown_THWC, stored_THWC, strict=True)] == (
        [True] * COUNT
    )
    choose = random.Random(name)
    asked = [[0], [COUNT - 1], [24], [23, 24], [1, 3, 4], [0, COUNT - 1], [47, 48, 72], list(range(3, 90, 7))]
    asked += [sorted(choose.sample(range(COUNT), choose.randint(1, 9))) for _ in range(12)]
    for indices in asked:
        assert np.array_equal(read_frames(path, indices, probe), shown_THWC[indices]), indices


def test_progressive_frames_of_an_interlaced_video_stay_as_they_are(tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(two_fields(number), format="rgb24") for number in range(6)]
    numbered = [(number, frame, None) for number, frame in enumerate(frames)]
    assert [frame for _, frame, _ in deinterlaced(iter(numbered), range(6))] == frames


def test_an_interlaced_frame_depends_on_its_neighbours_alone(tmp_path: Path) -> None:
    """Also where some of the frames are progressive, as in a film that was broadcast."""
    decoded = []
    for name, options in (("interlaced.mp4", {"x264-params": "tff=1"}), ("progressive.mp4", {})):
        with av.open(write(tmp_path / name, draw=two_fields, count=16, options=options)) as container:
            decoded.append(list(container.decode(video=0)))
    progressive = (0, 1, 2, 7, 8, 12)
    frames = [(number, decoded[number in progressive][number], None) for number in range(16)]

    def shown(first: int, wanted: set[int]) -> dict[int, np.ndarray]:
        answers = deinterlaced(iter(frames[first:]), wanted)
        return {number: frame.to_ndarray() for number, frame, _ in answers if number in wanted}

    whole = shown(0, set(range(16)))
    for number in range(1, 16):
        again = shown(number - 1, {number, min(number + 4, 15)})
        assert all(np.array_equal(again[at], whole[at]) for at in again), number


def test_interlaced_frames_too_small_for_the_filter_are_named(tmp_path: Path) -> None:
    small = np.zeros((2, 16, 3), np.uint8)
    path = write(tmp_path / "small.mkv", "mpeg2video", 6, draw=lambda _: small, prepare=in_fields)
    outcome = probe_file(path, DecodeLimits())
    assert isinstance(outcome, RejectedFile) and outcome.reason == "not_deinterlaced"


def set_display_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Writes the four numbers into the track header of an mp4 file, as cameras do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *(round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0, 16384)))
    path.write_bytes(data)


def filtered(path: Path, name: str, argument: str | None) -> np.ndarray:
    """Frame 1 as FFmpeg's own filter turns it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream), graph.add(name, argument), graph.add("buffersink")
        ).configure()
        frame = [frame for frame in container.decode(stream)][1]
        graph.push(frame)
        turned = graph.pull()
        assert isinstance(turned, av.VideoFrame)
        return turned.to_ndarray(format="rgb24")


@pytest.mark.parametrize(
    ("matrix", "name", "argument"),
    [
        ((1, 0, 0, 1), "null", None),
        ((-1, 0, 0, 1), "hflip", None),
        ((1, 0, 0, -1), "vflip", None),
        ((-1, 0, 0, -1), "rotate", "PI"),
        ((0, 1, -1, 0), "transpose", "clock"),
        ((0, -1, 1, 0), "transpose", "cclock"),
        ((0, 1, 1, 0), "transpose", "cclock_flip"),
        ((0, -1, -1, 0), "transpose", "clock_flip"),
    ],
)
def test_the_whole_display_matrix_is_applied_mirrors_too(
    tmp_path: Path, matrix: tuple[int, int, int, int], name: str, argument: str | None
) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:16, :32] = (250, 20, 20)
    picture[:16, 96:] = (20, 250, 20)
    path = write(tmp_path / "turned.mp4", count=3, draw=lambda _: picture)
    set_display_matrix(path, *matrix)
    probe, expected_HWC = good(path), filtered(path, name, argument)
    assert (probe.height, probe.width) == expected_HWC.shape[:2]
    assert np.abs(read_frames(path, [1], probe)[0].astype(int) - expected_HWC).mean() < 2


def test_a_slanted_display_matrix_is_refused_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "slanted.mp4", count=3)
    upright_THWC = read_frames(path, [1], good(path))
    set_display_matrix(path, 0, 0, 0, 0)
    assert np.array_equal(read_frames(path, [1], good(path)), upright_THWC)
    set_display_matrix(path, 0.8, 0.6, -0.6, 0.8)
    outcome = probe_file(path, DecodeLimits())
    assert isinstance(outcome, RejectedFile) and outcome.reason == "odd_display_matrix"


@pytest.mark.parametrize("space", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("span", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("interlaced", [False, True])
def test_colours_follow_the_matrix_and_range_that_the_file_names(
    tmp_path: Path, space: Any, span: Any, interlaced: bool
) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:] = (220, 60, 30)
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        options = {"crf": "4"} | ({"x264-params": "tff=1"} if interlaced else {})
        stream = container.add_stream("libx264", rate=25, options=options)
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


@pytest.mark.parametrize("fps", [5, 12.5, 25, 40, 120])
@pytest.mark.parametrize("name", ["h264.mp4", "variable-rate.mp4", "late-start.mp4", "xvid-b-frames.avi", "vp9.webm"])
def test_at_a_rate_the_frames_are_those_on_screen(videos: dict[str, Path], name: str, fps: float) -> None:
    """Whatever the time stamps: of each moment, the last frame that has begun."""
    stored = good(videos[name])
    times = UNEVEN_TIMES if name in ("variable-rate.mp4", "late-start.mp4") else [40 * n for n in range(COUNT)]
    expected = []
    while (now := len(expected) * 1000 / fps) <= times[-1]:
        expected.append(max(number for number, time in enumerate(times) if time <= now))
    probe = at_rate(stored, fps)
    assert (probe.frames, probe.fps, probe.stored) == (len(expected), fps, stored)
    asked = [*range(0, len(expected), 3)]
    assert [number_in(frame) for frame in read_frames(videos[name], asked, probe)] == expected[::3]
    with pytest.raises(ValueError, match="increase strictly"):
        read_frames(videos[name], [len(expected)], probe)


def test_a_video_of_unknown_rate_has_one_frame_at_any(videos: dict[str, Path]) -> None:
    probe = at_rate(replace(good(videos["h264.mp4"]), fps=0.0), 10)
    assert probe.frames == 1 and number_in(read_frames(videos["h264.mp4"], [0], probe)[0]) == 0


def test_odd_names_work(videos: dict[str, Path], tmp_path: Path) -> None:
    for name in ("-dash.mp4", "new\nline.mp4", "emoji 🎬 \"quote'.mp4", "a:b,c|d.mp4", "x" * 251 + ".mp4"):
        (tmp_path / name).write_bytes(videos["h264.mp4"].read_bytes())
        assert number_in(read_frames(tmp_path / name, [33], good(tmp_path / name))[0]) == 33
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4")
    Path(undecodable).write_bytes(videos["h264.mp4"].read_bytes())
    assert good(Path(undecodable)).frames == COUNT
