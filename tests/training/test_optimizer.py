import pytest
import torch
from torch import nn

from magi.training.optimizer import decayed_parameters, learning_rate, load_optimizer, make_optimizer, optimizer_tensors
from tests.fakes.training_runs import tiny_config, tiny_model


def test_norms_biases_embeddings_and_positions_are_not_decayed() -> None:
    model = tiny_model(tiny_config())
    decayed = decayed_parameters(model)
    kept = {name for name, _ in model.named_parameters()} - decayed
    assert "transformer.blocks.0.spatial_attention.qkv.weight" in decayed and "head.output.weight" in decayed
    assert {"mask_token", "masked_position", "observation_position", "head_position", "norm.weight"} <= kept
    assert {"conditioning.label.weight", "conditioning.interval.weight", "embed_token.bias"} <= kept
    assert decayed <= set(dict(model.named_parameters()))


def test_every_parameter_is_in_one_group() -> None:
    config = tiny_config()
    model = tiny_model(config)
    with_decay, without = make_optimizer(model, config.training).param_groups
    assert with_decay["weight_decay"] == 0.02 and without["weight_decay"] == 0
    together = [id(value) for value in with_decay["params"] + without["params"]]
    assert sorted(together) == sorted(id(value) for value in model.parameters())


def test_a_layer_at_the_root_is_found() -> None:
    assert decayed_parameters(nn.Linear(2, 2)) == {"weight"}


def test_warm_up_is_linear_then_constant() -> None:
    config = tiny_config(warmup_steps=10, learning_rate=2e-4).training
    assert [learning_rate(config, step) for step in (1, 5, 10, 1000)] == pytest.approx([2e-5, 1e-4, 2e-4, 2e-4])
    assert learning_rate(tiny_config(warmup_steps=0).training, 1) == 3e-3


def test_the_last_steps_may_cool_down_to_zero() -> None:
    config = tiny_config(warmup_steps=10, learning_rate=2e-4, steps=100, cooldown_steps=20).training
    rates = [learning_rate(config, step) for step in (5, 80, 81, 91, 100)]
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 1e-4, 1e-5])


def test_state_comes_back_by_name() -> None:
    """An optimizer that is restored takes the same next step, to the bit."""
    config = tiny_config()
    models = [tiny_model(config), tiny_model(config)]
    first, second = (make_optimizer(model, config.training) for model in models)
    gradients = [torch.randn_like(value) for value in models[0].parameters()]

    def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            value.grad = gradient.clone()
        optimizer.step()

    for _ in range(3):
        take_step(models[0], first)
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer(second, models[1], optimizer_tensors(first, models[0]))
    take_step(models[0], first)
    take_step(models[1], second)
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_fused_step_is_the_same_step() -> None:
    """What a GPU runs; PyTorch has it for a CPU too, so its state can be checked here."""
    config = tiny_config()
    models = [tiny_model(config), tiny_model(config)]
    optimizers = [make_optimizer(model, config.training) for model in models]
    assert optimizers[0].defaults["foreach"] and not optimizers[0].defaults["fused"]
    optimizers[1] = torch.optim.AdamW(
        [{key: group[key] for key in ("params", "weight_decay")} for group in optimizers[1].param_groups],
        lr=config.training.learning_rate,
        betas=(config.training.beta1, config.training.beta2),
        fused=True,
    )
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for value in model.parameters():
                value.grad = torch.randn(value.shape, generator=generator)
            optimizer.step()
        if seed == 1:  # in the middle, through the names of a checkpoint
            load_optimizer(optimizers[1], models[1], optimizer_tensors(optimizers[0], models[0]))
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
