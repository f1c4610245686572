"""MagiPipeline: pixels in, pixels out (paper section 5).

Puts a model, its autoencoder and its config together: loads them, checks what is asked, encodes the context, samples,
decodes. It knows no training and writes no videos.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from magi.config import Config, SamplingConfig
from magi.errors import NumericsError
from magi.model.magi import Magi
from magi.presets import at_speed
from magi.sampling.actions import Actions, action_source
from magi.sampling.generate import generate
from magi.sampling.prepared import SamplerCache
from magi.sampling.pretrained import Pretrained, load_pretrained, save_export
from magi.sampling.prompts import Prompt, Prompts, prompt_count, with_prompts
from magi.sampling.request import Labels, batch_of, changed_settings, context_batch, make_conditions
from magi.text.encoder import FrozenChoice, PromptEncoder, TextEncoder, built_in_encoder
from magi.vae.contract import VideoAutoencoder

PRECISION_OF = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Result:
    """``video_BTHWC`` uint8 on the CPU: first ``context_frames`` frames as they were given, then the generated ones."""

    video_BTHWC: Tensor
    context_frames: int


class MagiPipeline:
    """Continues videos, or makes them from nothing.

    On a GPU it computes in bf16 with Triton kernels and CUDA graphs; on a CPU in float32, and in bf16 those products
    that the processor does faster so. ``sampling.precision`` asks for one of them ("fp32", "bf16"). After a call the
    pipeline holds the prepared sampler, from which the next call of the same settings, shapes and weights starts;
    streams at the same time never share one. ``forget()`` frees it, and is wanted after weights were written through
    ``.data`` or by a fused optimizer, which leave no trace.
    """

    def __init__(
        self,
        model: Magi,
        vae: VideoAutoencoder,
        config: Config,
        classes: Sequence[str] | None = None,
        text_encoder: TextEncoder | None = None,
        text: FrozenChoice | None = None,
    ) -> None:
        """Use ``model`` and ``vae`` as they are; ``classes`` are the names of the labels, if known.

        ``text_encoder`` is that of a model with a frozen one, and ``text`` says which it was trained with; the others
        have their own.
        """
        self.model, self.vae, self.config, self.text = model, vae, config, text
        self.text_encoder = text_encoder or built_in_encoder(config.model)
        self.classes = None if classes is None else tuple(classes)
        self._samplers = SamplerCache()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str = "cpu",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        text_encoder: str = "",
    ) -> Self:
        """Load a shipped model ('demo', 'platform', 'text'), a run's folder, an export, or a hub id ``owner/name``.

        A local folder goes before a hub id. ``dtype`` is ``sampling.precision`` by its name in PyTorch; "auto" leaves
        it as the model's config says. Weights stay in float32 and are rounded when a sampler is prepared.
        ``text_encoder`` is the folder or hub id of a frozen text encoder, where that is not the model's own; it is
        loaded with the first prompt. Raises ValueError if there is no such model, CheckpointError if its weights are
        missing, damaged, a pickle, or of another architecture.
        """
        if dtype not in ("auto", *PRECISION_OF):
            raise ValueError(f"dtype: expected auto, float32 or bfloat16, got {dtype!r}")
        parts = load_pretrained(source)
        config = parts.config
        if dtype != "auto":
            config = config.model_copy(update={"sampling": config.sampling.changed(precision=PRECISION_OF[dtype])})
        encoder = None if parts.text is None else PromptEncoder(parts.text, text_encoder)
        if text_encoder and encoder is None:
            raise ValueError(f"text_encoder {text_encoder}: {source} reads no states of a frozen encoder; leave it out")
        return cls(parts.model, parts.vae, config, parts.classes, encoder, parts.text).to(device)

    def save_pretrained(self, folder: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Write an export, which ``from_pretrained`` loads; see ``magi.sampling.pretrained.save_export``."""
        save_export(Path(folder), Pretrained(self.model, self.vae, self.config, self.classes, self.text), dtype)

    def to(self, device: torch.device | str) -> Self:
        """Move model and autoencoder; returns itself."""
        self.forget()
        self.model.to(device)
        self.vae = self.vae.to(device)
        return self

    def forget(self) -> None:
        """Free the sampler of the last call."""
        self._samplers.clear()

    def at_speed(self, name: str) -> Self:
        """The same model with the sampling settings of a speed (``magi.presets.SPEEDS``); ValueError for others."""
        config = self.config.model_copy(update={"sampling": at_speed(self.config.sampling, name)})
        return type(self)(self.model, self.vae, config, self.classes, self.text_encoder, self.text)

    def __call__(
        self,
        *,
        frames: int,
        context: Tensor | np.ndarray | None = None,
        labels: Labels = None,
        interval: int = 1,
        seeds: Sequence[int] | None = None,
        actions: Actions = None,
        prompt: Prompts = None,
        negative_prompt: Prompt = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> Result:
        """Generate whole videos; arguments and errors are those of ``stream``."""
        context_BTHWC = context_batch(context, frames, self.config)
        generated = self.stream(
            frames=frames,
            context=context_BTHWC,
            labels=labels,
            interval=interval,
            seeds=seeds,
            actions=actions,
            prompt=prompt,
            negative_prompt=negative_prompt,
            sampling=sampling,
        )
        video_BTHWC = torch.stack(list(generated), dim=1)
        if context_BTHWC is None:
            return Result(video_BTHWC, 0)
        given_BTHWC = context_BTHWC.cpu().expand(len(video_BTHWC), -1, -1, -1, -1)
        return Result(torch.cat([given_BTHWC, video_BTHWC], dim=1), context_BTHWC.shape[1])

    def stream(
        self,
        *,
        frames: int,
        context: Tensor | np.ndarray | None = None,
        labels: Labels = None,
        interval: int = 1,
        seeds: Sequence[int] | None = None,
        actions: Actions = None,
        prompt: Prompts = None,
        negative_prompt: Prompt = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> Iterator[Tensor]:
        """Yield frame_BHWC (uint8, on the CPU) of the generated frames, each as soon as it is finished.

        ``frames`` counts the whole video, context included. ``context`` is uint8 RGB, video_THWC for all videos or
        video_BTHWC, of the model's size. ``labels`` are class names or numbers, one for all or one a video; None is no
        label. ``interval`` is the frame interval that the model is conditioned on. There is one video for each of
        ``seeds``; without them 0, 1, ... for each context, label or prompt. ``actions``, of a model that has them, are
        a track of the whole video or a callable that is asked when a frame needs its action
        (``magi.sampling.actions``); None is no action. ``prompt``, of a model with text, is one for all or a list of
        one a video, or a callable from the number of a latent frame to these (``magi.sampling.prompts``); None is no
        text. Guidance leads away from ``negative_prompt``, from no text without one. ``sampling`` changes fields of
        ``config.sampling`` (a mapping) or replaces all of it (a ``SamplingConfig``). Raises ValueError, at once, for
        anything that does not fit the model, and NumericsError if a frame is not finite.
        """
        settings = changed_settings(self.config.sampling, sampling)
        context_BTHWC = context_batch(context, frames, self.config)
        seeds = batch_of(context_BTHWC, labels, seeds, prompt_count(prompt))
        shape = self.config.model
        conditions = make_conditions(shape, self.classes, labels, interval, settings.noise_level, len(seeds))
        conditions, next_text = with_prompts(conditions, prompt, negative_prompt, shape, self.text_encoder)
        context_BTCHW = None if context_BTHWC is None else self._encode(context_BTHWC, len(seeds))
        latent_frames = self.vae.latent_frames(frames)
        latents = generate(
            self.model,
            frames=latent_frames,
            conditions=conditions,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            config=settings,
            context_BTCHW=context_BTCHW,
            samplers=self._samplers,
            next_action=action_source(actions, shape.actions, frames, latent_frames, len(seeds)),
            next_text=next_text,
        )
        context_frames = 0 if context_BTHWC is None else context_BTHWC.shape[1]
        return decode_frames(self.vae, _finite(latents), context_BTCHW, context_frames)

    def _encode(self, context_BTHWC: Tensor, batch: int) -> Tensor:
        context_BTCHW = self.vae.encode(context_BTHWC.to(self.model.mask_token.device))
        return context_BTCHW.expand(batch, -1, -1, -1, -1)


def _finite(latents: Iterator[Tensor]) -> Iterator[Tensor]:
    for number, latents_BCHW in enumerate(latents):
        if not bool(latents_BCHW.isfinite().all()):
            raise NumericsError(f"generated latent frame {number} is not finite; lower guidance or temperature")
        yield latents_BCHW


def decode_frames(
    vae: VideoAutoencoder, latents: Iterator[Tensor], context_BTCHW: Tensor | None, context_frames: int
) -> Iterator[Tensor]:
    """Decode generated latents to frame_BHWC uint8 on the CPU, each as soon as the autoencoder can make it.

    One that compresses time decodes the context before them, because it looks back; those frames are dropped. Where
    its decoder is not causal, all frames come at the end.
    """
    generated = (latents_BCHW.float()[:, None] for latents_BCHW in latents)
    whole: Iterable[Tensor]
    if vae.temporal_stride == 1 or context_BTCHW is None:
        whole, known = generated, 0
    else:
        whole, known = chain(context_BTCHW.float().split(1, dim=1), generated), context_frames
    frames = chain.from_iterable(video_BTHWC.unbind(1) for video_BTHWC in vae.decode_stream(whole))
    for frame_BHWC in islice(frames, known, None):
        yield frame_BHWC.cpu()
