"""Claims: FID's Inception equals independent implementations on synthetic weights, with the original's pooling."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks.features import ImageNetwork
from magi.evaluation.networks.inception import Inception, average_pool, inception_input
from magi.evaluation.networks.load import InceptionFeatures
from magi.evaluation.networks.precision import full_precision
from tests.fakes.network_cases import CASES, assert_like, filled, synthetic_video

EXPECTED = CASES["inception"]
OURS = [case for case in EXPECTED["cases"] if case["variant"] == "torch_fidelity"]
TAPS = {"64": "MaxPool_1", "192": "MaxPool_2", "768": "Mixed_6e"}


@pytest.fixture(scope="module")
def network() -> Inception:
    return filled(Inception())


def outputs(network: Inception, images_BHWC: Tensor) -> dict[str, Tensor]:
    """Outputs of every layer, the features and the logits."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in network.trunk_names]
    with full_precision():
        found["input"] = inception_input(images_BHWC)
        output = network(found["input"])
    for hook in hooks:
        hook.remove()
    return found | {"features_BC": output, "logits_BC": network.fc(output)}


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["input"])
def test_features_are_those_of_independent_implementations(case: dict[str, Any], network: Inception) -> None:
    images_BHWC = synthetic_video(case["input"], 1, case["size"], case["size"])
    found = outputs(network, images_BHWC)
    assert_like(found["features_BC"], case["out"])
    for name, expected in case["block_means"].items():
        assert_like(found[TAPS[name]].mean((2, 3)), expected)
    traced = EXPECTED["taps_image64_torch_fidelity"]
    if case["input"] == "image64":
        for name, expected in traced.items():
            assert_like(found[name], expected)
        full = torch.tensor(EXPECTED["full_vector"]["values"])[None]
        torch.testing.assert_close(found["features_BC"], full, rtol=0, atol=1e-4)
        logits = full @ network.fc.weight.T + network.fc.bias
        torch.testing.assert_close(found["logits_BC"], logits, rtol=0, atol=1e-3)


def test_average_pools_count_the_real_pixels_only() -> None:
    ones = torch.ones(1, 2, 5, 4)
    assert torch.equal(average_pool(ones), ones)
    corner = torch.zeros(1, 1, 3, 3)
    corner[..., 0, 0] = 36.0
    assert average_pool(corner)[0, 0].tolist() == [[9.0, 6.0, 0.0], [6.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_input_is_rgb_in_the_original_range() -> None:
    blue = torch.zeros(1, 20, 30, 3, dtype=torch.uint8)
    blue[..., 2] = 255
    input_BCHW = inception_input(blue)
    for channel, value in enumerate((-1.0, -1.0, 127 / 128)):
        torch.testing.assert_close(input_BCHW[:, channel], torch.full((1, 299, 299), value))


def test_what_it_does_not_take_is_one_line(network: Inception) -> None:
    with pytest.raises(ValueError, match="299"):
        network(torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValueError, match="uint8 BHWC"):
        inception_input(torch.zeros(1, 8, 8, 3))


def test_frames_are_independent_and_named(network: Inception) -> None:
    features = InceptionFeatures(network, "abc", "unknown-weights")
    promised: ImageNetwork = features
    assert promised.name == "inception-2015-12-05-pool3[unknown-weights]" and promised.hash == "abc"
    assert InceptionFeatures(network, "abc").name == "inception-2015-12-05-pool3"
    video_BTHWC = torch.stack([synthetic_video("image64", 1, 64, 64), synthetic_video("resize", 1, 64, 64)])
    together_BC, alone_BC = (features.frame_features(part)[:, 0] for part in (video_BTHWC, video_BTHWC[1:]))
    torch.testing.assert_close(together_BC[1:], alone_BC, rtol=0, atol=1e-5)
    as_frames_BTC = features.frame_features(video_BTHWC.transpose(0, 1))
    assert as_frames_BTC.shape == (1, 2, 2048) and torch.equal(as_frames_BTC[0], together_BC)
