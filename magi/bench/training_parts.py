"""Speed of the parts of a training step beside the model: optimizer and average."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import AdamW

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.models import random_model
from magi.bench.runner import free_memory
from magi.bench.training import setup
from magi.training.ema import Ema
from magi.training.optimizer import decayed_parameters, make_optimizer


def _foreach_optimizer(model: nn.Module, ours: AdamW) -> AdamW:
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in ours.param_groups]
    return AdamW(groups, lr=ours.defaults["lr"], betas=ours.defaults["betas"], foreach=True)


def _one_by_one(ema: Ema, model: nn.Module) -> None:
    """The average, a tensor at a time."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            ema.average[name].lerp_(value, 1e-4)


def optimizer_case(setting: Setting) -> PreparedCase:
    """AdamW and average of all parameters, fused and over lists, against PyTorch's foreach AdamW and a loop."""
    config, latent = setup(setting.smoke)
    model = random_model(config.model, latent, setting.device)
    for value in model.parameters():
        value.grad = torch.randn_like(value) * 1e-3
    ours, ema = make_optimizer(model, config.training), Ema(model, config.training.ema_decay)
    foreach = _foreach_optimizer(model, ours)

    def step(optimizer: AdamW, average: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            optimizer.step()
            average()

        return run

    def check() -> tuple[Parity, ...]:
        return (Parity("three steps of a layer against AdamW on the CPU", _optimizer_difference(setting.device), 1e-5),)

    candidates = (
        Candidate(OURS, step(ours, lambda: ema.update(model, 10**6)), warmups=2, calls=2),
        Candidate("foreach, loop over averages", step(foreach, lambda: _one_by_one(ema, model)), warmups=2, calls=2),
    )
    held = [model, ours, ema, foreach]

    def close() -> None:
        model.zero_grad(set_to_none=True)
        ours.state.clear()
        foreach.state.clear()
        held.clear()
        free_memory()

    # Weight, both moments and average are read and written, the gradient is read.
    traffic = 9 * 4 * sum(value.numel() for value in model.parameters())

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"ms": seconds[OURS] * 1e3, "GB/s": traffic / seconds[OURS] / 1e9}

    shapes = {"parameters": traffic // 36, "decayed": len(decayed_parameters(model))}
    return PreparedCase(candidates, check, metrics=metrics, shapes=shapes, close=close)


def _optimizer_difference(device: torch.device) -> float:
    """Largest relative difference of weights after the same three steps on the device and on the CPU."""
    config, _ = setup(smoke=True)
    layers = []
    for place in (device, torch.device("cpu")):
        layer = nn.Linear(16, 16, bias=False)
        nn.init.constant_(layer.weight, 0.5)
        layer = layer.to(place)
        optimizer = make_optimizer(layer, config.training)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            layer.weight.grad = torch.randn(16, 16, generator=generator).to(place)
            optimizer.step()
        layers.append(layer.weight)
    return relative_error(layers[0], layers[1])
