"""How sure one can be of a mean of few values: quantiles of Student's t, from nothing but its density.

With 4 folds a 95% interval is 3.18 standard errors to each side, not the 1.96 of many. Knows no distances, no models.
"""

import math

import numpy as np


def t_quantile(share: float, degrees: int) -> float:
    """Quantile of Student's t with ``degrees`` of freedom; ``ValueError`` for no freedom or a share outside 0.5..1.

    With t = sqrt(degrees) tan(a) the density is proportional to cos(a)^(degrees - 1), which is integrated.
    """
    if degrees < 1 or not 0.5 <= share < 1:
        raise ValueError(f"no quantile {share} of Student's t with {degrees} degrees of freedom")
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    steps = (density[1:] + density[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(steps)]) / (2 * steps.sum())
    return math.sqrt(degrees) * math.tan(float(np.interp(share - 0.5, below, angles)))
