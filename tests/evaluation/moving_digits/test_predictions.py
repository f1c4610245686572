"""Continuations are kept, reused where nothing they depend on has changed, and made again otherwise."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from magi.evaluation.moving_digits.ground_truth import RealClip
from magi.evaluation.moving_digits.predictions import continuations, reconstructions
from magi.presets import preset
from magi.vae.pixel import PixelVae

CLIPS, FRAMES, CONTEXT, SIZE = 4, 9, 3, 16
SETTINGS = {"frames": FRAMES, "context": CONTEXT, "seed": 0, "labels": False}


@pytest.fixture(scope="module")
def clips() -> list[RealClip]:
    video_BTHWC = np.random.default_rng(0).integers(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    return [RealClip(f"{k}_{k:05d}", video_BTHWC[k], k, np.zeros((FRAMES, 2))) for k in range(CLIPS)]


class Fill:
    """A pipeline that generates frames of one grey level, the seed's; it keeps what it was asked."""

    def __init__(self, weight: float = 0.0, stride: int = 8, fail_at_call: int = 0) -> None:
        self.vae, self.config = PixelVae(stride), preset("digits")
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.model.weight, weight)
        torch.nn.init.zeros_(self.model.bias)
        self.asked: list[SimpleNamespace] = []
        self.fail_at_call = fail_at_call

    def stream(
        self, *, frames: int, context: torch.Tensor, labels: Sequence[int] | None, seeds: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        self.asked.append(SimpleNamespace(frames=frames, shape=tuple(context.shape), labels=labels, seeds=list(seeds)))
        if len(self.asked) == self.fail_at_call:
            raise KeyboardInterrupt
        for _ in range(frames - context.shape[1]):
            yield torch.tensor(seeds, dtype=torch.uint8)[:, None, None, None].expand_as(context[:, 0])


def run(
    model: Any, clips: list[RealClip], cache: Path, told: list[Any] | None = None, **changed: Any
) -> NDArray[np.uint8]:
    def tell(what: str, done: int, total: int) -> None:
        if told is not None:
            told.append((what, done, total))

    return continuations("fill", model, clips, cache, SETTINGS | changed, 3, tell)


def test_continuation_is_the_real_context_and_then_what_the_model_made(clips: list[RealClip], tmp_path: Path) -> None:
    model, told = Fill(), []
    video_BTHWC = run(model, clips, tmp_path, told, seed=5)
    for number, clip in enumerate(clips):
        np.testing.assert_array_equal(video_BTHWC[number, :CONTEXT], clip.video_THWC[:CONTEXT])
        assert (video_BTHWC[number, CONTEXT:] == 5 + number).all()
    first, second = model.asked
    assert (first.frames, first.shape) == (FRAMES, (3, CONTEXT, SIZE, SIZE, 3))
    assert (first.seeds, second.seeds, first.labels) == ([5, 6, 7], [8], None)
    assert told[-1] == ("fill: generating", CLIPS * (FRAMES - CONTEXT), CLIPS * (FRAMES - CONTEXT))
    assert [call[1] for call in told] == [3, 6, 9, 12, 15, 18, 19, 20, 21, 22, 23, 24]


def test_second_call_generates_nothing_and_returns_the_same(clips: list[RealClip], tmp_path: Path) -> None:
    video_BTHWC, again = run(Fill(), clips, tmp_path), Fill()
    np.testing.assert_array_equal(run(again, clips, tmp_path), video_BTHWC)
    assert again.asked == []


@pytest.mark.parametrize("damage", [lambda content: content[:500], lambda content: b"", lambda content: b"x" * 5000])
def test_damaged_file_alone_is_made_again(clips: list[RealClip], tmp_path: Path, damage: Any) -> None:
    video_BTHWC, again = run(Fill(), clips, tmp_path), Fill()
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == CLIPS and load_file(kept[1])["video_THWC"].shape == (FRAMES, SIZE, SIZE, 3)
    kept[1].write_bytes(damage(kept[1].read_bytes()))
    np.testing.assert_array_equal(run(again, clips, tmp_path), video_BTHWC)
    assert [call.seeds for call in again.asked] == [[1]]


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"seed": 100}, {}),
        ({"labels": True}, {}),
        ({"frames": 8}, {}),
        ({"context": 2}, {}),
        ({}, {"weight": 1.0}),
        ({}, {"stride": 4}),
    ],
)
def test_other_settings_and_models_never_meet_old_files(
    clips: list[RealClip], tmp_path: Path, settings: dict[str, Any], model: dict[str, Any]
) -> None:
    run(Fill(), clips, tmp_path)
    other = Fill(**model)
    run(other, clips, tmp_path, **settings)
    assert sum(len(call.seeds) for call in other.asked) == CLIPS
    assert other.asked[0].labels == ([0, 1, 2] if settings.get("labels") else None)


def test_other_sampling_and_other_context_pixels_never_meet_old_files(clips: list[RealClip], tmp_path: Path) -> None:
    run(Fill(), clips, tmp_path)
    other = Fill()
    other.config = other.config.model_copy(
        update={"sampling": other.config.sampling.model_copy(update={"temperature": 0.9})}
    )
    run(other, clips, tmp_path)
    assert len(other.asked) == 2
    changed, model = clips[0].video_THWC.copy(), Fill()
    changed[CONTEXT - 1, 0, 0, 0] ^= 1
    run(model, [RealClip(clips[0].name, changed, 0, clips[0].path_T2), *clips[1:]], tmp_path)
    assert [call.seeds for call in model.asked] == [[0]]


def test_stopped_call_goes_on_where_it_was(clips: list[RealClip], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Fill(fail_at_call=2), clips, tmp_path)
    resumed = Fill()
    run(resumed, clips, tmp_path)
    assert [call.seeds for call in resumed.asked] == [[3]]


def test_models_with_one_autoencoder_share_its_reconstructions(clips: list[RealClip]) -> None:
    def tell(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total

    same = reconstructions({"a": Fill(), "b": Fill(1.0)}, clips, 3, tell)
    assert list(same) == ["vae"]
    np.testing.assert_array_equal(same["vae"], np.stack([clip.video_THWC for clip in clips]))
    assert list(reconstructions({"a": Fill(), "b": Fill(stride=4)}, clips, 3, tell)) == ["vae a", "vae b"]
