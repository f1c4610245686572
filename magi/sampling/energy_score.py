"""The energy score: how well samples of a token fit the token that came (Gneiting and Raftery 2007, equation 21).

A strictly proper score: its mean is lowest where samples are drawn from the tokens' own distribution, neither narrower
nor wider. Twice the score of that paper, as energy-score heads are trained on (EAR, arXiv 2505.07812). Knows no model.
"""

from torch import Tensor


def energy_score(samples_nMC: Tensor, token_MC: Tensor) -> Tensor:
    """2 E|X - y| - E|X - X'| of M tokens from n samples X of each, Euclidean, (M,); lower is better.

    Its mean does not depend on n; ``ValueError`` for fewer than two samples, whose spread is unknown.
    """
    count = len(samples_nMC)
    if count < 2:
        raise ValueError(f"an energy score needs at least two samples of each token, got {count}")
    distance_M = (samples_nMC - token_MC).norm(dim=-1).mean(dim=0)
    pairs_nnM = (samples_nMC[:, None] - samples_nMC[None]).norm(dim=-1)
    return 2 * distance_M - pairs_nnM.sum(dim=(0, 1)) / (count * (count - 1))
