"""One optimizer step: what it depends on, and what a non-finite one leaves alone."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from magi.config import LatentShape
from magi.data.clips import Clip
from magi.errors import CheckpointError
from magi.latents.dataset import LatentClip
from magi.model.magi import Magi
from magi.training.optimizer import optimizer_tensors
from magi.training.parallelize import Distributed
from magi.training.trainer import Trainer
from magi.vae.pixel import PixelVae
from tests.fakes.training_runs import ONE_PROCESS, Clips, tiny_config, tiny_model, tiny_trainer


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a step may change."""
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in trainer.ema.average.items()}
    tensors |= optimizer_tensors(trainer.optimizer, trainer.model)
    return copy.deepcopy(tensors)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def gradients(**training: int) -> dict[str, torch.Tensor]:
    trainer = tiny_trainer(tiny_config(batch=5, **training))
    trainer.model.head.output.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    trainer.model.train()
    trainer._backward()
    return {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}


def test_micro_batches_have_the_gradients_of_the_whole_batch() -> None:
    """Also where they are unequal and mask different numbers of tokens: the mean is over the step's masked tokens."""
    whole, parts = gradients(), gradients(micro_batch=2)
    assert whole.keys() == parts.keys() and len(whole) > 20
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], rtol=1e-4, atol=1e-6), name


def test_every_parameter_is_trained() -> None:
    """A parameter without a gradient would end a distributed run."""
    trainer = tiny_trainer(tiny_config())
    trainer._backward()
    assert [name for name, value in trainer.model.named_parameters() if value.grad is None] == []


def test_loss_falls() -> None:
    trainer = tiny_trainer(tiny_config(steps=60, learning_rate=1e-2))
    mse = [trainer.take_step().mse for _ in range(60)]
    assert sum(mse[-10:]) < 0.9 * sum(mse[:10])


@pytest.mark.parametrize("broken", [[4], [4, 5, 6, 7]])
def test_a_non_finite_step_changes_nothing(broken: list[int]) -> None:
    """Parameters, optimizer and EMA are equal to the bit; the next good step is taken as usual."""
    trainer = tiny_trainer(tiny_config(), Clips(broken))
    assert not trainer.take_step().skipped
    before = state(trainer)
    assert trainer.take_step().skipped and trainer.skips_in_a_row == 1
    assert same(state(trainer), before) and trainer.step == 2
    assert not trainer.take_step().skipped and trainer.skips_in_a_row == 0
    assert not same(state(trainer), before)


class WithBrokenNeighbour(Distributed):
    """This process's own loss and gradients are finite; another one's loss is not."""

    def sum(self, *values: float) -> list[float]:
        mse, vlb, bad, stop = values
        return [mse, vlb, bad + 1, stop]


def test_a_non_finite_loss_in_one_process_is_skipped_by_all() -> None:
    config = tiny_config()
    trainer = Trainer(config, Clips(), None, tiny_model(config), WithBrokenNeighbour(0, 1, torch.device("cpu")))
    trainer.start()
    before = state(trainer)
    assert trainer.take_step().skipped and same(state(trainer), before)


def test_a_non_finite_gradient_of_a_finite_loss_is_skipped() -> None:
    trainer = tiny_trainer(tiny_config())
    trainer.take_step()
    before = state(trainer)
    trainer.model.mask_token.register_hook(lambda gradient: gradient * float("inf"))
    result = trainer.take_step()
    assert result.skipped and torch.tensor(result.loss).isfinite()
    assert same(state(trainer), before)


def test_dropout_of_a_step_does_not_depend_on_what_was_drawn_before() -> None:
    trainers = [tiny_trainer(tiny_config(model={"dropout": 0.5})) for _ in range(2)]
    losses = []
    for seed, trainer in enumerate(trainers):
        torch.manual_seed(seed)
        # The head starts at zero: the transformer, and its dropout, reach the loss from the third step on.
        losses.append([trainer.take_step().loss for _ in range(4)])
    assert losses[0] == losses[1]


def test_ema_model_has_the_averaged_weights_and_does_not_share_them() -> None:
    trainer = tiny_trainer(tiny_config())
    trainer.take_step()
    averaged = trainer.ema_model()
    assert not averaged.training
    assert all(torch.equal(value, trainer.ema.average[name]) for name, value in averaged.named_parameters())
    before = state(trainer)
    averaged.mask_token.data.zero_()
    assert same(state(trainer), before)


def test_a_label_beyond_the_classes_is_one_line() -> None:
    for workers in (0, 1):
        trainer = tiny_trainer(tiny_config(model={"classes": 2}, workers=workers))
        with pytest.raises(ValueError, match=r"^model\.classes is 2, but a clip has label \d; .*folders$"):
            trainer.take_step()


def test_videos_are_encoded_on_the_fly() -> None:
    """Training on videos is training on their latents."""
    vae, config = PixelVae(2), tiny_config()
    latent = LatentShape(frames=3, channels=vae.channels, height=4, width=4)

    class Videos:
        def __getitem__(self, sample: int) -> Clip:
            video_THWC = np.random.default_rng(sample).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
            return Clip(video_THWC, 1, sample % 7, sample)

    class Latents:
        def __getitem__(self, sample: int) -> LatentClip:
            clip = Videos()[sample]
            latents_TCHW = vae.encode(torch.from_numpy(clip.video_THWC)[None])[0].numpy()
            return LatentClip(latents_TCHW, 1, clip.label, sample)

    def losses(clips: Clips | Videos | Latents) -> list[float]:
        model = Magi(config.model, latent, torch.Generator().manual_seed(1))
        trainer = Trainer(config, clips, vae, model, ONE_PROCESS)
        trainer.start()
        return [trainer.take_step().loss for _ in range(2)]

    assert losses(Videos()) == losses(Latents())


def test_videos_need_an_autoencoder() -> None:
    class Videos:
        def __getitem__(self, sample: int) -> Clip:
            return Clip(np.zeros((3, 8, 8, 3), np.uint8), 1, 0, sample)

    config = tiny_config()
    trainer = Trainer(config, Videos(), None, tiny_model(config), ONE_PROCESS)
    trainer.start()
    with pytest.raises(ValueError, match="needs an autoencoder"):
        trainer.take_step()


def test_clips_of_another_size_are_refused() -> None:
    config = tiny_config()
    trainer = tiny_trainer(config)
    trainer.model.latent = trainer.model.latent.model_copy(update={"height": 8})
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 4\).*check data\.frames"):
        trainer.take_step()


def test_another_data_set_is_refused() -> None:
    trainer = tiny_trainer(tiny_config())
    checkpoint = trainer.checkpoint()
    changed = copy.copy(checkpoint.state) | {"data": "10 videos abc"}
    with pytest.raises(CheckpointError, match="started with the data 10 videos abc"):
        trainer.check(dataclasses.replace(checkpoint, state=changed), Path("run"))
