"""The gap of masked teacher forcing: what a masked past shows, and the study on pasts whose distances are known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import Config, LatentShape, ModelConfig, SamplingConfig, TrainingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.history import History
from magi.vae.pixel import PixelVae
from studies import mtf_history
from studies.measures import FID, FVD
from studies.mtf_history import CTF, MASKED, MTF, MaskedHistory, continued_from
from studies.results import read_report
from studies.variants import OneSeedOptions
from tests.fakes.study_fakes import BUDGET, real_tensors, write_real, write_run

TRAINING = TrainingConfig()
SAMPLING = SamplingConfig(iterations=2, steps=4)


def tiny_model(frames: int = 4, channels: int = 2) -> Magi:
    shape = ModelConfig(
        width=16, blocks=2, heads=2, frames=frames, head_width=16, head_blocks=1, dropout=0.0,
        teacher_forcing="masked", diffusion_steps=20,
    )  # fmt: skip
    latent = LatentShape(frames=frames, channels=channels, height=8, width=8)
    return Magi(shape, latent, torch.Generator().manual_seed(0)).eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(model: Magi) -> tuple[Any, ...]:
    ones_B = torch.ones(2, dtype=torch.long)
    return model, Conditions(ones_B, ones_B, None), [torch.Generator().manual_seed(k) for k in (0, 1)], 4, SAMPLING


@torch.inference_mode()
def test_a_masked_past_hides_what_training_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each video and frame by a mask of its own, at ratios of the training; the new frame follows after them."""
    model, seen = tiny_model(), []
    observe = model.observe

    def spy(*arguments: Any) -> None:
        seen.append((arguments[1].tolist(), arguments[4]))
        observe(*arguments)

    monkeypatch.setattr(model, "observe", spy)
    past = MaskedHistory(TRAINING, *told(model))
    past.observe(drawn(2, 2, 16, 8))
    past.observe(drawn(2, 1, 16, 8, seed=2))
    assert [times for times, _ in seen] == [[0, 1], [2]] and past.cache.length == 3
    masks_BTN = torch.cat([mask for _, mask in seen], dim=1)
    assert masks_BTN.shape == (2, 3, 16) and (masks_BTN.float().mean(2) >= TRAINING.mask_ratio_min).all()
    assert not masks_BTN.all(), "not everything"
    assert len({tuple(mask.tolist()) for mask in masks_BTN.flatten(0, 1)}) > 3


@torch.inference_mode()
def test_what_is_hidden_is_not_seen() -> None:
    """With everything masked one past is as good as another; a complete past tells them apart."""
    model = tiny_model()
    picked_Bm, masked_BN = torch.tensor([[3, 5], [0, 1]]), torch.ones(2, 16, dtype=torch.bool)

    def predicted(past: History, seed: int) -> Tensor:
        past.observe(drawn(2, 1, 16, 8, seed=seed))
        return past.predict(drawn(2, 16, 8), masked_BN, picked_Bm)

    nothing = TRAINING.model_copy(update={"mask_ratio_min": 1.0})
    blind = [predicted(MaskedHistory(nothing, *told(model)), seed) for seed in (1, 2)]
    torch.testing.assert_close(*blind)
    assert not torch.allclose(*(predicted(History(*told(model)), seed) for seed in (1, 2)))


def test_clips_begin_with_their_context_and_depend_on_their_past() -> None:
    config = Config(sampling=SAMPLING)
    pipe: Any = SimpleNamespace(model=tiny_model(channels=3 * 64), vae=PixelVae(8), config=config)
    for layer in (pipe.model.head.modulation, pipe.model.head.output):
        torch.nn.init.normal_(layer.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    context_BTHWC = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    complete, masked, again = (continued_from(pipe, context_BTHWC, 4, way) for way in (False, True, True))
    for video_BTHWC in (complete, masked):
        assert video_BTHWC.shape == (2, 4, 64, 64, 3) and torch.equal(video_BTHWC[:, :1], context_BTHWC)
    assert torch.equal(masked, again) and not torch.equal(complete, masked)


@pytest.mark.parametrize(("masked_shift", "verdict"), [(0.5, "supported"), (2.0, "contradicted")])
def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked_shift: float, verdict: str) -> None:
    """Features of known distance stand in for both pasts; what was made is kept."""
    monkeypatch.setattr("studies.statistics.TAIL_DRAWS", 0.1)
    write_real(tmp_path)
    write_run(tmp_path, CTF, 0, shift=0.2)
    write_run(tmp_path, MTF, 0, shift=9.0)  # by the pipeline; the study compares pasts that went through one loop
    real, made = real_tensors(), []

    def features(masked: bool, device: str) -> dict[str, Tensor]:
        made.append(masked)
        shift = masked_shift if masked else 1.0
        return {"digits3d": real["digits3d"] + shift, "grey_edges": real["grey_edges"] + 0.1 * shift}

    monkeypatch.setattr(mtf_history.MagiPipeline, "from_pretrained", lambda *_: None)
    monkeypatch.setattr(mtf_history, "held_out_clips", lambda *_: torch.zeros(1, 1))
    monkeypatch.setattr(mtf_history, "continued_from", lambda pipe, context, frames, masked: masked)
    monkeypatch.setattr(mtf_history, "clip_features", features)
    options = OneSeedOptions(out=tmp_path, results=tmp_path / "results", budget=BUDGET, device="cpu")
    for _ in range(2):
        path = mtf_history.study(options)
    assert path is not None and made == [False, True]
    report = read_report(path)
    assert report["verdict"] == verdict
    assert set(report["numbers"]["variants"]) == {CTF, MTF, MASKED} and set(report["settings"]["variants"]) == {
        CTF,
        MTF,
    }
    assert report["numbers"]["variants"][MTF][FVD] == pytest.approx([64.0], rel=1e-3)
    assert report["statements"][0]["quantity"] == f"{FID} of {MASKED} less that of {MTF}, over it"
    assert report["statements"][1]["effect"]["value"] == pytest.approx(masked_shift**2 - 1, rel=1e-3)
