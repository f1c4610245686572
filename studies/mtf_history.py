"""Study: the gap of masked teacher forcing (paper section 2), closed from the other side.

    python -m studies.mtf_history --source digits

Masked teacher forcing is trained on earlier frames of which most tokens are masked, and sees complete ones when it
generates. If that gap is why it is worse, it must do better when its own finished frames are masked before it sees
them, by ratios drawn as in training, although it then sees less. The models are the runs of ``ctf_vs_mtf``; both
histories go through one loop here. Complete teacher forcing has no gap; it is shown for comparison.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.config import TrainingConfig
from magi.devices import resolve_device
from magi.model.conditioning import Conditions
from magi.model.masking import draw_mask, draw_mask_ratio
from magi.sampling.denoise import Denoiser
from magi.sampling.frame import generate_frame, plan_frame
from magi.sampling.generate import evaluating
from magi.sampling.history import History
from magi.sampling.pipeline import MagiPipeline
from studies.commands import run_command
from studies.measures import BATCH, FID, FVD, PREDICTED_FRAMES, Measures, clip_features, load_or_compute
from studies.results import compared, write_trained
from studies.sources import held_out_clips
from studies.variants import OneSeedOptions, Run, VariantMeasures, load_or_train, settings_of

STUDY = "mtf_history"
CTF, MTF = "ctf-without-noise", "mtf"
MASKED = "mtf, masked history"


class MaskedHistory(History):
    """A history as masked teacher forcing is trained on it: most tokens of a finished frame stay hidden."""

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
        self.frame_pass.set_time(self.time_T[self.cache.length])


def continued_from(pipe: MagiPipeline, context_BTHWC: Tensor, frames: int, masked: bool) -> Tensor:
    """Video_BTHWC uint8 of ``frames`` frames that begin with the context; clip k is drawn with seed k.

    With ``masked`` the model sees its history as in training. ``frames`` is at most the trained number.
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
        plan, denoiser = plan_frame(model, config), Denoiser(model.head, config.temperature)
        past.observe(model.patchify(pipe.vae.encode(context_BTHWC.to(device))))
        for frame in range(context_BTHWC.shape[1], frames):
            made.append(generate_frame(model, past, past.generators, plan, denoiser)[:, None])
            if frame + 1 < frames:
                past.observe(made[-1])
    return model.unpatchify(torch.cat(made, dim=1)).float()


def with_both_histories(options: OneSeedOptions, trained: VariantMeasures) -> VariantMeasures:
    """CTF's measures as they are, and MTF's from both histories by the same loop, saved."""
    found: dict[str, list[Measures]] = {CTF: trained.by_name[CTF], MTF: [], MASKED: []}
    for seed in range(options.seeds):
        run = Run(MTF, options.source, seed, options.budget)
        folder = run.folder(options.out)
        for name, masked in ((MTF, False), (MASKED, True)):
            path = folder / f"history_{'masked' if masked else 'complete'}.safetensors"

            def compute(folder: Path = folder, masked: bool = masked) -> dict[str, Tensor]:
                pipe = MagiPipeline.from_pretrained(folder / "run", resolve_device(options.device))
                context_BTHWC = held_out_clips(trained.source, PREDICTED_FRAMES)[:, :1]
                video_BTHWC = continued_from(pipe, context_BTHWC, PREDICTED_FRAMES, masked)
                return clip_features(video_BTHWC, options.device)

            found[name].append(load_or_compute(path, f"{settings_of(run)} {path.stem}", compute))
    return VariantMeasures(trained.source, found, trained.real)


def study(options: OneSeedOptions) -> Path:
    """Train what is missing, generate from both histories, judge and write the result."""
    found = with_both_histories(options, load_or_train(options, (CTF, MTF)))
    parts = [compared(found, f"MTF has a lower {name} from a masked history", MASKED, MTF, name) for name in (FID, FVD)]
    others = [compared(found, f"CTF has a lower {name} still", CTF, MASKED, name) for name in (FID, FVD)]
    return write_trained(STUDY, options, found, parts, others)


if __name__ == "__main__":
    run_command("mtf_history", OneSeedOptions, study)
