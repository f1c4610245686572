"""Claims: LPIPS equals independent implementations on synthetic weights, is symmetric, and 0 for equal images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks.load import LpipsDistance
from magi.evaluation.networks.lpips import LPIPS_TRUNKS, Lpips, LpipsTrunk, unit_length
from magi.evaluation.networks.precision import full_precision
from tests.fakes.network_cases import CASES, assert_like, filled, synthetic_video


@pytest.fixture(scope="module")
def networks() -> dict[str, Lpips]:
    return {trunk: filled(Lpips(trunk)) for trunk in LPIPS_TRUNKS}


def pair(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two videos of one frame, uint8."""
    height, width = case["hw"]
    if case["pair"] == "pair1":
        first, second = (synthetic_video(name, 1, height, width) for name in ("lpips_a", "lpips_b"))
    else:
        first, other = (synthetic_video(name, 1, height, width) for name in ("lpips_c", "lpips_d"))
        second = ((7 * first.int() + other.int()) // 8).to(torch.uint8)
    return first[None], second[None]


def signed(video_BTHWC: Tensor) -> Tensor:
    return 2 * (video_BTHWC[:, 0].permute(0, 3, 1, 2).float() / 255) - 1


@pytest.mark.parametrize("case", CASES["lpips"]["cases"], ids=lambda case: f"{case['net']}-{case['pair']}")
def test_distances_are_those_of_independent_implementations(case: dict[str, Any], networks: dict[str, Lpips]) -> None:
    network, (first, second) = networks[case["net"]], pair(case)
    with full_precision():
        output = network(signed(first), signed(second))
        swapped = network(signed(second), signed(first))
        same = network(signed(first), signed(first))
        taps, others = network.taps(signed(first)), network.taps(signed(second))
    assert float(output.sum()) == pytest.approx(case["distance"], rel=1e-5)
    assert output[0].tolist() == pytest.approx(case["per_layer"], rel=1e-5)
    assert torch.equal(output, swapped) and float(same.abs().sum()) == 0.0
    for tap, expected in zip(taps, case["features_of_first_image"], strict=True):
        assert_like(tap, expected)
    for layer in (0, 4):
        squares = (unit_length(taps[layer]) - unit_length(others[layer])).square()
        assert_like(network.get_submodule(f"lin{layer}")(squares), case[f"layer{layer + 1}_map"], tolerance=1e-5)
    distances_BT = LpipsDistance(network, "abc").distances(first, second)
    assert distances_BT.shape == (1, 1) and torch.equal(distances_BT[0], output.sum(1))


def test_the_epsilon_of_the_norm_is_outside_the_root() -> None:
    features = torch.tensor([3e-6, 4e-6]).reshape(1, 2, 1, 1)
    expected = torch.tensor([0.599988, 0.799984]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(unit_length(features), expected, rtol=0, atol=1e-6)
    assert torch.equal(unit_length(torch.zeros(1, 2, 1, 1)), torch.zeros(1, 2, 1, 1))


def test_frames_of_videos_are_compared_one_by_one(networks: dict[str, Lpips]) -> None:
    measure = LpipsDistance(networks["alex"], "abc")
    first, second = synthetic_video("a", 6, 40, 50).reshape(2, 3, 40, 50, 3), synthetic_video("b", 6, 40, 50)
    second = second.reshape(2, 3, 40, 50, 3)
    distances_BT = measure.distances(first, second)
    assert distances_BT.shape == (2, 3) and measure.name == "lpips_alex"
    alone = measure.distances(first[1:, 2:], second[1:, 2:])
    torch.testing.assert_close(distances_BT[1:, 2:], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("trunk", "smallest"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_images(trunk: LpipsTrunk, smallest: int) -> None:
    with torch.device("meta"):
        network = Lpips(trunk)
        fits, small = (torch.empty(1, 3, size, 64) for size in (smallest, smallest - 1))
        assert network(fits, fits).shape == (1, 5)
        with pytest.raises(ValueError, match=f"at least {smallest} pixels"):
            network(small, small)


def test_what_it_does_not_take_is_one_line(networks: dict[str, Lpips]) -> None:
    measure = LpipsDistance(networks["alex"], "abc")
    video = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        measure.distances(video, video[:, :1])
    with pytest.raises(ValueError, match="uint8 RGB"):
        measure.distances(video.float() / 255, video.float() / 255)
    with pytest.raises(ValueError, match="alex, vgg"):
        Lpips("squeeze")  # type: ignore[arg-type]
