"""Claims: our network computes what the original one does, step by step, for weights and inputs given by a rule.

Where the numbers come from: ``tests/fakes/omni_vectors.py``.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.released_names import differing_names, is_window_table, released_name, unused
from magi.vae.omnitokenizer.transformer import OmniTransformer
from tests.fakes.omni_vectors import SHAPES, hashed, network, pixels, released_shapes, vector, weight

TOLERANCE = 1e-4
RULE_TOLERANCE = 1e-6  # of what the rule itself gives: the file has 7 digits
SLOW = {"real_video_128", "real_video_256"}
CASES = [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in vector()["cases"]]
OUTPUTS = ("latent_mean", "latent_logvar", "decoded_mean", "latent_sample_eps", "decoded_sample_eps")


def differences(got: torch.Tensor, expected: dict[str, Any]) -> float:
    """Largest deviation from the listed mean, standard deviation, first 8 and 16 strided values."""
    assert list(got.shape) == expected["shape"]
    flat = got.double().flatten().numpy()
    strided = flat[[j * flat.size // 16 for j in range(16)]]
    pairs = [
        (flat.mean(), expected["mean"]),
        (flat.std(), expected["std"]),
        (flat[:8], expected["first8"]),
        (strided, expected["strided16"]),
    ]
    return max(float(np.abs(ours - np.array(theirs)).max()) for ours, theirs in pairs)


@cache
def outputs(case: str) -> dict[str, torch.Tensor]:
    """What our network makes of a case, in the layout of the file: latents BCTHW, pixels BCTHW, of images BCHW."""
    model = network(vector()["cases"][case]["config"])
    with torch.no_grad():
        moments = model.moments(pixels(case))
        mean_BCTHW = moments.mean_BTCHW.transpose(1, 2)
        noise_BCTHW = torch.from_numpy(hashed("eps", mean_BCTHW.numel()).astype(np.float32)).reshape(mean_BCTHW.shape)
        sample_BCTHW = mean_BCTHW + (moments.log_variance_BTCHW.transpose(1, 2) / 2).exp() * noise_BCTHW
        decoded = [model.pixels(latents.transpose(1, 2)) for latents in (mean_BCTHW, sample_BCTHW)]
    if vector()["cases"][case]["is_image"]:
        decoded = [video[:, :, 0] for video in decoded]
    tensors = (mean_BCTHW, moments.log_variance_BTCHW.transpose(1, 2), decoded[0], sample_BCTHW, decoded[1])
    return dict(zip(OUTPUTS, tensors, strict=True))


def test_the_rule_gives_the_numbers_it_should() -> None:
    check = vector()["rule_check"]
    for name in ("input", "eps"):
        assert np.abs(hashed(name, 4) - check[f"u_{name}_first4"]).max() < 1e-9
    for name, first in vector()["weight_check_real"].items():
        got = weight(name, released_shapes("real")[name]).flatten()[:4]
        assert np.abs(got.numpy() - first).max() < RULE_TOLERANCE


@pytest.mark.parametrize("config", ["small", "real"])
def test_names_and_shapes_are_the_released_ones(config: str) -> None:
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in OmniNetwork(SHAPES[config]).state_dict().items()}
    released = released_shapes(config)
    assert differing_names(ours, released) == []
    dropped = set(released) - {released_name(name) for name in ours}
    assert all(unused(name) or is_window_table(name) for name in dropped)
    assert len(ours) + len(dropped) == len(released)


def test_the_real_configuration_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        parameters = list(OmniNetwork(SHAPES["real"]).parameters())
    assert len(parameters) == 210 and sum(parameter.numel() for parameter in parameters) == 51_559_008
    assert len(released_shapes("real")) == 308


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_the_original_within_its_tolerance(case: str) -> None:
    expected = vector()["cases"][case]
    batch_of_images = pixels(case)[:, :, 0] if expected["is_image"] else pixels(case)
    assert differences(batch_of_images, expected["input"]) < RULE_TOLERANCE
    for name in OUTPUTS:
        assert differences(outputs(case)[name], expected[name]) < TOLERANCE, name


@pytest.mark.parametrize("name", ["latent_mean", "latent_logvar", "decoded_mean"])
def test_every_element_of_the_small_video(name: str) -> None:
    expected = torch.tensor(vector()["cases"]["small_video"]["full"][name])
    assert (outputs("small_video")[name].flatten() - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("case", ["small_video", pytest.param("real_video_128", marks=pytest.mark.slow)])
def test_every_step_of_the_original_within_the_tolerance(case: str) -> None:
    model = network(vector()["cases"][case]["config"])
    expected = vector()["cases"][case]["taps"]
    found: dict[str, float] = {}
    handles = []
    for half, part in (("enc", model.encoder), ("dec", model.decoder)):
        for kind in ("spatial", "temporal"):
            handles += _listen(getattr(part, kind), f"{half}_{kind}", found, expected)
    with torch.no_grad():
        model.pixels(model.moments(pixels(case)).mean_BTCHW)
    for handle in handles:
        handle.remove()
    assert set(found) == set(expected)
    assert max(found.values()) < TOLERANCE, [name for name, value in found.items() if value >= TOLERANCE]


@pytest.mark.slow
def test_how_much_later_frames_leak_is_what_was_measured_of_the_original() -> None:
    model, video_BCTHW = network("real"), pixels("real_video_128")
    other_BCTHW = video_BCTHW.clone()
    other = 0.5 * hashed("other", 3 * 4 * 128 * 128).astype(np.float32)
    other_BCTHW[:, :, 13:] = torch.from_numpy(other).reshape(1, 3, 4, 128, 128)
    with torch.no_grad():
        inputs = (video_BCTHW, other_BCTHW, video_BCTHW[:, :, :5], video_BCTHW[:, :, :1])
        whole, changed, context, image = (model.moments(pixels_BCTHW).mean_BTCHW for pixels_BCTHW in inputs)
    for got, expected in (
        (whole - changed, [0.45, 0.47, 0.44, 0.46, 0.53]),
        (whole[:, :2] - context, [1.14, 1.23]),
        (whole[:, :1] - image, [1.13]),
    ):
        rms_T = got.square().mean((0, 2, 3, 4)).sqrt()
        assert (rms_T - torch.tensor(expected)).abs().max() < 0.0051  # they have two decimals


def _listen(transformer: OmniTransformer, name: str, found: dict[str, float], expected: dict[str, Any]) -> list[Any]:
    """Compare the inputs of layers, their branches and the output of a transformer as they pass."""

    def compare(tap: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, __: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            _, time, height, width, _ = size = expected[tap]["shape"]
            if out.ndim == 3 and out.shape[1] == time and "temporal" in tap:  # (b h w) t d
                out = out.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2, 4)
            found[tap] = differences(out.reshape(size), expected[tap])

        return hook

    def compare_input(tap: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found[tap] = differences(inputs[0], expected[tap])

        return hook

    handles: list[Any] = [transformer.register_forward_hook(compare(f"{name}.out"))]
    for index, layer in enumerate(transformer.layers):
        handles.append(layer.register_forward_pre_hook(compare_input(f"{name}.in_layer{index}")))
        for child, tap in (("peg", "peg"), ("attention", "attn"), ("feed_forward", "ff")):
            if hasattr(layer, child):
                handles.append(
                    getattr(layer, child).register_forward_hook(compare(f"{name}.layer{index}.{tap}_branch"))
                )
    return handles
