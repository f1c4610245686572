"""AdamW with the paper's groups and warm-up (section 4), and its state as named tensors.

It knows named parameters and the number of the step; no files or processes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from magi.config import TrainingConfig

_STATE = ("step", "exp_avg", "exp_avg_sq")


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters with weight decay: weights of linear and convolution layers.

    Norms, biases, embeddings and learned positions have none (paper section 4).
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, layers)}


def make_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """AdamW over the parameters that are not frozen, in two groups, with and without weight decay.

    On a GPU one kernel reads and writes every number once a step; elsewhere the loop over lists of tensors is faster.
    """
    decayed = decayed_parameters(model)
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    with_decay = [value for name, value in trained if name in decayed]
    without = [value for name, value in trained if name not in decayed]
    groups = [{"params": with_decay, "weight_decay": config.weight_decay}, {"params": without, "weight_decay": 0.0}]
    fused = all(value.is_cuda for value in model.parameters())
    return AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), foreach=not fused, fused=fused)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step 1, 2, ...: linear warm-up, constant, linear cool-down; a function of the step alone."""
    warmup = step / max(1, config.warmup_steps)
    cooldown = (config.steps + 1 - step) / config.cooldown_steps if config.cooldown_steps else 1.0
    return config.learning_rate * min(1.0, warmup, cooldown)


def set_learning_rate(optimizer: AdamW, value: float) -> None:
    """Use ``value`` in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = value


def optimizer_tensors(optimizer: AdamW, model: nn.Module) -> dict[str, Tensor]:
    """Step count and both moments of every parameter, as ``exp_avg/<parameter name>`` and so on."""
    return {
        f"{kind}/{name}": torch.as_tensor(optimizer.state[value][kind])
        for name, value in model.named_parameters()
        if value in optimizer.state
        for kind in _STATE
    }


def every_optimizer_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Names, shapes and types of what ``optimizer_tensors`` returns after a step; without values."""
    return {
        f"{kind}/{name}": torch.empty(() if kind == "step" else value.shape, dtype=torch.float32, device="meta")
        for name, value in model.named_parameters()
        if value.requires_grad
        for kind in _STATE
    }


def load_optimizer(optimizer: AdamW, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned; the groups' settings come from the config, not from the file."""
    for name, value in model.named_parameters():
        if f"step/{name}" in tensors:
            state = {kind: tensors[f"{kind}/{name}"].to(value.device, copy=True) for kind in _STATE[1:]}
            # The fused kernel counts steps where the parameter is, the loop on the CPU.
            place = value.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[value] = {"step": tensors[f"step/{name}"].to(place, copy=True), **state}
