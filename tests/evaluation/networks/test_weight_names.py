"""Claims: every published layout of the same weights arrives under our names, and an unknown name is not lost."""

import re

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks.i3d import I3d
from magi.evaluation.networks.synthetic_weights import artificial_tensor
from magi.evaluation.networks.weight_names import i3d_names, lpips_head_names, lpips_trunk_names, without_counters

LEAVES = {
    "conv3d.weight": "conv_3d/w",
    "conv3d.bias": "conv_3d/b",
    "bn.bias": "batch_norm/beta",
    "bn.running_mean": "batch_norm/moving_mean",
    "bn.running_var": "batch_norm/moving_variance",
}
FLAX_LEAVES = {
    "conv3d.weight": "conv_3d/kernel",
    "conv3d.bias": "conv_3d/bias",
    "bn.bias": "batch_norm/bias",
    "bn.running_mean": "batch_norm/mean",
    "bn.running_var": "batch_norm/var",
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """I3D's tensors, each cut to one value an axis but the first two: names and axes are what matters; gamma is 1."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in I3d().state_dict().items()}
    cut = {name: (3, 2, *shape[2:]) if len(shape) == 5 else (3,) for name, shape in shapes.items()}
    made = {name: artificial_tensor(name, shape) for name, shape in cut.items()}
    return {name: torch.ones(3) if name.endswith("bn.weight") else tensor for name, tensor in made.items()}


def tensorflow_name(ours: str, flax: bool) -> str:
    """The name of the published TensorFlow graph, written out once more; one of them is irregular."""
    unit, leaf = re.fullmatch(r"(.*)\.((?:conv3d|bn)\..*)", ours).groups()  # type: ignore[union-attr]
    tail = (FLAX_LEAVES if flax else LEAVES)[leaf]
    if unit == "logits":
        path = "Logits/Conv3d_0c_1x1"
    elif "." not in unit:
        path = unit
    else:
        block, branch = unit.split(".")
        layer = {"b0": "0a_1x1", "b3b": "0b_1x1"}.get(branch, "0a_1x1" if branch.endswith("a") else "0b_3x3")
        if unit == "Mixed_5b.b2b" and not flax:
            layer = "0a_3x3"
        path = f"{block}/Branch_{branch[1]}{'.' if flax else '/'}Conv3d_{layer}"
    return f"{path}/{tail}" if flax else f"RGB/inception_i3d/{path}/{tail}"


def tensorflow_axes(name: str, tensor: Tensor, flax: bool) -> Tensor:
    if name.endswith("conv3d.weight"):
        return tensor.permute(2, 3, 4, 1, 0)
    return tensor.reshape(1, 1, 1, 1, -1) if ".bn." in name and not flax else tensor


@pytest.mark.parametrize("flax", [False, True])
def test_tensorflow_and_flax_become_ours(flax: bool, weights: dict[str, Tensor]) -> None:
    theirs = {
        tensorflow_name(name, flax): tensorflow_axes(name, tensor, flax)
        for name, tensor in weights.items()
        if not name.endswith("bn.weight")
    }
    assert len(theirs) == 230
    ours = i3d_names(theirs)
    assert set(ours) == set(weights)
    assert all(torch.equal(ours[name], weights[name]) for name in weights)


def test_the_lower_case_port_becomes_ours(weights: dict[str, Tensor]) -> None:
    branches = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
    theirs = {}
    for name, tensor in weights.items():
        name = re.sub(r"\.(b\d[ab]?)\.", lambda match: f".branch_{branches[match[1]]}.", name)
        name = name.replace(".bn.", ".batch3d.").replace("logits.", "conv3d_0c_1x1.")
        theirs[name[0].lower() + name[1:]] = tensor
    theirs["conv3d_1a_7x7.batch3d.num_batches_tracked"] = torch.tensor(0)
    assert "mixed_3b.branch_1.0.batch3d.running_mean" in theirs
    ours = i3d_names(theirs)
    assert set(ours) == set(weights) and all(torch.equal(ours[name], weights[name]) for name in weights)


def test_ours_stay_and_counters_go(weights: dict[str, Tensor]) -> None:
    counted = weights | {"Mixed_3b.b0.bn.num_batches_tracked": torch.tensor(0)}
    assert i3d_names(counted) == weights and without_counters(counted) == weights


def test_unknown_names_stay_to_be_refused(weights: dict[str, Tensor]) -> None:
    strange = torch.ones(1)
    assert i3d_names(weights | {"Mixed_9z.b0.conv3d.weight": strange})["Mixed_9z.b0.conv3d.weight"] is strange
    theirs = {"RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w": torch.ones(1, 1, 1, 1, 1), "RGB/Mixed_3b/odd/w": strange}
    assert i3d_names(theirs)["RGB/Mixed_3b/odd/w"] is strange
    assert "extra" in lpips_trunk_names({"extra": strange}) and "extra" in lpips_head_names({"extra": strange})


def test_lpips_trunks_and_heads_come_from_files_of_either_layout() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    file = {"features.0.weight": a, "features.0.bias": b, "classifier.6.weight": a}
    export = {"net.slice1.0.weight": a, "net.slice1.0.bias": b, "lins.3.model.1.weight": a, "scaling_layer.shift": b}
    expected = {"features.0.weight": a, "features.0.bias": b}
    assert lpips_trunk_names(file) == expected == lpips_trunk_names(export)
    assert lpips_head_names({"lin3.model.1.weight": a}) == {"lin3.model.1.weight": a} == lpips_head_names(export)
