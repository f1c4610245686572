"""The training loss: the diffusion loss of masked tokens, given complete (or masked) earlier frames (paper section 4).

A callable that takes the model; it knows no optimizer, step or process.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from magi.config import ModelConfig
from magi.model.noise_injection import inject_noise
from magi.model.objectives.contract import make_objective
from magi.model.objectives.ddpm import DiffusionLoss
from magi.model.teacher_forcing import complete_teacher_forcing, masked_teacher_forcing
from magi.training.batch import Batch


class MagiLoss:
    """Noise MSE plus the variational term, of the masked tokens of a batch, each noised R times."""

    def __init__(self, config: ModelConfig, device: torch.device, first_frame_views: int = 0) -> None:
        self.first_frame_views = first_frame_views
        self.force = complete_teacher_forcing if config.teacher_forcing == "complete" else masked_teacher_forcing
        self.objective = make_objective(config).to(device)

    def __call__(self, model: Callable[..., Tensor], tokens_BTNC: Tensor, batch: Batch, total: int) -> DiffusionLoss:
        """The two parts of the loss of ``batch``, scalars in float32; their sum is to be minimised.

        ``total`` is the number of masked tokens of the whole optimizer step (``Batch.step_masked``): the parts
        of its micro-batches then add up to the mean over its masked tokens and noisings.
        """
        forced = self.force(tokens_BTNC, batch.masked_BUN, self.first_frame_views)
        sequence, picked_M = inject_noise(forced, batch.noise_BTNC, batch.amplitude_B), batch.picked_M
        timestep_RM = batch.timestep_RBUN.flatten(1).index_select(1, picked_M)
        noise_RMC = batch.diffusion_noise_RBUNC.flatten(1, 3).index_select(1, picked_M)
        clean_MC = forced.tokens_BSNC[:, forced.observations :].flatten(0, 2).index_select(0, picked_M)
        clean_RMC = clean_MC.expand_as(noise_RMC)
        noisy_RMC = self.objective.corrupt(clean_RMC, noise_RMC, timestep_RM)
        # The model may run in bfloat16; the loss does not.
        prediction = model(sequence, batch.conditions, picked_M, noisy_RMC, timestep_RM).to(noise_RMC.dtype)
        loss = self.objective.loss(prediction, clean_RMC, noisy_RMC, noise_RMC, timestep_RM)
        terms = total * len(timestep_RM)
        return DiffusionLoss(mse=loss.mse.sum() / terms, vlb=loss.vlb.sum() / terms)
