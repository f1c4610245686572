"""Presets are whole, valid configs; sizes grow; a misspelt name is answered with the nearest."""

from itertools import pairwise

import pytest
import yaml

from magi.config import Config, DataConfig, LatentShape, ModelConfig, SamplingConfig, VaeConfig
from magi.config_files import dump_config, parse_config
from magi.presets import PAPER, PAPER_SIZE, PRESETS, SIZES, SPEEDS, at_speed, preset, resized, size
from magi.vae.adapters import published_latent


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_survives_yaml(name: str) -> None:
    config = preset(name)
    assert parse_config(yaml.safe_load(dump_config(config)), name) == config
    latent = published_latent(config.vae, config.data, config.model.patch_size)
    assert config.model.frames == (latent.frames if latent else config.data.frames)
    assert config.data.root


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rate", "frames", "latent_frames", "tokens", "token_channels"),
    [
        ("ucf101-sd", 1400, 128, 1e-4, 16, 16, 256, 16),
        ("ucf101-cosmos", 1400, 128, 1e-4, 17, 5, 256, 64),
        ("ucf101-cosmos-class", 1400, 128, 1e-4, 17, 5, 64, 64),
        ("k600-omni", 150, 256, 2e-4, 17, 5, 256, 32),
    ],
)
def test_presets_are_the_papers_runs(
    name: str, epochs: int, batch: int, rate: float, frames: int, latent_frames: int, tokens: int, token_channels: int
) -> None:
    """Paper sections 3 and 4; epochs are counted in steps of the data set's videos."""
    config, training = preset(name), preset(name).training
    assert training.steps == round(PAPER[name].videos * epochs / batch)
    assert (training.batch, training.learning_rate, training.warmup_steps) == (batch, rate, 10_000)
    assert (training.ema_decay, training.precision, training.cooldown_steps) == (0.9999, "bf16", 0)
    assert (config.data.frames, config.data.interval_min, config.data.interval_max) == (frames, 1, 25)
    latent = published_latent(config.vae, config.data, config.model.patch_size)
    assert latent is not None and latent.frames == latent_frames
    assert latent.height * latent.width // 4 == tokens and 4 * latent.channels == token_channels
    assert config.model == size("large", frames=latent_frames, classes=config.model.classes)
    assert (config.sampling.iterations, config.sampling.steps) == (64, 100)


def test_what_sets_the_presets_apart() -> None:
    classes = preset("ucf101-cosmos-class")
    assert (classes.model.classes, classes.sampling.guidance, classes.training.class_dropout) == (101, 7.0, 0.1)
    assert [preset(name).sampling.context_frames for name in PAPER] == [1, 1, 0, 5]
    assert [preset(name).vae.name for name in PAPER] == ["sd", "cosmos", "cosmos", "omni"]


def test_text_at_the_papers_size_differs_by_what_text_needs() -> None:
    config, frames = preset("text"), preset("ucf101-cosmos")
    assert config.vae == frames.vae and (config.data.height, config.data.frames) == (256, 17)
    reads = {"text_encoder": "frozen", "text_width": 4096}
    assert config.model == frames.model.model_copy(update=reads) == size("large", frames=5, **reads)
    assert config.training.steps == round(PAPER_SIZE["text"].videos * 60 / config.training.batch)
    assert (config.training.batch, config.training.learning_rate) == (256, 2e-4)
    assert config.data.text_states and (config.model.text_tokens, config.model.text_length) == (16, 128)


def test_resized_changes_the_shape_alone() -> None:
    config = resized(preset("k600-omni"), "small")
    assert config.model == size("small", frames=5)
    assert config.model_copy(update={"model": preset("k600-omni").model}) == preset("k600-omni")
    with pytest.raises(ValueError, match=r"unknown size 'smal'; did you mean 'small'\?"):
        resized(config, "smal")


@pytest.mark.parametrize(
    ("name", "frames", "side", "latent"),
    [
        ("sd", 16, 256, LatentShape(frames=16, channels=4, height=32, width=32)),
        ("cosmos", 17, 256, LatentShape(frames=5, channels=16, height=32, width=32)),
        ("omni", 5, 128, LatentShape(frames=2, channels=8, height=16, width=16)),
        ("ltx", 17, 256, LatentShape(frames=3, channels=128, height=8, width=8)),
        ("pixel", 3, 32, LatentShape(frames=3, channels=192, height=4, width=4)),
    ],
)
def test_published_sizes(name: str, frames: int, side: int, latent: LatentShape) -> None:
    data = DataConfig(frames=frames, height=side, width=side)
    assert published_latent(VaeConfig.model_validate({"name": name}), data, patch=2) == latent


def test_clips_that_a_published_autoencoder_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"16 frames: this autoencoder takes 1 \+ 4 k frames; use 13 or 17"):
        published_latent(VaeConfig(name="cosmos"), DataConfig(frames=16), patch=2)
    with pytest.raises(ValueError, match=r"data\.height 100 .* divisible by 16"):
        published_latent(VaeConfig(name="sd"), DataConfig(height=100), patch=2)
    with pytest.raises(ValueError, match=r"192 x width 128: .* squares with a side divisible by 64; try 128 x 128"):
        published_latent(VaeConfig(name="omni"), DataConfig(frames=17, height=192, width=128), patch=2)
    assert published_latent(VaeConfig(name="small"), DataConfig(), patch=2) is None


def test_large_is_the_paper() -> None:
    """Paper section 3; ``Config`` holds the same numbers as defaults, so the two may not drift apart."""
    assert size("large") == ModelConfig()
    assert Config().model == size("large")


def test_sizes_grow() -> None:
    shapes = [size(name) for name in SIZES]
    assert list(SIZES) == ["nano", "tiny", "small", "base", "large"]
    for smaller, larger in pairwise(shapes):
        assert (
            smaller.width < larger.width and smaller.blocks <= larger.blocks and smaller.head_width <= larger.head_width
        )


def test_digits_is_what_the_shipped_model_needs() -> None:
    config = preset("digits")
    assert (config.data.height, config.data.width, config.data.frames) == (64, 64, 16)
    assert (config.model.classes, config.model.class_tokens, config.model.dropout) == (10, 1, 0.0)
    assert (config.vae.name, config.vae.weights, config.sampling.longer) == ("small", "demo", "window")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"unknown preset 'digit'; did you mean 'digits'\?"),
        (
            "xyz",
            r"unknown preset 'xyz'; there are: digits, digits-text, world-platform, world-paddle",
        ),
        ("k600omni", r"unknown preset 'k600omni'; did you mean 'k600-omni'\?"),
    ],
)
def test_unknown_preset(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(name)


def test_unknown_size_and_setting() -> None:
    with pytest.raises(ValueError, match=r"unknown size 'smal'; did you mean 'small'\?"):
        size("smal")
    with pytest.raises(ValueError, match="clases"):
        size("tiny", clases=3)


def test_the_command_line_knows_every_speed() -> None:
    from typing import get_args

    from magi.cli.options import Speed

    assert list(get_args(Speed)) == list(SPEEDS)


def test_a_model_has_the_speeds_that_keep_its_quality() -> None:
    paper = SamplingConfig(steps=10)
    assert at_speed(paper, "full") == paper
    with pytest.raises(ValueError, match=r"speed 'fast': no steps are known .*: magi tune-steps MODEL --data DIR$"):
        at_speed(paper, "fast")
    tuned = paper.changed(first_timestep=990, fast_steps=3, fast_first_timestep=900, fast_last_timestep=150)
    assert at_speed(tuned, "full") == tuned
    assert at_speed(tuned, "fast") == tuned.changed(steps=3, first_timestep=900, last_timestep=150)
    with pytest.raises(ValueError, match=r"unknown speed 'fats'; did you mean 'fast'"):
        at_speed(SamplingConfig(), "fats")
