"""Claims: I3D equals independent implementations on synthetic weights; shapes, padding and input are exact."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks.features import FeatureNetwork
from magi.evaluation.networks.i3d import (
    I3D_PREPROCESSINGS,
    I3d,
    I3dPreprocessing,
    SameMaxPool,
    Unit,
    i3d_input,
    pad_same,
    same_padding,
)
from magi.evaluation.networks.load import I3dFeatures, synthetic_i3d
from magi.evaluation.networks.precision import full_precision
from tests.fakes.network_cases import CASES, assert_like, filled, synthetic_video

EXPECTED = CASES["i3d"]
QUICK = ((9, "tf1", 1e-3), (9, "half_pixel", 1e-5))  # and the traced one, 17 frames


def clips(case: dict[str, Any]) -> Tensor:
    return synthetic_video(case["input"], case["T"], case["size"], case["size"])[None]


def at_its_epsilon(case: dict[str, Any]) -> bool:
    """Of either epsilon, which the input knows nothing of, each way of resizing and length has one, in turns."""
    published = (case["T"] == 16) == (case["resize"] == "half_pixel")
    return case["resize"] == "tf1" or (case["bn_eps"] == 1e-3) == published


def marks(case: dict[str, Any]) -> Any:
    quick = case["size"] == 64 and (case["T"], case["resize"], case["bn_eps"]) in QUICK
    name = f"{case['input']}-{case['T']}-{case['resize']}-{case['bn_eps']:g}"
    return pytest.param(case, id=name, marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def network() -> I3d:
    return filled(I3d())


@pytest.fixture(scope="module")
def port(network: I3d) -> I3d:
    """The same weights under the other epsilon."""
    with torch.device("meta"):
        port = I3d(1e-5)
    port.load_state_dict(network.state_dict(), assign=True)
    return port.eval()


@pytest.fixture(scope="module")
def traced(network: I3d) -> dict[str, Tensor]:
    """Outputs of every layer for video64 of 17 frames."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in [*network.trunk_names, "logits"]]
    with full_precision():
        found["input"] = i3d_input(synthetic_video("video64", 17, 64, 64)[None])
        output = network(found["input"])
    for hook in hooks:
        hook.remove()
    return found | {"logits_BC": output, "pooled_BC": found["AvgPool"].flatten(2).mean(2)}


# The same numbers as independent implementations


@pytest.mark.parametrize("case", [marks(case) for case in EXPECTED["cases"] if at_its_epsilon(case)])
def test_logits_are_those_of_independent_implementations(case: dict[str, Any], network: I3d, port: I3d) -> None:
    """A second clip in the batch changes nothing; BGR, another range, resize, padding or epsilon all would."""
    chosen = network if case["bn_eps"] == network.bn_eps else port
    assert chosen.bn_eps == case["bn_eps"]
    features = I3dFeatures(chosen, "synthetic", "magvit_train" if case["resize"] == "tf1" else "tats")
    quick = case["T"] == 9 and case["resize"] == "tf1"
    video_BTHWC = torch.cat([clips(case), clips(case).flip(1)]) if quick else clips(case)
    logits_BC = features.features(video_BTHWC)
    assert_like(logits_BC[:1], case["out"])
    assert logits_BC.dtype == torch.float32 and not logits_BC.requires_grad


def test_every_layer_is_that_of_an_independent_implementation(traced: dict[str, Tensor]) -> None:
    names = {"Logits_per_step": "logits"}
    for name, expected in EXPECTED["taps_T17_video64_half_pixel_eps1e3"].items():
        assert_like(traced[names.get(name, name)], expected)


def test_all_400_logits_of_17_frames(traced: dict[str, Tensor]) -> None:
    expected = torch.tensor(EXPECTED["full_vector"]["values"])[None]
    torch.testing.assert_close(traced["logits_BC"], expected, rtol=0, atol=1e-4)


def test_logits_are_a_linear_function_of_the_pooled_vector(network: I3d, traced: dict[str, Tensor]) -> None:
    weight, bias = network.logits.conv3d.weight.flatten(1), network.logits.conv3d.bias
    torch.testing.assert_close(traced["logits_BC"], traced["pooled_BC"] @ weight.T + bias, rtol=0, atol=1e-4)


def test_the_ends_of_time_weigh_half(traced: dict[str, Tensor]) -> None:
    """Pairs of steps are averaged, then their mean is taken: 1/2, 1, 1/2 for three steps, not 1, 1, 1."""
    steps_BCT = traced["Mixed_5c"].mean((3, 4))
    weighted_BC = (0.5 * steps_BCT[..., 0] + steps_BCT[..., 1] + 0.5 * steps_BCT[..., 2]) / 2
    torch.testing.assert_close(traced["pooled_BC"], weighted_BC, rtol=0, atol=1e-4)


# Shape rules


@pytest.fixture(scope="module")
def shapes_only() -> I3d:
    with torch.device("meta"):
        return I3d()


@pytest.mark.parametrize(
    ("frames", "expected"), [(9, 1), (10, 1), (15, 1), (16, 1), (17, 2), (24, 2), (25, 3), (32, 3)]
)
def test_steps_in_time(frames: int, expected: int, shapes_only: I3d) -> None:
    found: list[int] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        found.append(output.shape[2])

    hooks = [shapes_only.get_submodule(name).register_forward_hook(keep) for name in ("Mixed_5c", "AvgPool")]
    assert shapes_only(torch.empty(1, 3, frames, 224, 224, device="meta")).shape == (1, 400)
    for hook in hooks:
        hook.remove()
    assert found == [expected + 1, expected]


@pytest.mark.parametrize("frames", [1, 8])
def test_eight_frames_or_fewer_are_one_clear_line(frames: int, shapes_only: I3d) -> None:
    with pytest.raises(ValueError, match=f"at least 9 frames, got clips of {frames}") as error:
        shapes_only(torch.empty(1, 3, frames, 224, 224, device="meta"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 3, 9, 223, 224), (1, 3, 9, 225, 225), (1, 4, 9, 224, 224), (3, 9, 224, 224)])
def test_another_size_is_refused(shape: tuple[int, ...], shapes_only: I3d) -> None:
    with pytest.raises(ValueError, match="224"):
        shapes_only(torch.empty(shape, device="meta"))


def test_only_the_two_named_epsilons() -> None:
    with torch.device("meta"):
        assert I3d().bn_eps == 1e-3 and I3d(1e-5).Conv3d_1a_7x7.bn.eps == 1e-5
        with pytest.raises(ValueError, match=r"0\.001 \(published\), 1e-05"):
            I3d(1e-4)


# SAME padding


@pytest.mark.parametrize("case", CASES["same_padding"], ids=lambda case: f"{case['n']}-{case['k']}-{case['s']}")
def test_same_padding_follows_the_run_time_size(case: dict[str, Any]) -> None:
    out, before, after = case["out_before_after"]
    assert same_padding(case["n"], case["k"], case["s"]) == (before, after)
    assert (case["n"] + before + after - case["k"]) // case["s"] + 1 == out


def slow_windows(size: int, kernel: int, stride: int) -> list[range]:
    """Positions that each window covers, real ones and padding, from TensorFlow's definition."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return [range(step * stride - total // 2, step * stride - total // 2 + kernel) for step in range(out)]


def slow_reference(video: Tensor, kernel: int, stride: int, weight: Tensor | None) -> Tensor:
    """A convolution (or, without weight, a max pool) window by window; what lies outside is left out."""
    sizes = video.shape[2:]
    grids = [slow_windows(size, kernel, stride) for size in sizes]
    channels = video.shape[1] if weight is None else weight.shape[0]
    out = torch.zeros(video.shape[0], channels, *map(len, grids))
    for t, rows_t in enumerate(grids[0]):
        for y, rows_y in enumerate(grids[1]):
            for x, rows_x in enumerate(grids[2]):
                inside = [
                    [(k, n) for k, n in enumerate(rows) if 0 <= n < size]
                    for rows, size in zip((rows_t, rows_y, rows_x), sizes, strict=True)
                ]
                places, at = ([torch.tensor([pair[i] for pair in axis]) for axis in inside] for i in (1, 0))
                window = video[:, :, places[0]][:, :, :, places[1]][:, :, :, :, places[2]]
                if weight is None:
                    out[:, :, t, y, x] = window.amax((2, 3, 4))
                else:
                    part = weight[:, :, at[0]][:, :, :, at[1]][:, :, :, :, at[2]]
                    out[:, :, t, y, x] = torch.einsum("bcthw,octhw->bo", window, part)
    return out


@pytest.mark.parametrize("size", [(5, 6, 7), (4, 9, 8), (1, 2, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (2, 2)])
def test_padded_layers_equal_a_slow_reference(size: tuple[int, int, int], kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(3)
    video = torch.randn(2, 2, *size, generator=generator)
    unit = Unit(2, 3, kernel, 1e-3, stride)
    padded = pad_same(video, unit.kernel, unit.stride)
    convolved = unit.conv3d(padded)
    torch.testing.assert_close(convolved, slow_reference(video, kernel, stride, unit.conv3d.weight), rtol=0, atol=1e-4)
    pool = SameMaxPool((kernel,) * 3, (stride,) * 3)
    assert torch.equal(pool(video), slow_reference(video, kernel, stride, None))  # also below zero


# Input


@pytest.mark.parametrize("variant", I3D_PREPROCESSINGS)
def test_input_is_rgb_in_minus_one_to_one(variant: I3dPreprocessing) -> None:
    """Red is channel 0: the planted swap to BGR ends here."""
    red_BTHWC = torch.zeros(2, 3, 64, 64, 3, dtype=torch.uint8)
    red_BTHWC[..., 0] = 255
    input_BCTHW = i3d_input(red_BTHWC, variant)
    assert input_BCTHW.shape == (2, 3, 3, 224, 224) and input_BCTHW.dtype == torch.float32
    for channel, value in enumerate((1.0, -1.0, -1.0)):
        torch.testing.assert_close(input_BCTHW[:, channel], torch.full((2, 3, 224, 224), value))


@pytest.mark.parametrize("variant", I3D_PREPROCESSINGS)
def test_frames_keep_their_order_and_clips_their_place(variant: I3dPreprocessing) -> None:
    grey = torch.arange(6, dtype=torch.uint8).reshape(2, 3, 1, 1, 1).expand(2, 3, 64, 64, 3) * 40
    input_BCTHW = i3d_input(grey, variant)
    torch.testing.assert_close(input_BCTHW[:, 1, :, 9, 9], grey[..., 0, 0, 0].float() * 2 / 255 - 1)


def test_rectangles_are_squashed_or_cropped_as_the_variant_says() -> None:
    video = synthetic_video("video_rect", 1, 48, 80)[None]
    assert_like(i3d_input(video, "tats"), CASES["squash_rect"]["out"])
    assert_like(i3d_input(video, "videogpt"), CASES["videogpt_short_side_crop"]["out"])


def test_videogpt_squares_of_100_become_225_rows() -> None:
    video = synthetic_video("video_rect", 1, 100, 100)[None]
    picture = video[0].permute(0, 3, 1, 2).float() / 255
    rows = torch.nn.functional.interpolate(picture, size=(225, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(i3d_input(video, "videogpt")[0].transpose(0, 1), (rows[:, :, :224] - 0.5) * 2)


def test_videogpt_equals_tats_on_other_squares() -> None:
    video = synthetic_video("video64", 2, 64, 64)[None]
    torch.testing.assert_close(i3d_input(video, "videogpt"), i3d_input(video, "tats"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.zeros(1, 9, 8, 8, 3), torch.zeros(9, 8, 8, 3, dtype=torch.uint8)])
def test_what_is_no_uint8_video_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        i3d_input(bad)
    with pytest.raises(ValueError, match="magvit_train"):
        i3d_input(torch.zeros(1, 9, 8, 8, 3, dtype=torch.uint8), "clean")  # type: ignore[arg-type]


# The feature network


def test_names_say_what_deviates(shapes_only: I3d) -> None:
    with torch.device("meta"):
        plain, port = shapes_only, I3d(1e-5)
    network: FeatureNetwork = I3dFeatures(plain, "abc")
    assert network.name == "i3d-kinetics400-logits" and network.hash == "abc"
    assert (network.dimension, network.minimum_frames) == (400, 9)
    assert I3dFeatures(port, "abc", "google").name == "i3d-kinetics400-logits[google,eps1e-05]"
    assert I3dFeatures(plain, "abc", mark="unknown-weights").name == "i3d-kinetics400-logits[unknown-weights]"


def test_synthetic_weights_are_in_the_name_and_short_clips_refused() -> None:
    network = synthetic_i3d()
    assert network.name == "i3d-kinetics400-logits[synthetic]" and network.hash == "synthetic"
    with pytest.raises(ValueError, match="clips of 8 frames, the network needs at least 9"):
        network.features(torch.zeros(1, 8, 16, 16, 3, dtype=torch.uint8))
