"""Processes, and all that is put on a model from outside, in one function and one order.

Activation checkpointing, compilation by block, precision, then the distributed wrapper: DDP, or FSDP2 with weights,
gradients, optimizer and average sharded. The launcher is ``torchrun`` or anything else that sets RANK, WORLD_SIZE and
LOCAL_RANK; without them it is one process. It knows a model's blocks and devices; no data, loss or files.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from magi.config import TrainingConfig
from magi.devices import computes_in_bf16, resolve_device
from magi.model.magi import Magi

_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters


@dataclass(frozen=True)
class Distributed:
    """This process among ``world`` ones, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
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


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[Distributed]:
    """Join the processes of this run for the length of the context: NCCL on GPUs, gloo on CPUs.

    Contexts nest. NOTE: PyTorch joins once a process: a second context after the first has ended would hang.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = resolve_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if world == 1:
        yield Distributed(0, 1, place)
        return
    owned = not dist.is_initialized()
    if owned:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Distributed(rank, world, place)
    finally:
        if owned:
            dist.destroy_process_group()


def parallelize(model: Magi, config: TrainingConfig, process: Distributed) -> nn.Module:
    """Put checkpointing, compilation, precision and distribution on ``model``, in this order; it is on the device.

    What is returned is what training calls: a module reached around it has gradients that are silently not
    synchronised. Under FSDP the parameters are replaced, so optimizer and average are made afterwards. One process
    shards nothing. ``ValueError`` for a batch that FSDP's processes cannot share evenly.
    """
    blocks = list(model.transformer.blocks)
    if config.activation_checkpointing:
        for block in blocks:
            _recompute(block)
    if config.compile:
        for block in blocks:
            block.compile()
        # Its rows are the masked tokens of a batch, another number every step.
        model.get_submodule("head").compile(dynamic=True)
    if config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16(process.device)):
        _autocast(model, process.device)
    if process.world == 1:
        return model
    if config.parallel == "fsdp":
        return _fully_shard(model, blocks, config.batch, process)
    return _replicate(model, process)


# NOTE: a replaced forward belongs to this instance; a deep copy of the module would still run this one's weights.


def _recompute(block: nn.Module) -> None:
    """Forward keeps the block's input alone; backward runs the block again, with the same dropout."""
    plain: Callable[..., Tensor] = block.forward

    def forward(*inputs: Any, **options: Any) -> Tensor:
        return checkpoint(plain, *inputs, use_reentrant=False, **options)

    block.forward = forward


def _autocast(model: nn.Module, device: torch.device) -> None:
    """BF16 inside the one training call; weights stay float32, as does the loss, which casts the prediction back."""
    plain: Callable[..., Tensor] = model.forward

    def forward(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return plain(*inputs, **options)

    model.forward = forward


def _replicate(model: nn.Module, process: Distributed) -> nn.Module:
    """DDP: every process holds the whole model; gradients are averaged."""
    ids = [process.device.index] if process.device.type == "cuda" else None
    # Buffers are constants. An exchange of them a forward would also hang processes with unequal micro-batches.
    name = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"  # before 2.13
    constant_buffers: dict[str, Any] = {name: False}
    # Gradients are views of what is sent, or they would be held twice.
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **constant_buffers)


def _fully_shard(model: nn.Module, blocks: list[nn.Module], batch: int, process: Distributed) -> nn.Module:
    """FSDP2: every process holds a share of each parameter; a block is whole only while it runs.

    Weights travel in float32 and gradients are summed in it; autocast, as under DDP, decides what is computed in which
    precision. A policy of FSDP's own would round norms and the residual stream to bfloat16, too.
    """
    if batch % process.world:
        raise ValueError(
            f"training.batch {batch}: fsdp needs a multiple of the number of processes {process.world}, because all "
            "take part in every forward pass; change it, or use --training.parallel ddp"
        )
    mesh = init_device_mesh(process.device.type, (process.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # FSDP hangs a hook on what forward returns, and warns of a view, where an in-place change would lose the hook.
    model.register_forward_hook(lambda _, __, prediction: prediction.clone())
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_shard_loaded)
    return model


def _shard_loaded(model: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """A sharded model loads full tensors: each process keeps its shard."""
    state.update(shard(state, model))


def shard(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """This process's shards of full tensors, each cut as the parameter of ``model`` named by the last part of its name.

    ``exp_avg/NAME`` is cut as the parameter NAME; what has another shape, and everything of a model that is not
    sharded, stays full.
    """
    parameters = dict(model.named_parameters())
    return {name: _shard_like(tensor, parameters.get(name.rpartition("/")[2])) for name, tensor in tensors.items()}


def _shard_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    # No source rank: every process has read the full tensor, so nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of a sharded one put together, for which every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], process: Distributed) -> dict[str, Tensor]:
    """Full tensors in the main process (sharded ones on its CPU), nothing in the others; every process must call it.

    One tensor at a time is full on a device.
    """
    result = {}
    for name, tensor in tensors.items():
        one = full_tensor(tensor.detach())
        if process.is_main:
            result[name] = one.cpu() if isinstance(tensor, DTensor) else one
    return result


def gradients_stay_local(model: nn.Module, local: bool) -> AbstractContextManager[None]:
    """Context of a micro-batch: DDP exchanges gradients in the last one of a step only.

    FSDP does in every one: what it would accumulate otherwise is the whole gradient, which its shares exist to avoid.
    """
    return model.no_sync() if local and isinstance(model, DistributedDataParallel) else nullcontext()
