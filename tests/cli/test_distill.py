"""``magi distill`` makes a run whose head alone was trained; what it cannot distil is one line, and nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from magi.cli.main import main
from magi.config import Config
from magi.config_files import load_config
from magi.data.moving_digits import write_digits
from magi.sampling.pipeline import MagiPipeline
from magi.training.distill import distilled_config, one_step_student
from magi.training.log import read_metrics
from magi.training.optimizer import every_optimizer_tensor, make_optimizer
from magi.weights import load_ema
from tests.cli.test_evaluate import untrained
from tests.fakes.training_runs import tiny_config, tiny_model

SHORT = ("--training.steps", 4, "--training.batch", 2, "--training.cooldown-steps", 0, "--data.workers", 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "videos"
    write_digits(folder, 3, size=32, seed=9, frames=32)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("teacher") / "export", 32)


@pytest.fixture(scope="module")
def distilled(teacher: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distilled") / "run"
    assert distil(teacher, out, "--data.root", videos) == 0
    return out


def distil(model: object, out: object, *more: object) -> int:
    return main(["distill", str(model), str(out), "--device", "cpu", *map(str, (*SHORT, *more))])


def test_only_the_head_is_trained(teacher: Path, distilled: Path) -> None:
    before, after = MagiPipeline.from_pretrained(teacher), load_ema(distilled)
    kept = {name: value for name, value in before.model.state_dict().items() if not name.startswith("head.")}
    assert kept and all(torch.equal(after[name], value) for name, value in kept.items())
    channels = before.model.token_channels
    assert after["head.output.weight"].shape[0] == channels and after["head.output.weight"].any()
    assert not torch.equal(after["head.input.weight"], before.model.state_dict()["head.input.weight"])
    losses = [line["loss"] for line in read_metrics(distilled) if "loss" in line]
    assert losses and losses == [line["mse"] for line in read_metrics(distilled) if "loss" in line]


def test_a_distilled_run_samples_in_one_step_and_exports(distilled: Path, tmp_path: Path) -> None:
    pipeline = MagiPipeline.from_pretrained(distilled)
    assert pipeline.config.sampling.steps == 1 and pipeline.config.model.objective == "energy"
    video_BTHWC = pipeline(frames=3, seeds=[0, 1]).video_BTHWC
    assert video_BTHWC.shape == (2, 3, 32, 32, 3)
    assert main(["export", str(distilled), str(tmp_path / "export")]) == 0
    assert "one step a token, trained by the energy score" in (tmp_path / "export" / "README.md").read_text()
    again_BTHWC = MagiPipeline.from_pretrained(tmp_path / "export")(frames=3, seeds=[0, 1]).video_BTHWC
    assert np.array_equal(video_BTHWC.numpy(), again_BTHWC.numpy())


def test_it_continues_to_the_same_weights(teacher: Path, distilled: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert distil(teacher, out, "--data.root", videos, "--training.steps", 2) == 0
    assert distil(teacher, out, "--data.root", videos) == 0
    whole, continued = load_ema(distilled), load_ema(out)
    assert all(torch.equal(continued[name], value) for name, value in whole.items())


def test_what_cannot_be_distilled_is_one_line_and_nothing_is_lost(
    teacher: Path, distilled: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(teacher, other := tmp_path / "other")
    weights = MagiPipeline.from_pretrained(other)
    weights.model.mask_token.data += 1
    weights.save_pretrained(other)
    shutil.copytree(distilled, plain := tmp_path / "plain")
    values = load_config(plain / "config.yaml").model_dump()
    values["model"]["objective"], values["sampling"]["steps"] = "ddpm", 2
    (plain / "config.yaml").write_text(json.dumps(values))
    for averages in plain.glob("checkpoints/*/ema.safetensors"):
        averages.unlink()
    files = {path: path.read_bytes() for folder in (teacher, distilled) for path in folder.rglob("*") if path.is_file()}
    new, data = tmp_path / "new", ("--data.root", videos)
    for code, model, out, more, message in (
        (2, distilled, new, data, f"{distilled}: its head takes one step already; name the model that it was dist"),
        (5, plain, new, data, "ema.safetensors"),
        (5, other, distilled, data, "was started with the frozen weights"),
        (2, teacher, teacher, data, f"{teacher}: has another model; name a new folder"),
        (2, teacher, plain, data, f"{plain}: has another model; name a new folder"),
        (2, teacher, new, (), "data.root is empty; name a folder of videos with --data.root"),
        (2, teacher, new, (*data, "--steps", 0), "--steps, 0; did you mean --training.steps?"),
        (2, teacher, new, (*data, "--training.steps", 0), "steps: Input should be greater than or equal to 1"),
        (2, teacher, new, (*data, "--training.diffusion-batch-mul", 1), "diffusion_batch_mul 1: samples of a token"),
        (2, tmp_path / "none", new, data, "none: no such folder"),
    ):
        capsys.readouterr()
        assert distil(model, out, *more) == code, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in files} == files
    for words, message in (
        (("tune-steps", distilled, "--data", videos), "its head takes one step, there is nothing to place"),
        (("sample", distilled, new, "--frames", 2, "--steps", 3), "sampling.steps 3: the head of this model was tr"),
        (("distill",), "a model comes first"),
    ):
        assert main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_another_autoencoder_s_latents_are_refused(
    teacher: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "latents"
    assert main(["encode", str(videos), str(latents), "--vae", "pixel:8", "--height", "32", "--width", "32"]) == 0
    capsys.readouterr()
    assert distil(teacher, tmp_path / "run", "--data.root", latents) == 2
    error = capsys.readouterr().err
    assert "pixel" in error and error.count("\n") == 1, error


def test_frozen_weights_are_neither_optimized_nor_saved_with_the_optimizer() -> None:
    config: Config = distilled_config(tiny_config(model={"dropout": 0.1}))
    assert config.model.dropout == 0 and config.sampling.steps == 1
    teacher = tiny_model(tiny_config())
    student = one_step_student(teacher, config)
    optimized = [value for group in make_optimizer(student, config.training).param_groups for value in group["params"]]
    assert {id(value) for value in optimized} == {id(value) for value in student.head.parameters()}
    assert all("/head." in name for name in every_optimizer_tensor(student))
    assert not student.head.output.weight.any()
    assert torch.equal(student.head.input.weight, teacher.head.input.weight)
