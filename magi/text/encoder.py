"""What turns prompts into the text of conditions (``magi.model.text``): the contract of a text encoder, and the choice.

Another encoder is a callable like ``magi.text.bytes.byte_text`` and its line in ``built_in_encoder``, or is handed to
the pipeline.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from magi.config import ModelConfig
from magi.text.bytes import byte_text

TextEncoder = Callable[[Sequence[str]], Tensor]
"""From texts to text_BLE, zeros after their ends; ``ValueError`` for one that is longer than the model reads."""


def built_in_encoder(config: ModelConfig) -> TextEncoder | None:
    """The encoder of a model that needs no weights of its own; None for one without text or with a frozen encoder."""
    return partial(byte_text, longest=config.text_length) if config.text_encoder == "bytes" else None
