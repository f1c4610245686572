"""A head of one step on a frozen model, from data: what such a run is (not in the paper; EAR, arXiv 2505.07812).

The transformer and its z stay as they are; the teacher's head, with its output layer at zero, learns by the energy
score to turn noise into a token. No sample of the teacher is drawn, so neither temperature nor guidance is baked in.
It knows no files, loop or data.
"""

import torch

from magi.config import Config
from magi.model.magi import Magi

TEMPERATURE = 0.7
"""Of sampling: at 1 tokens are spread as those of the data are, and errors add up from frame to frame."""


def distilled_config(teacher: Config) -> Config:
    """The run that distils ``teacher``: its data and model, short training, one step a token.

    Dropout is off, as the frozen model is sampled without.
    """
    short = {
        "steps": 4000,
        "batch": 4,
        "micro_batch": 0,
        "warmup_steps": 100,
        "cooldown_steps": 2000,
        "ema_decay": 0.999,
        "precision": "auto",
        "diffusion_batch_mul": max(4, teacher.training.diffusion_batch_mul),
        "log_every": 20,
        "checkpoint_every": 250,
        "sample_every": 0,
    }
    schedule = {name: 0 for name in type(teacher.sampling).model_fields if "timestep" in name}
    return teacher.model_copy(
        update={
            "model": teacher.model.model_copy(update={"objective": "energy", "dropout": 0.0}),
            "training": teacher.training.model_copy(update=short),
            "sampling": teacher.sampling.changed(
                **schedule, steps=1, first_frame_steps=0, fast_steps=0, fast_score=0, temperature=TEMPERATURE
            ),
        }
    )


def one_step_student(teacher: Magi, config: Config) -> Magi:
    """A model with the weights of ``teacher``, all frozen but the head's, whose output layer is fresh and zero."""
    student = Magi(config.model, teacher.latent, torch.Generator().manual_seed(config.training.seed))
    kept = {name: value for name, value in teacher.state_dict().items() if not name.startswith("head.output.")}
    student.load_state_dict(student.state_dict() | kept)
    student.requires_grad_(False)
    student.head.requires_grad_(True)
    return student
