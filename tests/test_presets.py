"""Presets are whole, valid configs; sizes grow; a misspelt name is answered with the nearest."""

from itertools import pairwise

import pytest
import yaml

from magi.config import Config, ModelConfig, dump_config, parse_config
from magi.presets import PRESETS, SIZES, preset, size


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_survives_yaml(name: str) -> None:
    config = preset(name)
    assert parse_config(yaml.safe_load(dump_config(config)), name) == config
    assert config.model.frames == config.data.frames  # all adapters so far keep the number of frames
    assert config.data.root


def test_large_is_the_paper() -> None:
    """Paper section 3; ``Config`` holds the same numbers as defaults, so the two may not drift apart."""
    assert size("large") == ModelConfig()
    assert Config().model == size("large")


def test_sizes_grow() -> None:
    shapes = [size(name) for name in SIZES]
    assert list(SIZES) == ["tiny", "small", "base", "large"]
    for smaller, larger in pairwise(shapes):
        assert (
            smaller.width < larger.width and smaller.blocks < larger.blocks and smaller.head_width <= larger.head_width
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
        ("xyz", r"unknown preset 'xyz'; there are: digits"),
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
