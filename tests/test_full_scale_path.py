"""The paper's Kinetics-600 run in small, from the command line: encode, train on two processes that share the model,
die, go on exactly, export, predict from five frames."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from magi.cli.main import main
from magi.data.decoding.frames import VideoProbe
from magi.data.decoding.sandbox import probe_safely
from magi.files import CHECKPOINTS_FOLDER
from magi.training.run_folder import STOP_FILE, STOPPED_FILE
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.shape import OmniShape
from magi.weights import step_folder
from tests.fakes import launched
from tests.fakes.training_runs import told

pytestmark = pytest.mark.slow

STEPS = 20
SHAPE = OmniShape(
    width=32,
    heads=2,
    head_width=8,
    temporal_depth=1,
    encoder_blocks="t",
    decoder_blocks="t",
)
SHRUNK = (
    "--size tiny --model.width 32 --model.blocks 2 --model.heads 2 --model.head-width 32 --model.head-blocks 1 "
    "--data.height 64 --data.width 64 --data.interval-max 2 --data.workers 0 "
    f"--training.steps {STEPS} --training.batch 4 --training.micro-batch 1 --training.warmup-steps 2 "
    "--training.log-every 1 --training.checkpoint-every 3 --training.parallel fsdp --device cpu "
    "--sampling.iterations 4 --sampling.steps 4"
).split()


def magi(*words: str | Path) -> str:
    """What a command prints; in this process, which has loaded torch already."""
    with redirect_stdout(StringIO()) as said:
        assert main([str(word) for word in words]) == 0
    return said.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, an autoencoder of random weights, and latents of five frames for seventeen."""
    folder = tmp_path_factory.mktemp("k600")
    OmniVae(SHAPE).save(folder / "omni")
    magi("data", "digits", folder / "videos", "--clips", "10", "--size", "64")
    out = magi(
        *(
            "encode",
            folder / "videos",
            folder / "latents",
            "--vae",
            f"omni:{folder / 'omni'}",
            "--clips-per-video",
            "2",
        ),
        *("--height", "64", "--width", "64", "--frames", "17", "--interval-max", "2", "--device", "cpu"),
    )
    assert "1 shards written" in out
    return folder


def training(world: Path, run: str, *more: str) -> "subprocess.Popen[bytes]":
    command = ["train", "k600-omni", "--run-dir", str(world / run), "--data.root", str(world / "latents")]
    words = [*command, "--vae.weights", str(world / "omni"), *SHRUNK, *more]
    return launched.torchrun("magi", *words, log=world / f"{run}.log")


def finished(world: Path, run: str) -> None:
    assert launched.exit_code(training(world, run)) == 0, (world / f"{run}.log").read_text()


def steps_seen(world: Path, run: str, steps: int, launcher: "subprocess.Popen[bytes]") -> None:
    """Wait until the run has told of ``steps``, or fail if it has ended before."""
    deadline = time.monotonic() + launched.PATIENCE_S
    while len(told(world / run)) < steps:
        assert launcher.poll() is None and time.monotonic() < deadline, (world / f"{run}.log").read_text()
        time.sleep(0.01)


def kill_all(launcher: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for the processes that the launcher started and, before it can do anything about that, for itself."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(launcher.pid, signal.SIGSTOP)
    for process in (*map(int, children), launcher.pid):
        os.kill(process, signal.SIGKILL)
    launcher.wait()


def test_trains_is_killed_resumes_exactly_exports_and_predicts(world: Path) -> None:
    finished(world, "whole")
    launcher = training(world, "killed")
    steps_seen(world, "killed", 5, launcher)  # past the checkpoint of step 3
    kill_all(launcher)
    killed_at = told(world / "killed")[-1]["step"]
    assert 5 <= killed_at < STEPS
    finished(world, "killed")
    assert "continuing" in (world / "killed.log").read_text()
    assert told(world / "killed") == told(world / "whole")
    assert [line["step"] for line in told(world / "whole")] == list(range(1, STEPS + 1))
    for name in ("model", "ema", "optimizer"):
        file = Path(CHECKPOINTS_FOLDER) / step_folder(STEPS) / f"{name}.safetensors"
        assert (world / "killed" / file).read_bytes() == (world / "whole" / file).read_bytes(), name

    magi("export", world / "killed", world / "export")
    context = sorted((world / "videos").rglob("*.mp4"))[0]
    magi(
        *("sample", world / "export", world / "samples", "--context", context, "--context-frames", "5"),
        *("--frames", "17", "--device", "cpu"),
    )
    (video,) = sorted((world / "samples").rglob("*.mp4"))
    probe = probe_safely(video)
    assert isinstance(probe, VideoProbe) and probe.frames == 17


def stopped_by(world: Path, run: str, how: Callable[["subprocess.Popen[bytes]"], object]) -> int | None:
    """Exit code of a launcher whose run is asked to stop after its first step."""
    launcher = training(world, run, "--training.steps", "100000")
    steps_seen(world, run, 1, launcher)
    how(launcher)
    return launched.exit_code(launcher)


def test_the_launcher_hides_the_exit_code_and_the_folder_tells_of_a_clean_stop(world: Path) -> None:
    """What docs/cluster.md says of torchrun: not 75, so scripts look for the file."""
    run = world / "stopped"
    assert stopped_by(world, "stopped", lambda _: (run / STOP_FILE).touch()) == 1
    first = int((run / STOPPED_FILE).read_text())
    assert first and (run / CHECKPOINTS_FOLDER / step_folder(first)).is_dir()
    (run / "metrics.jsonl").write_text("")  # so that the next first step is waited for
    assert stopped_by(world, "stopped", lambda launcher: launcher.terminate()) not in (None, 0, 75)
    second = int((run / STOPPED_FILE).read_text())
    assert second > first and (run / CHECKPOINTS_FOLDER / step_folder(second)).is_dir()
