"""A text encoder whose states say which text they are of, for tests of what is done with states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FakeEncoder:
    """A token a word: its length, and the text's."""

    id: str = "fake-1"
    source: str = "fakes/encoder"
    width: int = 4
    not_finite: str = ""
    calls: int = 0

    def states(self, texts: Sequence[str], longest: int, cut: bool = False) -> list[Tensor]:
        self.calls += 1
        found = []
        for text in texts:
            words = text.split()[:longest] if cut else text.split()
            if len(words) > longest:
                raise ValueError(f"text of {len(words)} tokens, {text[:40]!a}; {longest} are read, make it shorter")
            states_LE = torch.full((len(words), self.width), float(len(text)), dtype=torch.float16)
            states_LE[:, 0] = torch.tensor([len(word) for word in words])
            if text == self.not_finite:
                states_LE[-1, -1] = torch.nan
            found.append(states_LE)
        return found
