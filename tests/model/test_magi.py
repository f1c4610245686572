"""Magi as a whole: latents and tokens, the paper's size, what it needs, and how conditions reach a prediction."""

import subprocess
import sys

import pytest
import torch

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.positions import interpolate_rows, sinusoidal_1d
from magi.model.teacher_forcing import masked_teacher_forcing
from tests.model.test_teacher_forcing import inputs, tiny_magi


def test_patchify_is_inverted_and_keeps_neighbours_together() -> None:
    model = Magi(ModelConfig(width=16, blocks=1, heads=2), LatentShape(frames=2, channels=3, height=6, width=4))
    latents_BTCHW = torch.randn(2, 2, 3, 6, 4)
    tokens_BTNC = model.patchify(latents_BTCHW)
    assert torch.equal(model.unpatchify(tokens_BTNC), latents_BTCHW)
    assert torch.equal(tokens_BTNC[0, 0, 3], latents_BTCHW[0, 0, :, 2:4, 2:4].flatten())


def test_indivisible_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5x4 is not divisible by model.patch_size 2"):
        Magi(ModelConfig(width=16, blocks=1, heads=2), LatentShape(frames=2, channels=3, height=5, width=4))


def test_the_papers_model_has_its_size() -> None:
    with torch.device("meta"):
        model = Magi(ModelConfig(), LatentShape(frames=16, channels=4, height=32, width=32))
    total = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert 800e6 < total < 860e6
    assert blocks == pytest.approx(786.4e6, rel=0.002)


def test_the_model_needs_torch_and_einops_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'yaml', 'tyro', 'safetensors', 'diffusers', 'av', 'PIL', 'matplotlib', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import magi.model.magi, magi.model.masking, magi.model.teacher_forcing, magi.model.noise_injection\n"
        "import magi.model.objectives.ddpm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_condition_changes_the_prediction() -> None:
    model = tiny_magi()
    tokens_BTNC, masked_BTN, _ = inputs(model)
    time = torch.tensor(1)

    def z_BND(interval: int, level: int, label: int) -> torch.Tensor:
        conditions = Conditions(*(torch.full((2,), value) for value in (interval, level, label)))
        cache = model.new_cache(2, 2)
        model.observe(tokens_BTNC[:, :1], torch.tensor([0]), conditions, cache)
        return model.predict(tokens_BTNC[:, 1], masked_BTN[:, 1], time, conditions, cache)

    plain = z_BND(1, 1, 0)
    for changed in (z_BND(2, 1, 0), z_BND(1, 2, 0), z_BND(1, 1, 1), z_BND(1, 1, 3)):
        assert (plain - changed).abs().max() > 1e-6


def test_a_masked_pass_leaves_finished_frames_alone() -> None:
    model = tiny_magi()
    tokens_BTNC, masked_BTN, conditions = inputs(model)
    cache = model.new_cache(2, 3)
    model.observe(tokens_BTNC[:, :2], torch.arange(2), conditions, cache)
    before = cache.stored[:, :, :2].clone()
    first = model.predict(tokens_BTNC[:, 2], masked_BTN[:, 2], torch.tensor(2), conditions, cache)
    model.predict(tokens_BTNC[:, 3], masked_BTN[:, 3], torch.tensor(2), conditions, cache)
    again = model.predict(tokens_BTNC[:, 2], masked_BTN[:, 2], torch.tensor(2), conditions, cache)
    assert cache.length == 2 and torch.equal(cache.stored[:, :, :2], before)
    assert torch.equal(first, again)


def test_observing_at_once_equals_frame_by_frame() -> None:
    model = tiny_magi()
    tokens_BTNC, _, conditions = inputs(model)
    at_once, one_by_one = model.new_cache(2, 3), model.new_cache(2, 3)
    model.observe(tokens_BTNC[:, :3], torch.arange(3), conditions, at_once)
    for frame in range(3):
        model.observe(tokens_BTNC[:, frame : frame + 1], torch.tensor([frame]), conditions, one_by_one)
    torch.testing.assert_close(at_once.stored, one_by_one.stored)


def test_a_masked_past_is_the_training_of_masked_teacher_forcing() -> None:
    """What is predicted after frames observed under their masks is what one forward of training predicts."""
    model = tiny_magi("masked")
    tokens_BTNC, masked_BTN, conditions = inputs(model)
    assert masked_BTN.any() and not masked_BTN.all()
    sequence = masked_teacher_forcing(tokens_BTNC, masked_BTN)
    embedded = (sequence.masked_BSN, torch.zeros(4, dtype=torch.bool), sequence.time_S, conditions)
    trained_BTND = model._condition(model.transformer(model._embed(tokens_BTNC, *embedded), sequence.attend))
    for shown, equal in ((masked_BTN, True), (None, False)):
        cache = model.new_cache(2, 3)
        hidden = None if shown is None else shown[:, :3]
        model.observe(tokens_BTNC[:, :3], torch.arange(3), conditions, cache, hidden)
        z_BND = model.predict(tokens_BTNC[:, 3], masked_BTN[:, 3], torch.tensor(3), conditions, cache)
        assert torch.allclose(z_BND, trained_BTND[:, 3]) == equal


def test_time_is_interpolated_linearly() -> None:
    table_TD = sinusoidal_1d(4, 8)
    rows_SD = interpolate_rows(table_TD, torch.tensor([0.0, 0.25, 3.0]))
    torch.testing.assert_close(
        rows_SD, torch.stack([table_TD[0], 0.75 * table_TD[0] + 0.25 * table_TD[1], table_TD[3]])
    )
    assert torch.equal(interpolate_rows(table_TD, torch.tensor([2, 1])), table_TD[[2, 1]])


def test_initial_weights_follow_the_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        config, latent = ModelConfig(width=16, blocks=1, heads=2), LatentShape(frames=1, channels=1, height=2, width=2)
        model = Magi(config, latent, torch.Generator().manual_seed(seed))
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))
