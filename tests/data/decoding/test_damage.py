"""Damage in the middle of a stream is noticed, as far as the codec lets its decoder notice; a cut is none."""

import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from magi.data.decoding.containers import unsound_clusters
from magi.data.decoding.damage import DamageWatch
from magi.data.decoding.frames import KEPT, read_frames
from magi.data.decoding.probe import DecodeLimits, RejectedFile, outcome_from_json, outcome_to_json, probe_file
from tests.fakes.numbered_videos import VP9, good, write

FRAMES, TRIES = 48, 8
TEXTURE = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)


def moving_texture(number: int) -> np.ndarray:
    """Two layers that move against each other: hard to code, so that 4 kB lie within a few frames."""
    return TEXTURE[number : number + 128, number : number + 192] // 3 + TEXTURE[50 - number :, 100:][:128, :192] // 3


KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"b": "2M"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0, "options": {"b": "2M"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"b": "2M"}},
    "av1.mp4": {"codec": "libsvtav1", "b_frames": 0, "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "hevc.mkv": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "b_frames": 0, "options": {**VP9, "b": "800k"}},
}
NOTICED = {name: TRIES for name in KINDS} | dict.fromkeys(("av1.mp4", "hevc.mp4", "vp9.webm"), TRIES // 2)
"""At least; some of what these take for a picture is not noticed, unless a checksum of the container tells."""


@pytest.mark.parametrize("name", KINDS)
def test_4_kilobytes_overwritten_in_the_middle_are_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, count=FRAMES, draw=moving_texture, **KINDS[name])
    content, choose = path.read_bytes(), random.Random(name)
    assert len(content) > 30_000 and good(path).frames == FRAMES
    reasons, details = Counter[str](), list[str]()
    for _ in range(TRIES):
        at = int(len(content) * choose.uniform(0.3, 0.7))
        path.write_bytes(content[:at] + choose.randbytes(4096) + content[at + 4096 :])
        outcome = probe_file(path, DecodeLimits())
        reasons[outcome.reason if isinstance(outcome, RejectedFile) else "good"] += 1
        if isinstance(outcome, RejectedFile):
            details.append(outcome.detail)
        else:  # what is not noticed is at least the same however it is reached
            numbers = sorted(choose.sample(range(outcome.frames), 6))
            from_start = read_frames(path, range(outcome.frames), outcome)
            assert np.array_equal(read_frames(path, numbers, outcome), from_start[numbers])
    known = r"\(\S+: .+\)|\(the decoder marks it|\(the checksum of bytes"
    assert all(re.search(known, detail) for detail in details), details
    assert set(reasons) <= {"damaged", "decode_error", "good"}
    assert reasons["damaged"] + reasons["decode_error"] >= NOTICED[name], reasons


@pytest.mark.parametrize("name", ["h264.mp4", "h264-open.mp4", "mpeg4.mp4", "mpeg2.mkv", "hevc.mkv", "vp9.webm"])
def test_the_longest_stretch_between_damage_reads_as_it_was(tmp_path: Path, name: str) -> None:
    more = {"g": "8", "sc_threshold": "0"} | ({"x264-params": "open-gop=1"} if "open" in name else {})
    kind = KINDS[name.replace("-open", "")]
    kind = kind | {"options": kind.get("options", {}) | more}
    path = write(tmp_path / name, count=FRAMES, draw=moving_texture, **kind)
    content, choose, before = path.read_bytes(), random.Random(name), good(path)
    whole_THWC = read_frames(path, range(FRAMES), before)
    lengths = []
    for _ in range(TRIES):
        at = int(len(content) * choose.uniform(0.3, 0.7))
        path.write_bytes(content[:at] + choose.randbytes(64) + content[at + 64 :])
        outcome = probe_file(path, DecodeLimits())
        assert outcome_from_json(outcome_to_json(outcome)) == outcome
        clean = outcome.clean if isinstance(outcome, RejectedFile) else None
        lengths.append(clean.frames if clean else 0)
        if clean is None or not isinstance(outcome, RejectedFile):
            continue
        assert clean.pts is not None and before.pts is not None
        assert KEPT in clean.adjusted and f"{clean.frames} frames" in outcome.detail
        numbers = range(first := before.pts.index(clean.pts[0]), first + clean.frames)
        assert np.array_equal(read_frames(path, range(clean.frames), clean), whole_THWC[numbers])
        for number in (0, clean.frames // 2, clean.frames - 1):
            assert np.array_equal(read_frames(path, [number], clean), whole_THWC[[numbers[number]]])
    assert sum(length >= 8 for length in lengths) >= TRIES // 4, lengths


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg2.mkv", "hevc.mkv"])
def test_a_video_that_was_cut_between_keyframes_is_not_damaged(tmp_path: Path, name: str) -> None:
    """Cutting without encoding leaves frames at the start that no player shows."""
    path = write(tmp_path / f"whole-{name}", count=FRAMES, draw=moving_texture, **KINDS[name])
    with av.open(path) as whole, av.open(tmp_path / name, "w") as cut:
        stream = whole.streams.video[0]
        copied = cut.add_stream_from_template(stream)
        for number, packet in enumerate(whole.demux(stream)):
            if packet.dts is not None and number >= 7:
                packet.stream = copied
                cut.mux(packet)
    probe = good(tmp_path / name)
    assert 0 < probe.frames < FRAMES
    shown = read_frames(tmp_path / name, [probe.frames - 1], probe)
    assert np.array_equal(shown, read_frames(path, [FRAMES - 1], good(path)))


def test_checksums_of_clusters_tell_where_one_bit_is_other_and_a_hole_is_not_walked_through(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", count=FRAMES, draw=moving_texture, options={"g": "8"})
    assert unsound_clusters(path) == []
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (cluster,) = unsound_clusters(path)
    assert len(content) // 2 in cluster
    os.truncate(path, 1 << 40)
    assert unsound_clusters(path) == [cluster]


def test_what_is_said_of_the_first_frame_or_is_harmless_is_no_damage() -> None:
    log = [(16, "mjpeg", "odd header at 12\n")]
    watch = DamageWatch(log)
    assert watch.fault(False) == ""
    log.append((16, "mjpeg", "odd header at 907\n"))
    log.append((16, "h264", "mmco: unref short failure\n"))
    assert watch.fault(False) == "" and not log
    log.append((16, "h264", "error while decoding MB 3 4\n"))
    assert watch.fault(False) == "h264: error while decoding MB 3 4"


def test_listening_ends_with_the_file(tmp_path: Path) -> None:
    level = av.logging.get_level()
    good(write(tmp_path / "good.mp4", count=3))
    assert av.logging.get_level() == level
