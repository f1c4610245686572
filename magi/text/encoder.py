"""What turns prompts into the text of conditions (``magi.model.text``): the contract of a text encoder, and the choice.

The bytes of a model that reads these need no weights. A model that reads the states of a frozen encoder knows which one
it was trained with: its folder names it, and another one is refused.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magi.config import ModelConfig
from magi.errors import CheckpointError
from magi.files import read_text, write_json
from magi.text.bytes import byte_text

if TYPE_CHECKING:
    from magi.text.frozen import FrozenEncoder

TextEncoder = Callable[[Sequence[str]], Tensor]
"""From texts to text_BLE, zeros after their ends; ``ValueError`` for one that is longer than the model reads."""


@dataclass(frozen=True)
class FrozenChoice:
    """The frozen encoder that a model was trained with."""

    encoder: str
    """Id of its weights and tokenizer."""
    source: str
    """Folder or hub id; '' where it is not known to others."""
    width: int
    longest: int
    """Tokens that captions were cut to."""

    @classmethod
    def read(cls, path: Path) -> "FrozenChoice":
        """From a model's folder; ``CheckpointError`` if the file is missing or damaged."""
        try:
            values = json.loads(read_text(path))
            choice = cls(str(values["encoder"]), str(values["source"]), int(values["width"]), int(values["longest"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error}); copy the model's folder again") from None
        return choice

    def write(self, path: Path) -> None:
        """Into a model's folder."""
        write_json(path, asdict(self))


@dataclass
class PromptEncoder:
    """Prompts to the states of a frozen encoder, which is loaded when the first prompt comes.

    ``source`` is where it lies on this machine, where that is not what the model's folder says. ``ValueError`` for a
    prompt that is too long, or for another encoder than the model was trained with.
    """

    choice: FrozenChoice
    source: str = ""
    _loaded: "FrozenEncoder | None" = field(default=None, repr=False)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """text_BLE; an empty text is no text, all zeros."""
        given = [text for text in texts if text]
        states = iter(self._encoder().states(given, self.choice.longest) if given else [])
        none_LE = torch.zeros(1, self.choice.width)
        return pad_sequence([next(states).float() if text else none_LE for text in texts], batch_first=True)

    def _encoder(self) -> "FrozenEncoder":
        if self._loaded is None:
            from magi.text.frozen import FrozenEncoder

            source = self.source or self.choice.source
            if not source:
                raise ValueError(f"name the folder or hub id of the text encoder {self.choice.encoder}: --text-encoder")
            loaded = FrozenEncoder.load(source)
            if loaded.id != self.choice.encoder:
                raise ValueError(
                    f"{source}: is the encoder {loaded.id}; the model reads states of {self.choice.encoder}"
                )
            self._loaded = loaded
        return self._loaded


def built_in_encoder(config: ModelConfig) -> TextEncoder | None:
    """The encoder of a model that needs no weights of its own; None for one without text or with a frozen encoder."""
    return partial(byte_text, longest=config.text_length) if config.text_encoder == "bytes" else None
