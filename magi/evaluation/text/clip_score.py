"""CLIP score: how near the frames of a clip are to its prompt in the space of a CLIP model (Radford et al., 2021).

100 times the cosine of the embeddings of an image and a text (Hessel et al., 2104.08718, without its factor), the mean
over ``CLIP_FRAMES`` frames of a clip (as GODIVA, 2104.14806). The model comes from a local folder or a hub id through
Hugging Face's transformers, safetensors alone. Which one it is belongs to the score: numbers of two models mean nothing
beside each other. Knows no prompts' attributes and no generators.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from magi.data.clips import evenly_spaced
from magi.text.frozen import load_library_model

CLIP_FRAMES = 4
"""Of a clip, evenly spaced: neighbours are alike, and an image costs as much as a clip does elsewhere."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the three colours, as all CLIP models were trained (OpenAI's code)."""
_AT_A_TIME = 16


class ImageTextScore(Protocol):
    """What scores clips against texts."""

    id: str

    def scores(self, video_BTHWC: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each clip against its text, (B,)."""
        ...


class ClipScore:
    """``id`` names the weights and the tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, id: str) -> None:
        self.model, self.tokenizer, self.id = model, tokenizer, id

    @classmethod
    def load(cls, source: str, device: torch.device | None = None) -> Self:
        """From a folder or a hub id, float32.

        ``ValueError`` where it is no CLIP model or transformers is missing; ``CheckpointError`` for weights that are no
        safetensors, damaged or incomplete.
        """
        model, tokenizer, _, id = load_library_model(source, "CLIP model", _clip_class, "a CLIP score", device)
        return cls(model, tokenizer, id)

    @torch.no_grad()
    def scores(self, video_BTHWC: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each clip (uint8) against its text, which is cut where the model reads no further."""
        picked = evenly_spaced(video_BTHWC.shape[1], min(CLIP_FRAMES, video_BTHWC.shape[1]))
        found = [
            self._part(video_BTHWC[start : start + _AT_A_TIME, picked], list(texts[start : start + _AT_A_TIME]))
            for start in range(0, len(texts), _AT_A_TIME)
        ]
        return np.concatenate(found)

    def _part(self, video_BTHWC: NDArray[np.uint8], texts: list[str]) -> NDArray[np.float64]:
        longest = self.model.config.text_config.max_position_embeddings
        given = self.tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        images = self._images(torch.from_numpy(video_BTHWC).flatten(0, 1))
        device = self.model.device
        made = self.model(
            input_ids=given.input_ids.to(device),
            attention_mask=given.attention_mask.to(device),
            pixel_values=images.to(device),
        )
        image_BTD = F.normalize(made.image_embeds.double(), dim=-1).unflatten(0, video_BTHWC.shape[:2])
        text_B1D = F.normalize(made.text_embeds.double(), dim=-1)[:, None]
        scores_B: NDArray[np.float64] = (100 * (image_BTD * text_B1D).sum(-1).mean(1)).cpu().numpy()
        return scores_B

    def _images(self, images_NHWC: Tensor) -> Tensor:
        """The shorter side at the model's size by a bicubic filter, the centre, whitened."""
        size = self.model.config.vision_config.image_size
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
        height, width = images_NCHW.shape[2:]
        sides = [max(size, round(side * size / min(height, width))) for side in (height, width)]
        images_NCHW = F.interpolate(images_NCHW, sides, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((side - size) // 2 for side in sides)
        images_NCHW = images_NCHW[:, :, top : top + size, left : left + size].round().clamp(0, 255) / 255
        mean, std = (images_NCHW.new_tensor(of)[:, None, None] for of in (_MEAN, _STD))
        return (images_NCHW - mean) / std


def _clip_class(config: Any) -> str:
    if config.model_type != "clip":
        raise ValueError(f"a {config.model_type}")
    return "CLIPModel"
