"""``magi evaluate selftest``: do the feature networks give, on this machine, the numbers that others published?

Without weights: artificial ones, held against independent implementations (``selftest.json``); these judge the
arithmetic of the machine and of this version. With the user's weights: the published reference values
(``magi.evaluation.networks.selftest_published``). A check that cannot be run says so and why; none passes by being
left out.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from magi.evaluation.networks.load import artificial_i3d, artificial_inception, artificial_lpips
from magi.evaluation.networks.lpips import LPIPS_TRUNKS, LpipsTrunk
from magi.evaluation.networks.precision import full_precision
from magi.evaluation.networks.synthetic_weights import artificial_video, numbers

Outcome = Literal["passed", "failed", "shown", "not run", "out of reach"]
EXPECTED = Path(__file__).with_name("selftest.json")
_TOLERANCE, _LPIPS_TOLERANCE = 1e-4, 1e-5
_GPU_FACTOR = 10.0  # convolutions add in another order there


@dataclass(frozen=True)
class Check:
    """One line of the report.

    ``shown`` is a comparison that no source settles, so it cannot fail; ``not run`` wants something that the user can
    give; ``out of reach`` wants what this project cannot run or nobody has published.
    """

    name: str
    outcome: Outcome
    measured: str = ""
    expected: str = ""
    note: str = ""


def judged(name: str, measured: float, expected: float, tolerance: float, note: str = "") -> Check:
    """A check that passes within ``tolerance`` of the expected number; NaN fails."""
    outcome: Outcome = "passed" if abs(measured - expected) <= tolerance else "failed"
    return Check(name, outcome, f"{measured:.6g}", f"{expected:.6g} +- {tolerance:g}", note)


def artificial_checks(device: str = "cpu") -> Iterator[Check]:
    """Every network with artificial weights against the numbers of independent implementations."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    factor = 1.0 if device == "cpu" else _GPU_FACTOR
    i3d, inception = artificial_i3d().to(device), artificial_inception().to(device)
    for name, features in (("i3d", i3d.features), ("inception", inception.features)):
        yield _vector_check(f"{name}, artificial weights", features, expected[name], _TOLERANCE * factor)
    for trunk in LPIPS_TRUNKS:
        yield _lpips_check(trunk, expected["lpips"][trunk], device, _LPIPS_TOLERANCE * factor)


def _vector_check(name: str, features: Callable[[Tensor], Tensor], case: dict[str, Any], tolerance: float) -> Check:
    video_BTHWC = artificial_video(case["input"], case["frames"], case["size"], case["size"])[None]
    vector_C = features(video_BTHWC)[0].double()
    first = torch.tensor(case["first16"], dtype=torch.float64)
    difference = max(
        float((vector_C[: len(first)] - first).abs().max()),
        abs(float(vector_C.mean()) - case["mean"]),
        abs(float(vector_C.std(correction=0)) - case["std"]),
        # The position-sensitive checksum adds as many errors as there are numbers; they do not all have one sign.
        abs(float(vector_C @ torch.from_numpy(numbers("probe", len(vector_C)))) - case["probe"]) / len(vector_C) ** 0.5,
    )
    return judged(name, difference, 0.0, tolerance, "largest difference from an independent implementation")


def _lpips_check(trunk: LpipsTrunk, case: dict[str, Any], device: str, tolerance: float) -> Check:
    height, width = case["height"], case["width"]
    first = artificial_video("lpips_c", 1, height, width)
    second = ((7 * first.int() + artificial_video("lpips_d", 1, height, width).int()) // 8).to(torch.uint8)
    network = artificial_lpips(trunk).to(device)
    distance = float(network.distances(first[None], second[None]))
    relative = abs(distance / case["distance"] - 1)
    return judged(f"lpips {trunk}, artificial weights", relative, 0.0, tolerance, "relative difference")


def black_against_white(features: Callable[[Tensor], Tensor], frames: int, size: int = 64) -> float:
    """Frechet distance of black clips to white ones: all clips of a set are equal, so it is the squared distance.

    Constant frames make it independent of resize, covariance and number of clips: what is left is the network.
    """
    black_BTHWC = torch.zeros(1, frames, size, size, 3, dtype=torch.uint8)
    with full_precision():
        difference_BC = features(black_BTHWC).double() - features(black_BTHWC + 255).double()
    return float(difference_BC.square().sum())


def summary(checks: list[Check]) -> str:
    """How many checks had each outcome."""
    told = [f"{sum(check.outcome == outcome for check in checks)} {outcome}" for outcome in get_args(Outcome)]
    return ", ".join(told)
