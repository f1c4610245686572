"""What a user asks for is understood, or refused in one line that says what was expected."""

import numpy as np
import pytest
import torch

from magi.config import Config, DataConfig, ModelConfig, SamplingConfig
from magi.sampling.request import batch_of, changed_settings, context_batch, make_conditions

CONFIG = Config(data=DataConfig(frames=4, height=8, width=16, interval_max=3))
CLASSES = ("apple", "pear", "3")
MODEL = ModelConfig(classes=3, interval_vocabulary=5, noise_levels=4)


def video(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def test_given_settings_replace_those_of_the_config() -> None:
    base = SamplingConfig(steps=7, temperature=0.5)
    assert changed_settings(base, None) == changed_settings(base, {}) == base
    changed = base.model_copy(update={"steps": 9, "longer": "window"})
    assert changed_settings(base, {"steps": 9, "longer": "window"}) == changed
    assert changed_settings(base, SamplingConfig(steps=3)) == SamplingConfig(steps=3), "replaces all of it"
    with pytest.raises(ValueError, match=r"sampling: temperature: .* \(got -1\)"):
        changed_settings(base, {"temperature": -1})
    with pytest.raises(ValueError, match="sampling: stepz: unknown key; did you mean 'steps'"):
        changed_settings(base, {"stepz": 9})


def test_a_context_is_one_video_or_a_batch() -> None:
    assert context_batch(None, 3, CONFIG) is None
    assert context_batch(video(0, 8, 16, 3), 3, CONFIG) is None
    single = context_batch(video(2, 8, 16, 3), 3, CONFIG)
    assert single is not None and single.shape == (1, 2, 8, 16, 3)
    frames = np.arange(2 * 8 * 16 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    frames.setflags(write=False)
    flipped = context_batch(frames[::-1], 3, CONFIG)  # read-only and of negative stride
    assert flipped is not None and np.array_equal(flipped[0].numpy(), frames[::-1])


@pytest.mark.parametrize(
    ("context", "frames", "message"),
    [
        (video(2, 8, 16, 3), 2, "frames 2 .context included. leave none to generate after 2 context frames"),
        (video(2, 8, 8, 3), 9, "expected 8x16 pixels .the model's., got 8x8"),
        (video(2, 8, 16, 4), 9, r"got \(2, 8, 16, 4\)"),
        (video(8, 16, 3), 9, r"got \(8, 16, 3\)"),
        (torch.zeros(2, 8, 16, 3), 9, "of torch.float32"),
        (None, 0, "frames: expected at least 1, got 0"),
    ],
)
def test_another_context_is_refused(context: torch.Tensor | None, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        context_batch(context, frames, CONFIG)


def test_there_is_a_video_for_each_seed_context_or_label() -> None:
    assert batch_of(None, None, None) == [0]
    assert batch_of(None, "apple", None) == [0]
    assert batch_of(None, [0, 1], None) == [0, 1]
    assert batch_of(video(3, 1, 8, 16, 3), 1, None) == [0, 1, 2]
    assert batch_of(video(1, 1, 8, 16, 3), None, [5, 5]) == [5, 5]
    for arguments, message in (
        ((video(3, 1, 8, 16, 3), None, [1, 2]), r"context: expected 1 or 2 \(one a video\), got 3"),
        ((None, [0, 1, 2], [1, 2]), "labels: expected 1 or 2"),
        ((None, None, [-1]), r"seeds: .*got \[-1\]"),
        ((None, None, [2**32]), "seeds"),
        ((None, None, []), "seeds"),
        ((None, [], None), "labels: expected 1 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_of(*arguments)


def test_labels_are_names_numbers_or_nothing() -> None:
    def labels(asked: object, batch: int = 3) -> list[int]:
        conditions = make_conditions(MODEL, CLASSES, asked, 2, 4, batch)  # type: ignore[arg-type]
        assert conditions.interval_B.tolist() == [2] * batch
        assert conditions.noise_level_B.tolist() == [4] * batch
        assert conditions.label_B is not None
        return conditions.label_B.tolist()

    assert labels(["pear", 0, None]) == [1, 0, 3]
    assert labels("apple") == [0, 0, 0]
    assert labels(None) == [3, 3, 3], "no label is the null label"
    assert labels("3", 1) == [2], "a name goes before a number"
    assert labels("2", 1) == [2]
    assert make_conditions(ModelConfig(), None, None, 1, 1, 2).label_B is None


@pytest.mark.parametrize(
    ("labels", "interval", "noise_level", "message"),
    [
        ("peer", 1, 1, "label 'peer': no such class; did you mean 'pear'"),
        (3, 1, 1, r"label 3: expected 0\.\.2"),
        (-1, 1, 1, "label -1"),
        (None, 6, 1, r"interval: expected a whole number in 1\.\.5, got 6"),
        (None, 0, 1, "interval"),
        (None, 1, 5, r"noise_level: expected a whole number in 1\.\.4, got 5"),
    ],
)
def test_what_the_model_has_no_embedding_for_is_refused(
    labels: int | str | None, interval: int, noise_level: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_conditions(MODEL, CLASSES, labels, interval, noise_level, 1)


def test_a_label_for_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="label 'pear': this model has no classes"):
        make_conditions(ModelConfig(), None, "pear", 1, 1, 1)
    with pytest.raises(ValueError, match=r"no such class; expected a number in 0\.\.2"):
        make_conditions(MODEL, None, "pear", 1, 1, 1)
