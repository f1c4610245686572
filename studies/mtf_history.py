"""Study: the gap of masked teacher forcing (paper section 2), closed from the other side.

    python -m studies.mtf_history --source digits

Masked teacher forcing is trained on earlier frames of which most tokens are masked, and is shown complete ones when it
generates. If that gap is what it loses by, it must do better when its own finished frames are masked before it sees
them, by ratios drawn as in training, although it is then told less. The models are the arms of ``ctf_vs_mtf``; both
pasts go through one loop here. Complete teacher forcing has no gap and stands beside, from its own complete past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.config import TrainingConfig
from magi.model.conditioning import Conditions
from magi.model.masking import draw_mask, draw_mask_ratio
from magi.sampling.fast_path import FastPath
from magi.sampling.generate import evaluating, generate_frame, plan_frame
from magi.sampling.history import History
from magi.sampling.pipeline import MagiPipeline
from magi.training.parallelize import resolve_device
from studies.commands import command, options_of
from studies.measures import BATCH, FID, FVD, PREDICTED_FRAMES, Measures, clip_features
from studies.models import kept_or_made
from studies.prediction import compared, write_prediction
from studies.running import Arms, StudyOptions, gathered
from studies.sources import held_out_clips
from studies.variants import Arm, settings_of

STUDY = "mtf_past"
CTF, MTF = "ctf-without-noise", "mtf"
MASKED = "mtf, masked past"


@dataclass(frozen=True)
class MtfPastOptions(StudyOptions):
    """Show masked teacher forcing the past it was trained on, and the one that it is given."""

    seeds: int = 1
    """trainings of every arm"""


class MaskedHistory(History):
    """A past as masked teacher forcing is trained on it: most tokens of a finished frame are hidden for good."""

    def __init__(self, training: TrainingConfig, *arguments: Any) -> None:
        """``training`` has the mask ratios; what follows is what a ``History`` takes."""
        super().__init__(*arguments)
        self.ratios = (training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min)

    def observe(self, tokens_BTNC: Tensor) -> None:
        """Add finished frames, which must fit."""
        first, (frames, tokens) = self.cache.length, tokens_BTNC.shape[1:3]
        masks = [draw_mask(draw_mask_ratio(frames, *self.ratios, one), tokens, one) for one in self.generators]
        masked_BTN = torch.stack(masks).to(tokens_BTNC.device)
        inputs = (self._double(tokens_BTNC.to(self.model.mask_token.dtype)), self.time_T[first : first + frames])
        self.model.observe(*inputs, self.conditions, self.cache, self._double(masked_BTN))
        self.frame_pass.place(self.time_T[self.cache.length])


def continued_from(pipe: MagiPipeline, context_BTHWC: Tensor, frames: int, masked: bool) -> Tensor:
    """Video_BTHWC uint8 of ``frames`` frames that begin with the context; clip k is drawn with seed k.

    With ``masked`` the model is shown its past as in training. Frames are those of a clip that the model is trained on.
    """
    made = []
    for first in range(0, len(context_BTHWC), BATCH):
        part_BTHWC = context_BTHWC[first : first + BATCH]
        latents_BTCHW = _latents(pipe, part_BTHWC, range(first, first + len(part_BTHWC)), frames, masked)
        made.append(torch.cat([part_BTHWC, pipe.vae.decode(latents_BTCHW).cpu()], dim=1))
    return torch.cat(made)


def _latents(pipe: MagiPipeline, context_BTHWC: Tensor, seeds: Sequence[int], frames: int, masked: bool) -> Tensor:
    model, config = pipe.model, pipe.config.sampling
    device, made = model.mask_token.device, list[Tensor]()
    ones_B = torch.ones(len(seeds), dtype=torch.long, device=device)
    told = (model, Conditions(ones_B, ones_B, None), [torch.Generator().manual_seed(seed) for seed in seeds])
    with evaluating(model):
        past = MaskedHistory(pipe.config.training, *told, frames, config) if masked else History(*told, frames, config)
        plan, denoiser = plan_frame(model, config), FastPath().denoiser(model, config)
        past.observe(model.patchify(pipe.vae.encode(context_BTHWC.to(device))))
        for frame in range(context_BTHWC.shape[1], frames):
            made.append(generate_frame(model, past, past.generators, plan, denoiser)[:, None])
            if frame + 1 < frames:
                past.observe(made[-1])
    return model.unpatchify(torch.cat(made, dim=1)).float()


def with_both_pasts(options: StudyOptions, arms: Arms) -> Arms:
    """CTF's measures as they are, and MTF's from both pasts by the same loop; what was made is kept."""
    found: dict[str, list[Measures]] = {CTF: arms.by_name[CTF], MTF: [], MASKED: []}
    for seed in range(options.seeds):
        arm = Arm(MTF, options.source, seed, options.budget)
        folder = arm.folder(options.out)
        for name, masked in ((MTF, False), (MASKED, True)):
            path = folder / f"past_{'masked' if masked else 'complete'}.safetensors"

            def make(folder: Path = folder, masked: bool = masked) -> dict[str, Tensor]:
                pipe = MagiPipeline.from_pretrained(folder / "run", resolve_device(options.device))
                context_BTHWC = held_out_clips(arms.source, PREDICTED_FRAMES)[:, :1]
                video_BTHWC = continued_from(pipe, context_BTHWC, PREDICTED_FRAMES, masked)
                return clip_features(video_BTHWC, options.device)

            found[name].append(kept_or_made(path, f"{settings_of(arm)} {path.stem}", make))
    return Arms(arms.source, found, arms.real)


def study(options: StudyOptions) -> Path | None:
    """Train what is missing, show both pasts, judge and write the result; None after a dry run."""
    arms = gathered(options, (CTF, MTF))
    if arms is None:
        return None
    arms = with_both_pasts(options, arms)
    parts = [compared(arms, f"MTF has a lower {name} from a masked past", MASKED, MTF, name) for name in (FID, FVD)]
    beside = [compared(arms, f"CTF has a lower {name} still", CTF, MASKED, name) for name in (FID, FVD)]
    return write_prediction(options, STUDY, arms, parts, beside)


def main() -> None:
    """The study that the command line asks for."""
    study(options_of(MtfPastOptions, f"studies.{STUDY}"))


if __name__ == "__main__":
    command(main)
