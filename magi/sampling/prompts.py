"""Prompts as a user gives them, checked and encoded, the same for a whole video or one latent frame after another.

- a text for all videos, or a list of B with one a video; None and the empty text are no text;
- a callable from the number of a latent frame, 0 and up, to one of these. It is asked when the frame begins, of frames
  of the context too, and a text stays encoded until it answers another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from magi.config import ModelConfig
from magi.data.captions import one_line
from magi.model.conditioning import Conditions
from magi.sampling.generate import NextText
from magi.text.encoder import TextEncoder

Prompt = str | Sequence[str | None] | None
Prompts = Prompt | Callable[[int], Prompt]


def prompt_count(prompt: Prompts) -> int:
    """Videos that prompts are given for; 1 where one serves all."""
    return 1 if prompt is None or isinstance(prompt, str) or callable(prompt) else len(prompt)


def with_prompts(
    conditions: Conditions, prompt: Prompts, negative: Prompt, config: ModelConfig, encoder: TextEncoder | None
) -> tuple[Conditions, NextText | None]:
    """The conditions with their text, and what is asked where a prompt changes from frame to frame.

    ``ValueError`` for prompts that the model cannot take, at once, or of a callable at its frame.
    """
    if not config.text_encoder:
        for name, given in (("prompt", prompt), ("negative_prompt", negative)):
            if given is not None:
                raise ValueError(f"{name}: this model has no text; leave it out")
        return conditions, None
    batch = conditions.batch
    if negative is not None:
        conditions = replace(conditions, negative_BLE=encode_prompts("negative_prompt", negative, encoder, batch))
    if callable(prompt):
        return conditions, _asking(prompt, encoder, batch)
    if prompt is not None:
        conditions = replace(conditions, text_BLE=encode_prompts("prompt", prompt, encoder, batch))
    return conditions, None


def _asking(ask: Callable[[int], Prompt], encoder: TextEncoder | None, batch: int) -> NextText:
    last: tuple[Prompt, Tensor] | None = None

    def answer(number: int) -> Tensor:
        nonlocal last
        prompt = ask(number)
        prompt = prompt if prompt is None or isinstance(prompt, str) else list(prompt)
        if last is None or last[0] != prompt:
            last = prompt, encode_prompts(f"prompt of frame {number}", prompt, encoder, batch)
        return last[1]

    return answer


def encode_prompts(name: str, prompt: Prompt, encoder: TextEncoder | None, batch: int) -> Tensor:
    """text_BLE of B videos; ``ValueError``, with the ``name`` of what was given, for what the model cannot read."""
    if encoder is None:
        raise ValueError(
            f"{name}: this model reads the states of a frozen encoder; give the pipeline that text_encoder"
        )
    texts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
    if len(texts) not in (1, batch):
        raise ValueError(f"{name}: expected 1 or {batch} (one a video), got {len(texts)}")
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"{name}: expected a text, got {str(text)[:60]!r}")
    try:
        text_BLE = encoder([one_line(text or "") for text in texts])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return text_BLE.expand(batch, -1, -1)
