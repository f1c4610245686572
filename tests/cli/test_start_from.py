"""A training that starts from the weights of a finished model; what does not fit it is one line."""

import json
from pathlib import Path

import pytest
import torch

from magi.cli.assemble import build_model
from magi.cli.main import main
from magi.config import DataConfig, TrainingConfig
from magi.config_files import load_config
from magi.files import DEMO_FOLDER
from magi.latents.dataset import LatentDataset
from magi.sampling.pretrained import load_pretrained
from magi.vae.pixel import PixelVae

SHORT = ("--training.steps", 1, "--training.batch", 1, "--training.learning-rate", 1e-9, "--training.warmup-steps", 0)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos, latents = (tmp_path_factory.mktemp("start") / name for name in ("videos", "latents"))
    assert run("data", "digits", videos, "--clips", 10, "--frames", 17) == 0
    assert run("encode", videos, latents, "--vae", "demo", "--height", 64, "--width", 64, "--device", "cpu") == 0
    return latents


def run(*words: object) -> int:
    return main([str(word) for word in words])


def start(source: object, latents: Path, out: Path, *more: object) -> int:
    words = ("--training.start-from", source, "--data.root", latents, "--run", out, "--device", "cpu", *SHORT, *more)
    return run("train", "digits", *words)


@pytest.fixture(scope="module")
def started(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("started") / "run"
    assert start("demo", latents, out) == 0
    return out


def test_the_first_step_starts_from_the_weights_of_the_model(started: Path) -> None:
    before, after = load_pretrained("demo").model.state_dict(), load_pretrained(started).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in before.items())


def test_latents_are_whitened_as_the_model_knows_them(started: Path, latents: Path) -> None:
    """The statistics of the new latents differ, and would shift every token that the weights know."""
    own, kept = (json.loads((folder / "vae/normalization.json").read_text()) for folder in (started, DEMO_FOLDER))
    assert own == kept
    data, vae = DataConfig(root=str(latents), frames=16, height=64, width=64), load_pretrained("demo").vae
    assert list(LatentDataset(latents, data, 0, vae.id, vae.normalization).measured.mean) != kept["mean"]


def test_an_export_does_not_name_where_it_started(started: Path, tmp_path: Path) -> None:
    assert run("export", started, tmp_path / "export") == 0
    assert load_config(started / "config.yaml").training.start_from == "demo"
    assert load_config(tmp_path / "export" / "config.yaml").training.start_from == ""


def test_it_continues_without_the_model(started: Path, latents: Path) -> None:
    assert start("", latents, started, "--training.steps", 2) == 0


def test_a_model_trained_on_shorter_clips_is_a_start(latents: Path, tmp_path: Path) -> None:
    short = ("--data.frames", 3, "--model.frames", 3)
    assert start("", latents, tmp_path / "short", *short) == 0
    assert start(tmp_path / "short", latents, tmp_path / "run") == 0
    before, after = (load_pretrained(tmp_path / name) for name in ("short", "run"))
    assert (before.config.model.frames, after.config.model.frames) == (3, 16)
    weights = after.model.state_dict()
    assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in before.model.state_dict().items())


def test_what_does_not_fit_is_one_line(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(source: object, *more: object) -> str:
        assert start(source, latents, tmp_path / "run", *more) in (2, 5)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("magi")]
        assert len(lines) == 1
        return lines[0]

    assert "model.width 128: demo has 192; set --model.width 192" in error("demo", "--model.width", 128)
    assert "model.width 192: platform has 128" in error("platform")
    assert "no such folder" in error(tmp_path / "nowhere")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_latents_of_another_autoencoder_are_refused() -> None:
    loaded = load_pretrained("demo")
    config = loaded.config.model_copy(update={"training": TrainingConfig(start_from="demo")})
    with pytest.raises(ValueError, match=r"trained on latents of .*, the run's are of pixel"):
        build_model(config, loaded.model.latent, PixelVae(8))
