"""What a device computes fastest."""

import torch


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without instructions for it is several times slower."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
