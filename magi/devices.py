"""Which device computes, and what it computes fastest."""

import torch


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; "auto" takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without instructions for it is several times slower."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
