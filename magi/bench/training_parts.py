"""Speed of the parts of a training step: optimizer and average, the head's loss, and temporal attention on a CPU."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from magi.bench.attention import AttentionShape, forward_work, training_work
from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.runner import free_memory
from magi.bench.training_setup import build_model, draw_clips, setup
from magi.model.diffusion import add_noise, diffusion_loss
from magi.model.slot_attention import dense_slot_attention, slot_attention
from magi.model.teacher_forcing import SlotPattern
from magi.training.ema import Ema
from magi.training.loss import MagiLoss
from magi.training.optimizer import decayed_parameters, make_optimizer


def _foreach_optimizer(model: nn.Module, ours: AdamW) -> AdamW:
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in ours.param_groups]
    return AdamW(groups, lr=ours.defaults["lr"], betas=ours.defaults["betas"], foreach=True)


def _one_by_one(ema: Ema, model: nn.Module) -> None:
    """The average, a tensor at a time."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            ema.average[name].lerp_(value, 1e-4)


def optimizer_trial(setting: Setting) -> Trial:
    """AdamW and average of all parameters, fused and over lists, against PyTorch's foreach AdamW and a loop."""
    config, latent = setup(setting.smoke)
    model = build_model(config, latent, setting.device)
    for value in model.parameters():
        value.grad = torch.randn_like(value) * 1e-3
    ours, ema = make_optimizer(model, config.training), Ema(model, config.training.ema_decay)
    foreach = _foreach_optimizer(model, ours)

    def step(optimizer: AdamW, average: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            optimizer.step()
            average()

        return run

    def check() -> Parity:
        return Parity("three steps of a layer against AdamW on the CPU", _optimizer_difference(setting.device), 1e-5)

    contenders = (
        Contender(OURS, step(ours, lambda: ema.update(model, 10**6)), warmups=2, calls=2),
        Contender("foreach, loop over averages", step(foreach, lambda: _one_by_one(ema, model)), warmups=2, calls=2),
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
    return Trial(contenders, check, metrics=metrics, shapes=shapes, close=close)


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


def head_trial(setting: Setting) -> Trial:
    """The head's loss forward and backward on masked tokens alone, against all tokens with the loss masked (MAR)."""
    device, config_and_latent = setting.device, setup(setting.smoke)
    config = config_and_latent[0]
    model = build_model(*config_and_latent, device)
    model.transformer.blocks.to("meta")  # not taken part in
    clips = draw_clips(config, model, 2 if setting.smoke else 4, device)
    batch, schedule = clips.batch, MagiLoss(config.model, device).schedule
    clean, timestep = clips.tokens_BTNC.flatten(0, 2), batch.timestep_RBUN.flatten(1)
    noise, weight = batch.diffusion_noise_RBUNC.flatten(1, 3), batch.masked_BUN.flatten().float()
    z_ND = torch.randn(len(clean), config.model.width, device=device, requires_grad=True)
    parameters = [z_ND, *model.head.parameters()]

    def run(gather: bool, head: Callable[..., Tensor] = model.head) -> list[Tensor]:
        rows = (clean, noise, timestep, weight, z_ND)
        if gather:
            picked = batch.picked_M
            rows = (clean[picked], noise[:, picked], timestep[:, picked], weight[picked], z_ND.index_select(0, picked))
        x0, eps, t, w, z = rows
        x0 = x0.expand_as(eps)
        noisy = add_noise(schedule, x0, eps, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prediction = head(noisy, t, z).to(eps.dtype)
        parts = diffusion_loss(schedule, prediction, x0, noisy, eps, t)
        loss = ((parts.mse + parts.vlb) * w).sum() / (clips.masked * len(t))
        return list(torch.autograd.grad(loss, parameters))

    compiled = torch.compile(model.head, dynamic=True) if device.type == "cuda" else model.head

    def ours() -> list[Tensor]:
        return run(True, compiled)

    def check() -> Parity:
        worst = max(relative_error(a, b) for a, b in zip(ours(), run(gather=False), strict=True))
        return Parity("largest relative difference of a gradient", worst, 3e-2 if device.type == "cuda" else 1e-4)

    return Trial(
        (
            Contender(OURS, ours, warmups=2, calls=3),
            Contender("all tokens", lambda: run(gather=False), calls=3),
            Contender("masked tokens, eager", lambda: run(gather=True), calls=3),
        ),
        check,
        shapes={"clips": len(clips.tokens_BTNC), "masked tokens": clips.masked, "noisings": len(timestep)},
        close=free_memory,
    )


def cpu_trial(setting: Setting) -> Trial:
    """Temporal attention of training on a CPU: the split form against the dense mask, and all 2T slots."""
    positions, heads, width, frames = (4, 2, 8, 4) if setting.smoke else (256, 4, 48, 16)
    pattern = SlotPattern(frames - 1, frames, 1)
    shape = AttentionShape(1, positions, heads, width, pattern, torch.float32)
    naive = AttentionShape(1, positions, heads, width, SlotPattern(frames, frames, 1), torch.float32)
    projected, all_slots = shape.projections(setting.device), naive.projections(setting.device)
    d_mixed = torch.randn_like(projected[..., : heads * width])
    d_all = torch.randn_like(all_slots[..., : heads * width])
    low = AttentionShape(1, positions, heads, width, pattern, torch.bfloat16)
    rounded = projected.bfloat16()

    def check() -> tuple[Parity, ...]:
        pairs = zip(
            training_work(slot_attention, projected, d_mixed, shape)(),  # type: ignore[call-overload]
            training_work(dense_slot_attention, projected, d_mixed, shape)(),
            ("result", "gradient"),
            strict=True,
        )
        return tuple(Parity(f"{what} against the dense mask", relative_error(a, b), 1e-5) for a, b, what in pairs)

    contenders = (
        Contender(OURS, training_work(slot_attention, projected, d_mixed, shape), warmups=2, calls=5),
        Contender("dense mask", training_work(dense_slot_attention, projected, d_mixed, shape), calls=5),
        Contender("all 2T slots", training_work(slot_attention, all_slots, d_all, naive), calls=5),
        Contender("bf16 forward, ours", forward_work(slot_attention, rounded, low), calls=5),
        Contender("bf16 forward, dense mask", forward_work(dense_slot_attention, rounded, low), calls=5),
    )

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"x dense mask, bf16 forward": seconds["bf16 forward, dense mask"] / seconds["bf16 forward, ours"]}

    shapes = {"P": positions, "heads": heads, "head width": width, "S": pattern.slots}
    return Trial(contenders, check, metrics=metrics, shapes=shapes)


PARTS = (
    Case(
        "opt.step",
        "cuda",
        "AdamW and average, 850 M parameters",
        "step",
        optimizer_trial,
        (Goal("ms", 15, 10, smaller=True),),
        0.05,
    ),
    Case(
        "head.train",
        "cuda",
        "loss of the diffusion head, forward and backward, 4 noisings",
        "pass",
        head_trial,
        (Goal("x all tokens", 1.15, 1.3),),
        0.3,
    ),
    Case(
        "cpu.ctf",
        "cpu",
        "temporal attention of training, forward and backward, 16 frames of 256 positions, 192 wide",
        "pass",
        cpu_trial,
        (Goal("x dense mask", 1.0, 1.2), Goal("x dense mask, bf16 forward", 1.0, 1.2)),
        0.1,
    ),
)
