"""Where few denoising steps are best placed: schedules compared by the energy score of the head on held-out tokens.

At the highest timesteps of the cosine schedule the head's error counts most, and at the lowest there is little noise
left to remove; how many steps to leave out at either end depends on the model. The score needs tokens and their
conditions alone, so a schedule costs seconds, not videos. Knows no files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion_head import FoldedHead
from magi.model.magi import Magi
from magi.model.masking import cosine_counts, random_order
from magi.model.objectives.contract import make_objective
from magi.sampling.denoise import denoise_tokens, draw_noise
from magi.sampling.energy_score import energy_score
from magi.sampling.history import History

FIRST = (0.97, 0.95, 0.9, 0.85, 0.8, 0.7)
LAST = (0.0, 0.08, 0.15, 0.22, 0.3, 0.4)
"""Ends of the schedules that are tried, as shares of the timesteps of training; beside them the whole schedule."""
SAMPLES = 2
"""Drawn of each token for a score."""
DRAFTED = 4
"""All schedules are scored on one of so many tokens, and as many of the best on all."""


@dataclass(frozen=True)
class HeldOutTokens:
    """M tokens with the conditions that the sampler would predict them from, z_MD, and the clips that they are of."""

    z_MD: Tensor
    token_MC: Tensor
    clip_M: Tensor

    def every(self, step: int) -> "HeldOutTokens":
        """One token of ``step``."""
        return HeldOutTokens(self.z_MD[::step], self.token_MC[::step], self.clip_M[::step])


@torch.inference_mode()
def held_out_tokens(
    model: Magi,
    tokens_BTNC: Tensor,
    conditions: Conditions,
    settings: SamplingConfig,
    generators: Sequence[torch.Generator],
    repeats: int = 2,
) -> HeldOutTokens:
    """``repeats`` tokens of every frame, drawn as the sampler meets them: in a random order, in its iterations.

    What the sampler would have made itself, earlier frames and earlier tokens, is real here.
    """
    history = History(model, conditions, generators, tokens_BTNC.shape[1], settings)
    ends_I = torch.tensor(cosine_counts(model.tokens_per_frame, settings.iterations)).cumsum(0)
    clips_B, found = torch.arange(len(generators)), list[HeldOutTokens]()
    for tokens_BNC in tokens_BTNC.unbind(1):
        for _ in range(repeats):
            order_BN = torch.stack([random_order(model.tokens_per_frame, one) for one in generators])
            rank_B = torch.cat([torch.randint(model.tokens_per_frame, (1,), generator=one) for one in generators])
            first_B = torch.cat([ends_I.new_zeros(1), ends_I])[torch.searchsorted(ends_I, rank_B, right=True)]
            masked_BN = torch.zeros_like(order_BN, dtype=torch.bool)
            masked_BN.scatter_(1, order_BN, torch.arange(model.tokens_per_frame) >= first_B[:, None])
            picked_B1 = order_BN.gather(1, rank_B[:, None]).to(tokens_BNC.device)
            z_BD = history.predict(tokens_BNC, masked_BN.to(tokens_BNC.device), picked_B1)[0, :, 0]
            found.append(HeldOutTokens(z_BD.clone(), tokens_BNC[clips_B, picked_B1[:, 0]], clips_B))
        if len(found) < repeats * tokens_BTNC.shape[1]:
            history.observe(tokens_BNC[:, None])
    parts = ([getattr(one, name) for one in found] for name in ("z_MD", "token_MC", "clip_M"))
    return HeldOutTokens(*(torch.cat(part) for part in parts))


@dataclass(frozen=True)
class ScoredSteps:
    """A schedule of ``steps`` denoising steps from ``first`` to ``last`` timestep, and the scores of each token."""

    steps: int
    first: int
    last: int
    score_M: Tensor

    @property
    def score(self) -> float:
        """The mean."""
        return float(self.score_M.mean())


@torch.inference_mode()
def scored(model: Magi, settings: SamplingConfig, held_out: HeldOutTokens, seed: int = 0) -> ScoredSteps:
    """The energy score of the head without guidance; the same random numbers for any schedule of as many steps."""
    table = make_objective(model.config).steps(settings, settings.steps)
    count, channels = held_out.token_MC.shape
    noise_IMC = draw_noise([torch.Generator().manual_seed(seed)], len(table), SAMPLES * count, channels)
    z_GMD = held_out.z_MD.repeat(SAMPLES, 1)[None]
    x_MC = denoise_tokens(FoldedHead(model.head), z_GMD, noise_IMC.to(z_GMD.device), table, 1.0, settings.temperature)
    score_M = energy_score(x_MC.unflatten(0, (SAMPLES, count)), held_out.token_MC)
    return ScoredSteps(settings.steps, settings.first_timestep, settings.last_timestep, score_M)


def best_placed(
    model: Magi, settings: SamplingConfig, held_out: HeldOutTokens, steps: int, on_progress: Callable[[], None]
) -> ScoredSteps:
    """The best schedule of ``steps`` steps."""
    last_of_all = model.config.diffusion_steps - 1
    ends = {(0, 0)} | {(round(first * last_of_all), round(last * last_of_all)) for first in FIRST for last in LAST}
    fitting = [
        settings.changed(steps=steps, first_timestep=first, last_timestep=last)
        for first, last in sorted(ends)
        if steps <= (first or last_of_all) - last + 1
    ]
    draft = held_out.every(DRAFTED)
    drafted = []
    for candidate in fitting:
        drafted.append((scored(model, candidate, draft).score, candidate))
    best = sorted(drafted, key=lambda pair: pair[0])[:DRAFTED]
    return min((scored(model, candidate, held_out) for _, candidate in best), key=lambda found: found.score)
