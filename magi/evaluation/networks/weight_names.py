"""Other layouts of the published weights, translated to the names of ours.

I3D comes with the names of the torch ports (ours), of TensorFlow or Flax (axes kT kH kW in out, no gamma), and of the
lower-case port that the TorchScript file was made from; LPIPS comes as trunk and heads or as one export of its
package. A name that no rule knows is an error of the importer: nothing is dropped without a rule that says so.
"""

import re

import torch
from torch import Tensor

COUNTER = "num_batches_tracked"
_I3D_STEMS = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
_LOWER_BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}
_TF_LEAVES = {
    ("conv_3d", "w"): "conv3d.weight",
    ("conv_3d", "kernel"): "conv3d.weight",
    ("conv_3d", "b"): "conv3d.bias",
    ("conv_3d", "bias"): "conv3d.bias",
    ("batch_norm", "beta"): "bn.bias",
    ("batch_norm", "bias"): "bn.bias",
    ("batch_norm", "moving_mean"): "bn.running_mean",
    ("batch_norm", "mean"): "bn.running_mean",
    ("batch_norm", "moving_variance"): "bn.running_var",
    ("batch_norm", "var"): "bn.running_var",
}


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the batch norms' counters, which evaluation never reads and only some files hold."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(f".{COUNTER}")}


def i3d_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """I3D weights of any known layout under our names; names of no known layout come back as they are."""
    tensors = without_counters(tensors)
    if any(re.split(r"[/.]", name)[-2:-1] in (["conv_3d"], ["batch_norm"]) for name in tensors):
        return _from_tensorflow(tensors)
    if any(name.startswith("conv3d_1a_7x7.") for name in tensors):
        return {_from_lower_case(name): tensor for name, tensor in tensors.items()}
    return tensors


def _from_tensorflow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's or Flax's variables: convolutions transposed, norms flattened, gamma (which they lack) set to 1."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = re.split(r"[/.]", name.removesuffix(":0"))
        leaf = _TF_LEAVES.get((parts[-2], parts[-1])) if len(parts) > 2 else None
        unit = _tensorflow_unit(parts[:-2])
        if leaf is None or unit is None:
            ours[name] = tensor  # the importer will list it as unknown
        elif leaf == "conv3d.weight" and tensor.ndim == 5:
            ours[f"{unit}.{leaf}"] = tensor.permute(4, 3, 0, 1, 2).contiguous()
        else:
            ours[f"{unit}.{leaf}"] = tensor.reshape(-1)
        if unit is not None and leaf == "bn.bias":
            ours[f"{unit}.bn.weight"] = torch.ones(tensor.numel())
    return ours


def _tensorflow_unit(parts: list[str]) -> str | None:
    """Our name of the unit that a path leads to, as in Mixed_3b, Branch_1, Conv3d_0b_3x3 -> Mixed_3b.b1b."""
    if not parts:
        return None
    layer = parts[-1]
    if layer in _I3D_STEMS:
        return layer
    if parts[-2:-1] == ["Logits"] and layer == "Conv3d_0c_1x1":
        return "logits"
    branch = re.fullmatch(r"Branch_([0-3])", parts[-2]) if len(parts) > 2 else None
    if branch is None or not re.fullmatch(r"Mixed_[345][b-f]", parts[-3]):
        return None
    number = branch[1]
    if number == "0" and layer == "Conv3d_0a_1x1":
        return f"{parts[-3]}.b0"
    if number == "3" and layer == "Conv3d_0b_1x1":
        return f"{parts[-3]}.b3b"
    # One 3x3x3 convolution of the published graph, in Mixed_5b, is called 0a instead of 0b.
    steps = {"Conv3d_0a_1x1": "a", "Conv3d_0b_3x3": "b", "Conv3d_0a_3x3": "b"}
    return f"{parts[-3]}.b{number}{steps[layer]}" if number in "12" and layer in steps else None


def _from_lower_case(name: str) -> str:
    if name.startswith("conv3d_0c_1x1."):
        return name.replace("conv3d_0c_1x1.", "logits.", 1)
    stem = re.fullmatch(r"conv3d_(1a_7x7|2b_1x1|2c_3x3)\.(.*)", name)
    if stem:
        return f"Conv3d_{stem[1]}.{stem[2]}".replace(".batch3d.", ".bn.")
    mixed = re.fullmatch(r"mixed_([345][b-f])\.branch_(0|[12]\.[01]|3\.1)\.(.*)", name)
    if mixed:
        return f"Mixed_{mixed[1]}.{_LOWER_BRANCHES[mixed[2]]}.{mixed[3]}".replace(".batch3d.", ".bn.")
    return name


def lpips_trunk_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``features.*`` of a trunk file, whose classifier is dropped, or of an export of the LPIPS package."""
    ours = {}
    for name, tensor in tensors.items():
        exported = re.fullmatch(r"net\.slice[1-5]\.(\d+)\.(weight|bias)", name)
        if exported:
            ours[f"features.{exported[1]}.{exported[2]}"] = tensor
        elif not name.startswith(("classifier.", "lin", "scaling_layer.")):
            ours[name] = tensor
    return ours


def lpips_head_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``lin0`` to ``lin4`` of a heads file or of an export of the LPIPS package, whose trunk is dropped."""
    ours = {}
    for name, tensor in tensors.items():
        exported = re.fullmatch(r"lins\.([0-4])\.(.*)", name)
        if exported:
            ours[f"lin{exported[1]}.{exported[2]}"] = tensor
        elif not name.startswith(("net.", "scaling_layer.")):
            ours[name] = tensor
    return ours
