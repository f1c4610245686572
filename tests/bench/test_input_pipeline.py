"""The input pipeline beside a step: the arithmetic of cores, what is called, and the command on videos and latents."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from magi.bench.input_pipeline import PipelineSpeed, best_rate
from magi.cli.main import main
from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, VaeConfig
from magi.config_files import dump_config
from tests.fakes.encoded_videos import make_index

CONFIG = Config(
    data=DataConfig(frames=3, height=16, width=16, interval_max=2, workers=1, max_bad_fraction=1.0),
    vae=VaeConfig(name="pixel", pixel_stride=8),
    sampling=SamplingConfig(iterations=1, steps=2),
    model=ModelConfig(
        width=16, blocks=1, heads=2, patch_size=1, frames=3, head_width=16, head_blocks=1, diffusion_steps=20,
        interval_vocabulary=2,
    ),
)  # fmt: skip


def test_cores_read_and_draw_as_many_clips_as_the_device_takes() -> None:
    latents = PipelineSpeed(read=100, draw=50, encode=None, step=25)
    assert (latents.device, latents.cores) == (25, pytest.approx(0.25 + 0.5))
    videos = PipelineSpeed(read=10, draw=50, encode=25, step=25)
    assert videos.device == pytest.approx(12.5) and videos.cores == pytest.approx(1.25 + 0.25)


def test_a_rate_is_of_all_clips_of_a_call_and_the_first_call_is_not_timed() -> None:
    asked: list[Sequence[int]] = []
    assert best_rate(asked.append, 3, seconds=1e-9) > 0
    assert asked == [range(3), range(3)]


def test_the_command_measures_videos_and_latents_beside_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, latents, config = tmp_path / "videos", tmp_path / "latents", tmp_path / "config.yaml"
    make_index(videos)
    config.write_text(dump_config(CONFIG))
    words = ["bench", "data", "--beside", str(config), "--clips", "2", "--seconds", "0.001", "--device", "cpu"]

    def parts(root: Path) -> list[str]:
        assert main([*words, "--latents", str(root)]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines() if "clips/s" in line or "busy" in line]

    assert parts(videos) == ["read", "draw", "encode", "step", "cores"]
    encode = ["encode", str(videos), str(latents), "--vae", "pixel", "--pixel-stride", "8"]
    assert main([*encode, "--height", "16", "--width", "16"]) == 0
    capsys.readouterr()
    assert parts(latents) == ["read", "draw", "step", "cores"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what to read: --latents FOLDER"),
        (["--beside", "digits", "--clips", "0"], "--clips 0: expected at least 1"),
        (["--beside", "digitz"], "digits"),
        (["--beside", "digits", "--latents", "/no/where"], "/no/where: no such folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "data", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
