"""Claims: numbers, weights and images follow the written rule on every machine, so that implementations compare."""

import numpy as np
import pytest
import torch

from magi.evaluation.networks.i3d import I3d
from magi.evaluation.networks.inception import Inception
from magi.evaluation.networks.lpips import Lpips
from tests.fakes.network_cases import CASES, synthetic_video
from tests.fakes.synthetic_weights import fill_synthetic, numbers, synthetic_tensor

RULE = CASES["rule_check"]
SHAPES = {
    name: tuple(map(int, shape.split("x")))
    for file in ("i3d_pretrained_400.pt", "pt_inception-2015-12-05-6726825d.pth", "alexnet-owt-7be5be79.pth")
    for name, shape in CASES["keys"][file].items()
}


def test_numbers_follow_the_rule_in_plain_integers() -> None:
    np.testing.assert_allclose(numbers("probe", 4), RULE["u_probe_first4"], rtol=1e-8)
    h = (7 * 0x9E3779B1 + RULE["crc32"]["probe"]) % 2**32
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    h ^= h >> 16
    assert numbers("probe", 8)[7] == h / 2**31 - 1


@pytest.mark.parametrize(("key", "first"), RULE["weights_first4"].items(), ids=lambda value: str(value)[:40])
def test_weights_follow_the_rule_of_their_key(key: str, first: list[float]) -> None:
    found = synthetic_tensor(key, SHAPES[key]).flatten()[:4]
    torch.testing.assert_close(found, torch.tensor(first), rtol=1e-7, atol=1e-9)


def test_learned_weights_of_lpips_follow_theirs() -> None:
    found = synthetic_tensor("lin0.model.1.weight", (1, 64, 1, 1)).flatten()[:4]
    torch.testing.assert_close(found, torch.tensor(RULE["lin0_alex_first4"]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", RULE["images"])
def test_images_follow_the_rule(name: str) -> None:
    expected = RULE["images"][name]
    if name == "lpips pair2 second image":
        pair = [synthetic_video(word, 1, 79, 61).int() for word in ("lpips_c", "lpips_d")]
        video_THWC = ((7 * pair[0] + pair[1]) // 8).to(torch.uint8)
    else:
        word, frames, size = name.split()
        height, width = map(int, size.split("x"))
        video_THWC = synthetic_video(word, int(frames[2:]), height, width)
    assert video_THWC.dtype == torch.uint8
    assert video_THWC.flatten()[:12].tolist() == expected["first12"]
    assert video_THWC.flatten()[-3:].tolist() == expected.get("last3", video_THWC.flatten()[-3:].tolist())
    assert int(video_THWC.long().sum()) == expected["sum"]


def test_a_longer_clip_begins_with_the_shorter() -> None:
    assert torch.equal(synthetic_video("video64", 9, 64, 64), synthetic_video("video64", 17, 64, 64)[:9])


@pytest.mark.parametrize(
    "name", ["alex", *(pytest.param(name, marks=pytest.mark.slow) for name in ("i3d", "inception", "vgg"))]
)
def test_totals_over_all_weights_of_a_network(name: str) -> None:
    build = {"i3d": I3d, "inception": Inception, "alex": lambda: Lpips("alex"), "vgg": lambda: Lpips("vgg")}[name]
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    fill_synthetic(network)
    weights = [tensor.double() for tensor in network.state_dict().values()]
    expected = RULE["weights_total"][name]
    assert float(sum(tensor.sum() for tensor in weights)) == pytest.approx(expected["sum"], rel=1e-6)
    squares = float(sum(tensor.square().sum() for tensor in weights))
    assert squares == pytest.approx(expected["sum_of_squares"], rel=1e-6)
