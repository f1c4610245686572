"""What a run consists of in one process: weights, optimizer, average and counts; one guarded update; continuing.

It knows named parameters and processes; no data, loss, loop or files. ``Trainer`` trains a MAGI so, ``VaeTrainer`` the
small autoencoder.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim import AdamW

from magi.config import TrainingConfig, VaeTrainingConfig
from magi.training.checkpoint import Checkpoint, check_checkpoint
from magi.training.ema import Ema
from magi.training.optimizer import every_optimizer_tensor, load_optimizer, optimizer_tensors, set_learning_rate
from magi.training.parallelize import Distributed, full_tensor, gather, shard


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step came to, over all processes; ``skipped`` if it was non-finite and changed nothing."""

    loss: float
    """What was minimised."""
    mse: float
    gradient_norm: float
    skipped: bool
    stop: bool


class RunState(ABC):
    """The state of a run in one process; ``settings`` is the section of ``config`` that says how it is trained."""

    def __init__(
        self,
        config: BaseModel,
        settings: TrainingConfig | VaeTrainingConfig,
        network: nn.Module,
        optimizer: AdamW,
        process: Distributed,
    ) -> None:
        self.config, self.settings, self.network, self.optimizer, self.process = (
            config, settings, network, optimizer, process
        )  # fmt: skip
        self.ema = Ema(network, settings.ema_decay)
        self.step = self.skips_in_a_row = 0

    @abstractmethod
    def start(self) -> None:
        """Open the data at the current step."""

    @abstractmethod
    def close(self) -> None:
        """Close the data."""

    @abstractmethod
    def take_step(self, stop_asked: Callable[[], bool] = lambda: False) -> StepResult:
        """One optimizer step over all processes; a non-finite one changes nothing."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate of step 1, 2, ..."""

    @abstractmethod
    def identity(self) -> dict[str, str | None]:
        """What the run is of, beside its config; None where that is not known."""

    def checkpoint(self) -> Checkpoint:
        """All that the run continues from, in the first process; every process must call it."""
        parts = self._tensors(optimizer_tensors(self.optimizer, self.network))
        model, ema, optimizer = (gather(part, self.process) for part in parts)
        return Checkpoint(model, ema, optimizer, self._counts() | {"torch": str(torch.__version__)})

    def _tensors(self, optimizer: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        return self.network.state_dict(), self.ema.state(self.network), optimizer

    def _counts(self) -> dict[str, object]:
        return {
            "step": self.step,
            "skips_in_a_row": self.skips_in_a_row,
            "config": self.config.model_dump(mode="json"),
            **self.identity(),
        }

    def check(self, found: Checkpoint, folder: Path) -> None:
        """``CheckpointError`` for a checkpoint in ``folder`` that is not one of this run, or not whole."""
        own = Checkpoint(*self._tensors(every_optimizer_tensor(self.network)), self._counts())
        check_checkpoint(found, own, self.config, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that was checked."""
        self.network.load_state_dict(dict(checkpoint.model))
        load_optimizer(self.optimizer, self.network, shard(checkpoint.optimizer, self.network))
        self.ema.load(shard(checkpoint.ema, self.network))
        self.step, self.skips_in_a_row = checkpoint.step, checkpoint.state["skips_in_a_row"]

    def update(self, shares: Tensor, stop_asked: Callable[[], bool]) -> tuple[list[float], float, bool, bool]:
        """Use the gradients, unless a number is not finite in any process.

        ``shares`` are this process's of what the step came to; returned are (their sums, norm of the gradients, whether
        the step was skipped, whether any process was asked to stop).
        """
        parameters, number = self.network.parameters(), self.step + 1
        norm = full_tensor(nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip, foreach=True))
        *parts, gradient_norm = torch.cat([shares, norm.float()[None]]).tolist()
        bad = not all(map(math.isfinite, (*parts, gradient_norm)))
        # One exchange a step: all processes skip or none, and all stop after the same step.
        *sums, bad_count, stop_count = self.process.sum(*parts, float(bad), float(stop_asked()))
        if not bad_count:
            set_learning_rate(self.optimizer, self.learning_rate(number))
            self.optimizer.step()
            self.ema.update(self.network, number)
        self.optimizer.zero_grad(set_to_none=True)
        self.step = number
        self.skips_in_a_row = self.skips_in_a_row + 1 if bad_count else 0
        return sums, gradient_norm, bad_count > 0, stop_count > 0
