"""Where few denoising steps are best placed: schedules compared by the energy score of the head on held-out tokens.

At the highest timesteps of the cosine schedule the head's error counts most, and at the lowest there is little noise
left to remove; how many steps to leave out at either end depends on the model. The score needs tokens and their
conditions alone, so a schedule costs seconds, not videos. Knows no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion_head import FoldedHead
from magi.model.magi import Magi
from magi.model.masking import cosine_counts, random_order
from magi.model.objectives.contract import make_objective
from magi.model.objectives.energy import energy_score
from magi.sampling.denoise import denoise_tokens, draw_noise
from magi.sampling.history import History

FIRST, LAST = (0.95, 0.9, 0.85, 0.8), (0.0, 0.08, 0.15, 0.22, 0.3)
"""Ends of the schedules that are tried, as shares of the timesteps of training; beside them the whole schedule."""
SAMPLES = 2
"""Drawn of each token for a score."""
WITHIN, START_WITHIN = 1.03, 1.02
"""Scores are as good as the best up to these factors: in the choice of fewer steps, and of an earlier start."""
DRAFTED, FINALISTS = 4, 6
"""All ends are scored on one of so many tokens, and so many of the best on all."""


@dataclass(frozen=True)
class HeldOutTokens:
    """M tokens with the conditions that the sampler would predict them from, z_MD."""

    z_MD: Tensor
    token_MC: Tensor

    def every(self, step: int) -> "HeldOutTokens":
        """One token of ``step``."""
        return HeldOutTokens(self.z_MD[::step], self.token_MC[::step])


@torch.inference_mode()
def held_out_tokens(
    model: Magi,
    tokens_BTNC: Tensor,
    conditions: Conditions,
    settings: SamplingConfig,
    generators: Sequence[torch.Generator],
    repeats: int = 2,
) -> HeldOutTokens:
    """``repeats`` tokens of every frame but the first, as the sampler meets them: in a random order, in its iterations.

    What the sampler would have made itself, earlier frames and earlier tokens, is real here. A frame with none before
    it is no matter of a token's score: tokens drawn a little too narrowly, each close to the most common one, make it
    empty. ``first_frame_steps`` are for it. Raises ValueError for clips of one frame.
    """
    if tokens_BTNC.shape[1] < 2:
        raise ValueError("steps are tuned on frames that have one before them, but clips have one latent frame")
    N = model.tokens_per_frame
    history = History(model, conditions, generators, tokens_BTNC.shape[1], settings)
    counts, z, token = cosine_counts(N, settings.iterations), list[Tensor](), list[Tensor]()
    # The rank of a token's iteration: the tokens before it are known, from there on all are masked.
    first_N = torch.tensor([sum(counts[:i]) for i, count in enumerate(counts) for _ in range(count)])
    for before_BNC, tokens_BNC in pairwise(tokens_BTNC.unbind(1)):
        history.observe(before_BNC[:, None])
        for _ in range(repeats):
            order_BN = torch.stack([random_order(N, generator) for generator in generators])
            rank_B1 = torch.stack([torch.randint(N, (1,), generator=generator) for generator in generators])
            masked_BN = torch.zeros_like(order_BN, dtype=torch.bool)
            masked_BN.scatter_(1, order_BN, torch.arange(N) >= first_N[rank_B1])
            picked_B1 = order_BN.gather(1, rank_B1).to(tokens_BNC.device)
            z.append(history.predict(tokens_BNC, masked_BN.to(tokens_BNC.device), picked_B1)[0, :, 0].clone())
            token.append(tokens_BNC.take_along_dim(picked_B1[..., None], dim=1)[:, 0])
    return HeldOutTokens(torch.cat(z), torch.cat(token))


@dataclass(frozen=True)
class ScoredSteps:
    """Settings whose number and ends of the denoising steps are a schedule, and its energy score."""

    settings: SamplingConfig
    score: float


@torch.inference_mode()
def scored(model: Magi, settings: SamplingConfig, held_out: HeldOutTokens, seed: int = 0) -> ScoredSteps:
    """The energy score of the head without guidance; the same random numbers for any schedule of as many steps."""
    table = make_objective(model.config).steps(settings)
    count, channels = held_out.token_MC.shape
    noise_IMC = draw_noise([torch.Generator().manual_seed(seed)], len(table), SAMPLES * count, channels)
    z_GMD = held_out.z_MD.repeat(SAMPLES, 1)[None]
    x_MC = denoise_tokens(FoldedHead(model.head), z_GMD, noise_IMC.to(z_GMD.device), table, 1.0, settings.temperature)
    score_M = energy_score(x_MC.unflatten(0, (SAMPLES, count)), held_out.token_MC)
    return ScoredSteps(settings, float(score_M.mean()))


def best_placed(model: Magi, settings: SamplingConfig, held_out: HeldOutTokens, steps: int) -> ScoredSteps:
    """The best schedule of ``steps`` steps, with the other settings as they are.

    Of those that are about as good, the one that starts at the highest timestep: a late start leaves out what is common
    to all tokens, such as brightness, which a token's score hardly sees and a long video adds up.
    """
    whole = model.config.diffusion_steps - 1
    ends = {(0, 0)} | {(round(first * whole), round(last * whole)) for first in FIRST for last in LAST}
    candidates = [
        settings.changed(steps=steps, first_timestep=first, last_timestep=last)
        for first, last in sorted(ends)
        if steps <= (first or whole) - last + 1
    ]
    draft = held_out.every(DRAFTED)
    drafted = sorted(candidates, key=lambda candidate: scored(model, candidate, draft).score)
    found = [scored(model, candidate, held_out) for candidate in drafted[:FINALISTS]]
    limit = START_WITHIN * min(one.score for one in found)
    return max(
        (one for one in found if one.score <= limit),
        key=lambda one: (one.settings.first_timestep or whole, -one.score),
    )


def fewest(found: Sequence[ScoredSteps]) -> ScoredSteps:
    """The fewest steps whose score is within ``WITHIN`` of the best."""
    limit = WITHIN * min(one.score for one in found)
    return min((one for one in found if one.score <= limit), key=lambda one: one.settings.steps)
