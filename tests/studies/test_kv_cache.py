"""The cache study: both ways make the same latents, what each observes, and the exponents and verdicts."""

from pathlib import Path

import pytest
import torch

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.errors import NumericsError
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from studies.kv_cache import (
    CacheOptions,
    UncachedHistory,
    check_parity,
    draw,
    exponent,
    exponents,
    judged,
    latents,
    study,
)

CONFIG = SamplingConfig(iterations=2, steps=20, longer="interpolate", noise_level=2)


@pytest.fixture(scope="module")
def model() -> Magi:
    shape = ModelConfig(
        width=16, blocks=2, heads=2, frames=4, head_width=16, head_blocks=1, dropout=0.0, diffusion_steps=20
    )
    made = Magi(shape, LatentShape(frames=4, channels=2, height=4, width=4), torch.Generator().manual_seed(0))
    for layer in (made.head.modulation, made.head.output):
        torch.nn.init.normal_(layer.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    return made.double().eval()  # in doubles, so that what remains is no rounding


def conditions(batch: int = 2) -> Conditions:
    return Conditions(torch.ones(batch, dtype=torch.long), torch.full((batch,), 2), None)


def test_both_ways_make_the_same_latents_beyond_the_trained_length(model: Magi) -> None:
    assert check_parity(model, CONFIG, conditions(), 9) < 1e-9
    one = latents(model, CONFIG, conditions(), 9, "with")
    assert one.shape == (2, 9, 4, 8) and float(one.std()) > 0.1
    # The past matters, or equal latents would say nothing.
    assert not torch.equal(one[:, 1], latents(model, CONFIG, conditions(), 10, "with")[:, 1])


def test_ways_that_differ_are_not_timed(model: Magi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UncachedHistory, "observe", lambda self, tokens_BTNC: None)
    with pytest.raises(NumericsError, match="differ by"):
        check_parity(model, CONFIG, conditions(), 6)


def test_without_cache_every_iteration_observes_all_earlier_frames(
    model: Magi, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    observe = model.observe

    def counted(tokens_BTNC: torch.Tensor, *rest: object) -> None:
        seen.append(tokens_BTNC.shape[1])
        observe(tokens_BTNC, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "observe", counted)
    latents(model, CONFIG, conditions(1), 4, "without")
    assert seen == [1, 1, 2, 2, 3, 3]


def test_exponent_of_powers() -> None:
    frames = [8, 16, 32]
    assert exponent(frames, [3.0 * n for n in frames]) == pytest.approx(1.0)
    assert exponent(frames, [0.1 * n**2 for n in frames]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two numbers of frames"):
        exponent([8, 8], [1.0, 2.0])


def test_verdicts_on_made_up_seconds() -> None:
    def rounds(power: float) -> dict[int, list[float]]:
        return {n: [0.1 * n**power, 0.101 * n ** (power + 0.001), 0.1 * n ** (power + 0.002)] for n in (8, 16, 32)}

    assert [part.verdict for part in judged({"with": rounds(1.0), "without": rounds(1.8)})] == [
        "supported",
        "supported",
    ]
    assert [part.verdict for part in judged({"with": rounds(1.8), "without": rounds(1.0)})] == [
        "contradicted",
        "contradicted",
    ]
    found = {"with": rounds(1.0), "without": rounds(1.8)}
    assert exponents(found)["without"] == pytest.approx([1.8, 1.801, 1.802])
    assert len(draw(found, exponents(found)).axes) == 2


def test_study_of_the_shipped_model_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = CacheOptions(frames=(2, 3), rounds=2, steps=25, results=tmp_path, device="cpu")
    path = study(asked)
    assert path == tmp_path / "kv_cache-demo.json" and path.with_suffix(".png").is_file()
    said = capsys.readouterr().out
    assert said.index("parity") < said.index("round 1: 2 frames with")
    assert '"clock": "processor time"' in path.read_text()


@pytest.mark.parametrize("given", [{"rounds": 1}, {"batch": 0}, {"frames": (8,)}, {"frames": (1, 2)}])
def test_impossible_options_are_refused(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected --rounds"):
        study(CacheOptions(results=tmp_path, device="cpu", **given))  # type: ignore[arg-type]
