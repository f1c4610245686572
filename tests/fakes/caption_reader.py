"""Reads captions as one does who knows the phrases and nothing of sentences, and pipelines that obey them or do not."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.config import Config
from magi.data.captioned_digits import draw_video
from magi.data.digit_captions import PHRASES, VALUES, DigitAttributes
from magi.presets import preset
from magi.vae.pixel import PixelVae


def values_read(text: str) -> dict[str, str]:
    """Attribute -> value of every phrase in ``text``, the longest phrases first."""
    phrases = sorted(
        ((phrase, name, value) for name, of in PHRASES.items() for value, said in of.items() for phrase in said),
        key=lambda entry: -len(entry[0]),
    )
    found: dict[str, str] = {}
    for phrase, name, value in phrases:
        text, times = re.subn(rf"\b{phrase}\b", "_", text, flags=re.IGNORECASE)
        if times:
            assert times == 1 and name not in found, f"{name} is said twice"
            found[name] = value
    return found


class LightMeter:
    """In place of a CLIP model: whether the light of a clip is that of the word for it, 0 or 100."""

    id = "a light meter"

    def scores(self, video_BTHWC: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.float64]:
        seen = ("bright" if bright else "dim" for bright in video_BTHWC.max((1, 2, 3, 4)) > 190)
        pairs = zip(texts, seen, strict=True)
        return np.array([100.0 * (values_read(text)["brightness"] == light) for text, light in pairs])


class Illustrator:
    """A pipeline that draws what the prompt says, and what it leaves open by the seed; ``deaf`` to some attributes.

    ``stubborn``: a prompt that changes is heard only with a history observed anew. It keeps what it was asked.
    """

    def __init__(self, deaf: Sequence[str] = (), text: bool = True, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        values = preset("digits").model_dump()
        config = Config.model_validate(values)
        # The config of a model with text, whatever else that needs.
        model = SimpleNamespace(text_encoder="bytes" if text else "", model_dump=config.model.model_dump)
        self.config = SimpleNamespace(model=model, data=config.data, sampling=config.sampling)
        self.vae, self.deaf = PixelVae(8), set(deaf)
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.model.weight, len(self.deaf))
        torch.nn.init.zeros_(self.model.bias)
        self.asked: list[dict[str, Any]] = []

    def at_speed(self, name: str) -> "Illustrator":
        return self

    def stream(
        self,
        *,
        frames: int,
        prompt: Sequence[str] | Callable[[int], Sequence[str]] | None,
        seeds: Sequence[int],
        sampling: Mapping[str, Any] | None,
    ) -> Iterator[Tensor]:
        asked = [prompt(number) for number in range(frames)] if callable(prompt) else [prompt] * frames
        self.asked.append({"prompt": asked[0], "seeds": list(seeds), "sampling": sampling, "frames": frames})
        change = next((number for number in range(frames) if asked[number] != asked[0]), frames)
        deaf = self.stubborn and (sampling or {}).get("prompt_change") != "observe_anew"
        videos = []
        for number, seed in enumerate(seeds):
            parts = [(asked[0], change), (asked[0] if deaf else asked[-1], frames - change)]
            drawn = [
                self._draw(None if texts is None else texts[number], seed, count) for texts, count in parts if count
            ]
            videos.append(np.concatenate(drawn))
        yield from torch.from_numpy(np.stack(videos)).unbind(1)

    def _draw(self, text: str | None, seed: int, frames: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        values = {name: values[int(rng.integers(len(values)))] for name, values in VALUES.items()}
        said = values_read(text) if text is not None else {}
        values |= {name: value for name, value in said.items() if name not in self.deaf}
        return draw_video(DigitAttributes(**values), rng, self.config.data.height, frames)[0]
