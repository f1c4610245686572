"""Processes, precision and the distributed wrapper, put on a model from outside, in one order.

The launcher is ``torchrun`` or anything else that sets RANK, WORLD_SIZE and LOCAL_RANK; without them it is one process.
It knows modules and devices; no data, loss or files.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters


@dataclass(frozen=True)
class Process:
    """This process among ``world`` ones, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums of each value over all processes; every process must call it."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum(0.0)


def chosen_device(name: str) -> torch.device:
    """The device called ``name``; "auto" takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def joined(device: str = "auto") -> Iterator[Process]:
    """Join the processes of this run for the length of the context: NCCL on GPUs, gloo on CPUs.

    Contexts nest. NOTE: PyTorch joins once a process: a second context after the first has ended would hang.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = chosen_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if world == 1:
        yield Process(0, 1, place)
        return
    owned = not dist.is_initialized()
    if owned:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Process(rank, world, place)
    finally:
        if owned:
            dist.destroy_process_group()


def prepare(model: nn.Module, precision: Literal["bf16", "fp32", "auto"], process: Process) -> nn.Module:
    """Put precision, then the distributed wrapper on ``model``, which is on the process's device.

    The wrapper is what training calls: a module reached around it has gradients that are silently not synchronised.
    """
    if precision == "bf16" or (precision == "auto" and computes_in_bf16(process.device)):
        _autocast(model, process.device)
    if process.world == 1:
        return model
    ids = [process.device.index] if process.device.type == "cuda" else None
    # Buffers are constants. An exchange of them a forward would also hang processes with unequal micro-batches.
    name = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"  # before 2.13
    constant_buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, device_ids=ids, **constant_buffers)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without instructions for it is several times slower."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _autocast(model: nn.Module, device: torch.device) -> None:
    """BF16 inside the one training call; weights stay float32, and so does the loss, which casts the prediction back.

    NOTE: the replaced forward belongs to this instance; a deep copy of the model would still run this one's weights.
    """
    plain: Callable[..., Tensor] = model.forward

    def forward(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return plain(*inputs, **options)

    model.forward = forward


def gradients_stay_local(model: nn.Module, local: bool) -> AbstractContextManager[None]:
    """Context of a micro-batch: gradients are exchanged in the last one of a step only."""
    return model.no_sync() if local and isinstance(model, DistributedDataParallel) else nullcontext()
