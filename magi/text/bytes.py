"""The built-in text encoder: bytes of UTF-8, which need no vocabulary and know a typing error from another word.

A text is its bytes plus one, (L, 1), so that zero is left for what lies after its end; no text is no bytes. What they
mean is learned with the model (``magi.model.text``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def byte_text(texts: Sequence[str], longest: int, cut: bool = False) -> Tensor:
    """text_BLE (int64, E = 1) of texts, L the length of the longest of them, at least 1.

    A text of more than ``longest`` bytes is cut there if ``cut``, else a ``ValueError``.
    """
    encoded = [text.encode() for text in texts]
    for data in encoded:
        if len(data) > longest and not cut:
            raise ValueError(f"text of {len(data):,} bytes; the model reads {longest}, make it shorter")
    encoded = [data[:longest] for data in encoded]
    text_BLE = torch.zeros(len(texts), max(1, *map(len, encoded)), 1, dtype=torch.long)
    for text_LE, data in zip(text_BLE, encoded, strict=True):
        text_LE[: len(data), 0] = torch.tensor(list(data), dtype=torch.long) + 1
    return text_BLE
