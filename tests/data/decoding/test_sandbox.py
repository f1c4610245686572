"""A file may crash, hang or swell the process that decodes it: it is rejected, and the next file is decoded."""

import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from magi.data.decoding import sandbox
from magi.data.decoding.frames import VideoProbe
from magi.data.decoding.probe import DecodeLimits, Outcome, RejectedFile
from magi.data.decoding.sandbox import DecodingSandbox, probe_safely
from magi.data.video_writer import write_mp4
from tests.fakes.numbered_videos import write


def moving_square(frames: int) -> np.ndarray:
    video_THWC = np.zeros((frames, 64, 64, 3), np.uint8)
    for number in range(frames):
        video_THWC[number, 20:40, number % 40 : number % 40 + 20] = 200
    return video_THWC


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "good.mp4"
    write_mp4(path, moving_square(30), 25)
    return path


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingSandbox]:
    with DecodingSandbox() as decoding:
        yield decoding


def child_id(decoding: DecodingSandbox) -> int:
    assert decoding._child is not None
    return decoding._child.pid


def is_good(outcome: Outcome) -> bool:
    return isinstance(outcome, VideoProbe) and outcome.frames == 30


def test_one_child_serves_many_files_and_loads_no_torch(decoding: DecodingSandbox, video: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    before = decoding.starts
    outcomes = [decoding.probe(path) for path in (video, tmp_path / "text.mp4", tmp_path / "gone.mp4", video)]
    reasons = [outcome.reason if isinstance(outcome, RejectedFile) else "good" for outcome in outcomes]
    assert reasons == ["good", "not_a_video", "unreadable", "good"]
    assert decoding.starts <= before + 1
    if Path("/proc/self/maps").exists():
        assert "torch" not in Path(f"/proc/{child_id(decoding)}/maps").read_text()


def test_a_crash_is_a_reason_and_the_next_file_is_decoded(decoding: DecodingSandbox, video: Path) -> None:
    assert is_good(decoding.probe(video))
    crashed = child_id(decoding)
    os.kill(crashed, signal.SIGSTOP)  # so that it dies with the request before it
    timer = threading.Timer(0.1, lambda: [os.kill(crashed, number) for number in (signal.SIGSEGV, signal.SIGCONT)])
    timer.start()
    outcome = decoding.probe(video)
    timer.join()
    assert isinstance(outcome, RejectedFile) and outcome.reason == "decoder_crashed" and "SIGSEGV" in outcome.detail
    assert is_good(decoding.probe(video)) and child_id(decoding) != crashed


def test_a_hang_is_killed_and_the_next_file_is_decoded(decoding: DecodingSandbox, video: Path) -> None:
    assert is_good(decoding.probe(video))
    hanging, starts = child_id(decoding), decoding.starts
    os.kill(hanging, signal.SIGSTOP)
    decoding.limits = DecodeLimits(seconds=0.3)
    outcome = decoding.probe(video)
    decoding.limits = DecodeLimits()
    assert isinstance(outcome, RejectedFile) and outcome.reason == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert is_good(decoding.probe(video)) and decoding.starts == starts + 1


def test_a_large_file_gets_no_more_time_than_a_small_one(video: Path, tmp_path: Path) -> None:
    """Zeros behind the video, which take no room on the disk, are looked through to their end."""
    sparse = tmp_path / "sparse.avi"
    write(sparse, "mpeg4", b_frames=0)
    os.truncate(sparse, 200 << 20)
    with DecodingSandbox(DecodeLimits(seconds=0.5)) as impatient:
        outcome = impatient.probe(sparse)
    assert isinstance(outcome, RejectedFile) and outcome.reason == "timeout"
    assert "0.5 seconds" in outcome.detail and "--seconds-per-file" in outcome.detail


def test_a_child_that_died_between_two_files_is_replaced(decoding: DecodingSandbox, video: Path) -> None:
    assert is_good(decoding.probe(video))
    assert decoding._child is not None
    decoding._child.kill()
    decoding._child.wait()
    assert is_good(decoding.probe(video))


def test_memory_is_bounded(decoding: DecodingSandbox, video: Path, tmp_path: Path) -> None:
    """Frames of 14 MB each need more than the few that this sandbox has left beside its libraries."""
    large = tmp_path / "large.mp4"
    with av.open(str(large), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 4096, 2304, "yuv420p", 1
        for _ in range(2):
            black = av.VideoFrame.from_ndarray(np.zeros((2304, 4096, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    with DecodingSandbox(DecodeLimits(memory_bytes=250 << 20)) as small:
        outcome = small.probe(large)
        # FFmpeg reports a failed allocation in several ways, by the place where it happens.
        assert isinstance(outcome, RejectedFile)
        assert outcome.reason in ("memory_limit", "decoder_crashed", "decode_error"), outcome
        assert is_good(small.probe(video))
    assert isinstance(decoding.probe(large), VideoProbe)


def test_damaged_files_never_harm_the_caller(decoding: DecodingSandbox, video: Path, tmp_path: Path) -> None:
    """Cut, flipped and spliced files: every one ends in a probe or a named reason."""
    content, choose = video.read_bytes(), random.Random(0)
    for number in range(60):
        damaged = bytearray(content[: choose.randint(1, len(content))] if number % 3 == 0 else content)
        for _ in range(choose.choice((1, 8, 64))):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        outcome = decoding.probe(tmp_path / "damaged.mp4")
        assert isinstance(outcome, VideoProbe) or outcome.reason.replace("_", "").isalpha()


def test_nothing_but_the_file_itself_is_opened(decoding: DecodingSandbox, video: Path, tmp_path: Path) -> None:
    """A playlist that FFmpeg would follow to a readable video, hidden from the first look by leading lines."""
    for text in (f"#EXTM3U\n#EXTINF:1,\n{video}\n", f"ffconcat version 1.0\nfile '{video}'\n"):
        for start in ("", "\n" * 300):
            (tmp_path / "list.mp4").write_text(start + text)
            outcome = decoding.probe(tmp_path / "list.mp4")
            assert isinstance(outcome, RejectedFile) and outcome.reason in ("playlist_refused", "not_a_video")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be read on Linux alone")
def test_the_child_may_write_no_file_and_opens_few(decoding: DecodingSandbox, video: Path) -> None:
    assert is_good(decoding.probe(video))
    limits = {"FSIZE": 0, "NOFILE": 64, "CORE": 0, "AS": decoding.limits.memory_bytes}
    for name, value in limits.items():
        assert resource.prlimit(child_id(decoding), getattr(resource, f"RLIMIT_{name}")) == (value, value), name


def test_the_child_survives_the_terminals_interrupt_and_ends_with_the_sandbox(video: Path) -> None:
    with DecodingSandbox() as decoding:
        assert is_good(decoding.probe(video))
        child = child_id(decoding)
        assert os.getpgid(child) != os.getpgid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize(
    "answer", [b"nonsense\n", b"[]\n", b"{}\n", b'{"frames": 3}\n', b'{"rejected": 3}\n', b'{"rejected": []}\n']
)
def test_the_answer_of_a_hijacked_child_is_checked(answer: bytes) -> None:
    outcome = sandbox._parse_answer(answer)
    assert isinstance(outcome, RejectedFile) and outcome.reason == "decoder_crashed"


def test_a_single_file_can_be_probed(video: Path) -> None:
    assert is_good(probe_safely(video))
