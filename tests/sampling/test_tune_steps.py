"""Held-out tokens are met as the sampler meets them, and the schedule that is chosen has the lowest score."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.masking import cosine_counts
from magi.sampling import tune_steps
from magi.sampling.history import History
from magi.sampling.tune_steps import HeldOutTokens, ScoredSteps, best_placed, fewest, held_out_tokens, scored
from tests.sampling.test_generate import normal, seeded, tiny_model, told


def test_tokens_are_predicted_in_the_sampler_s_iterations_after_real_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = tiny_model(), SamplingConfig(iterations=3)
    tokens_BTNC, asked, observed = normal(2, 3, 12, 2), [], []
    predict, observe = History.predict, History.observe

    def predicting(self: History, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        asked.append((tokens_BNC, masked_BN, picked_Bm, predict(self, tokens_BNC, masked_BN, picked_Bm)))
        return asked[-1][-1]

    def observing(self: History, tokens_BTNC: Tensor) -> None:
        observed.append((len(asked), tokens_BTNC))
        observe(self, tokens_BTNC)

    monkeypatch.setattr(History, "predict", predicting)
    monkeypatch.setattr(History, "observe", observing)
    conditions = replace(told(2), noise_level_B=torch.ones(2, dtype=torch.long))
    found = held_out_tokens(model, tokens_BTNC, conditions, settings, seeded(1, 2), repeats=30)
    assert [count for count, _ in observed] == [0, 30] and torch.equal(observed[1][1], tokens_BTNC[:, 1:2])
    assert len(asked) == 60, "the first frame has none before it"
    masked = set()
    for number, (tokens_BNC, masked_BN, picked_B1, z_GB1D) in enumerate(asked):
        frame, rows = 1 + number // 30, slice(2 * number, 2 * number + 2)
        assert torch.equal(tokens_BNC, tokens_BTNC[:, frame]) and masked_BN.gather(1, picked_B1).all()
        assert torch.equal(found.z_MD[rows], z_GB1D[0, :, 0])
        expected = torch.stack([tokens_BTNC[clip, frame, int(picked_B1[clip, 0])] for clip in range(2)])
        assert torch.equal(found.token_MC[rows], expected)
        masked |= set(masked_BN.sum(dim=1).tolist())
    first, second, _ = cosine_counts(12, 3)
    assert masked == {12, 12 - first, 12 - first - second}, "what is masked when an iteration begins"
    with pytest.raises(ValueError, match="clips have one latent frame"):
        held_out_tokens(model, tokens_BTNC[:, :1], conditions, settings, seeded(1, 2))


def test_a_head_that_knows_its_tokens_scores_by_its_own_spread() -> None:
    """Samples of a head that always predicts no noise: x0 is then x_t scaled, at any schedule of one step a normal."""
    model = tiny_model()
    torch.nn.init.zeros_(model.head.output.weight)
    torch.nn.init.zeros_(model.head.output.bias)
    held_out = HeldOutTokens(normal(4000, 16), torch.zeros(4000, 2, dtype=torch.float64))
    settings = SamplingConfig(steps=1, first_timestep=5, x0_limit=1000.0)
    alpha_bar = float(tune_steps.make_objective(model.config).steps(settings).x0_from_xt[0]) ** -2
    # |x| is Rayleigh, and a difference of two as wide by sqrt(2): 2 E|x| - E|x - x'| = (2 - sqrt 2) sigma sqrt(pi / 2).
    expected = (2 - 2**0.5) * (torch.pi / 2 / alpha_bar) ** 0.5
    assert scored(model, settings, held_out).score == pytest.approx(expected, rel=0.03)
    assert scored(model, settings, held_out) == scored(model, settings, held_out)


def test_samples_are_scored_against_the_token_of_their_own_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    z_MD = normal(50, 16)
    monkeypatch.setattr(tune_steps, "denoise_tokens", lambda head, z_GMD, *rest: z_GMD[0, :, :2])
    assert scored(tiny_model(), SamplingConfig(steps=2), HeldOutTokens(z_MD, z_MD[:, :2])).score == 0
    assert scored(tiny_model(), SamplingConfig(steps=2), HeldOutTokens(z_MD, z_MD[:, :2].flip(0))).score > 1


def test_the_best_of_all_ends_is_found_and_the_fewest_steps_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = tiny_model(), []

    def score(model: Any, settings: SamplingConfig, held_out: HeldOutTokens) -> ScoredSteps:
        tried.append((settings, len(held_out.token_MC)))
        distance = abs(settings.first_timestep - 42) + abs(settings.last_timestep - 7) + 1 / settings.steps
        return ScoredSteps(settings, 10 + distance)

    monkeypatch.setattr(tune_steps, "scored", score)
    held_out = HeldOutTokens(normal(40, 16), normal(40, 2))
    base = SamplingConfig(temperature=0.7, steps=30)
    found = best_placed(model, base, held_out, 3)
    assert found.settings == base.changed(steps=3, first_timestep=42, last_timestep=7)
    sizes = [size for _, size in tried]
    assert sizes == [10] * (len(sizes) - 6) + [40] * 6 and len(sizes) == 27, (
        "a quarter of the tokens, then the best four"
    )
    tried.clear()
    best_placed(model, base, held_out, 45)
    assert {settings.last_timestep for settings, _ in tried} == {0}, "only ends that leave room for the steps"


def test_of_as_good_schedules_the_earliest_start_and_the_fewest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    by_first = {0: 1.03, 47: 1.02, 44: 1.01, 42: 1.0, 39: 1.01}
    monkeypatch.setattr(
        tune_steps, "scored",
        lambda model, settings, _: ScoredSteps(
            settings, by_first[settings.first_timestep] + 1e-4 * abs(settings.last_timestep - 4)
        ),
    )  # fmt: skip
    held_out, base = HeldOutTokens(normal(40, 16), normal(40, 2)), SamplingConfig()
    monkeypatch.setattr(tune_steps, "FINALISTS", 99)
    found = best_placed(tiny_model(), base, held_out, 3).settings
    assert (found.first_timestep, found.last_timestep) == (47, 4)
    by_first[47] = 1.021
    assert best_placed(tiny_model(), base, held_out, 3).settings.first_timestep == 44
    by_first[0] = 1.01
    assert best_placed(tiny_model(), base, held_out, 3).settings.first_timestep == 0, (
        "the whole schedule is the earliest"
    )

    by_steps = {1: 2.0, 2: 1.04, 4: 1.02, 8: 1.0, 16: 1.01}
    scores = [ScoredSteps(base.changed(steps=steps), score) for steps, score in by_steps.items()]
    assert fewest(scores).settings.steps == 4
