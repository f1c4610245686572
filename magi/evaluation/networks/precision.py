"""Feature networks run in float32: TF32, reduced matmuls and autocast off inside one context, and put back after it.

Scores move with the precision of convolutions (TF32 changes I3D logits by about 5e-3), and torch has TF32 on for
convolutions by default. Knows no network.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

_FULL = ("ieee", "none")  # "none": nobody has asked for less, torch's word for the default


def _switches() -> tuple[Any, ...]:
    """Torch's switches of the precision of float32 products and convolutions, on a GPU and on a CPU."""
    backends: Any = torch.backends  # its submodules are replaced at run time
    gpu = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return (*gpu, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)


def is_full_precision() -> bool:
    """Whether float32 means float32 here: no TF32, no bfloat16 products, no autocast."""
    autocast = any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return not autocast and all(switch.fp32_precision in _FULL for switch in _switches())


@contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, no TF32 and no autocast inside; the switches are restored after it, also after an error."""
    before = [switch.fp32_precision for switch in _switches()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_set, before)
        # NOTE: torch has an older pair of switches for the same thing and refuses to multiply on a GPU when the two
        # disagree, so both are set. Reading the older pair raises where the caller has mixed them already.
        with suppress(RuntimeError):
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        with suppress(RuntimeError):
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        _set([value if value in _FULL else "ieee" for value in before])
        assert is_full_precision(), "TF32 or autocast is still on"
        yield


def _set(values: list[str]) -> None:
    for switch, value in zip(_switches(), values, strict=True):
        if switch.fp32_precision != value:
            switch.fp32_precision = value
