"""``magi tune-steps``: place the denoising steps of a model by the energy score of its head on held-out videos.

Data, which training knows, and sampling meet here.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from magi.cli.assemble import open_data
from magi.cli.options import Device, check_device, parse
from magi.config import Config, SamplingConfig
from magi.progress import progress

if TYPE_CHECKING:
    from magi.data.clips import ClipDataset
    from magi.latents.dataset import LatentDataset
    from magi.model.magi import Magi
    from magi.sampling.pretrained import Pretrained
    from magi.sampling.tune_steps import HeldOutTokens, ScoredSteps
    from magi.training.batch import Batch

AT_A_TIME = 32


@dataclass(frozen=True)
class TuneStepsOptions:
    """Find where the denoising steps of MODEL count most, by the energy score of its head on videos it has not seen.

    A table gives the best schedule of each number of steps. MODEL's config.yaml then has the best one for its own
    number of steps, and as speed 'fast' the one of the fewest steps whose score is within 3 % of the best. A frame with
    none before it keeps the whole schedule.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory or exported folder; its config.yaml is written"""
    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """videos, or latents of them, that the model was not trained on"""
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    """numbers of steps to try, beside the model's own"""
    clips: int = 64
    """clips whose tokens are scored, two of each frame"""
    seed: int = 0
    """of clips, masks and noise"""
    dry_run: bool = False
    """print the table and write nothing"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


def tune_steps(words: list[str]) -> None:
    """Score schedules, print them and write the choice."""
    options = parse(TuneStepsOptions, "tune-steps", words)
    if not options.model.is_dir():
        raise ValueError(f"{options.model}: no such folder; name a run or an export, as its config.yaml is written")
    for name, least in (("clips", options.clips), ("steps", min(options.steps, default=0))):
        if least < 1:
            raise ValueError(f"--{name} {least}: expected at least 1")
    check_device(options.device)
    from magi.sampling.pretrained import load_pretrained, write_config
    from magi.sampling.tune_steps import best_placed, fewest, scored

    loaded = load_pretrained(options.model)
    if loaded.config.model.objective == "energy":
        raise ValueError(f"{options.model}: its head takes one step, there is nothing to place")
    model, own, most = loaded.model, loaded.config.sampling.steps, loaded.config.model.diffusion_steps
    if max(options.steps) > most:
        raise ValueError(f"--steps {max(options.steps)}: the model was trained with {most} timesteps; ask for fewer")
    held_out, found = _held_out(loaded, options), dict[int, "ScoredSteps"]()
    plain = loaded.config.sampling.changed(first_timestep=0, last_timestep=0)
    print(f"{len(held_out.token_MC)} tokens; energy score, lower is better\nsteps  whole schedule    best  timesteps")
    for steps in sorted({*options.steps, own}):
        whole = scored(model, plain.changed(steps=steps), held_out).score
        best = found[steps] = best_placed(model, plain, held_out, steps)
        print(f"{steps:>5}  {whole:>14.3f}  {best.score:>6.3f}  {_ends(best.settings, most)}", flush=True)
    chosen = fewest(list(found.values()))
    fast, score = chosen.settings, round(chosen.score / found[own].score, 4)
    settings = found[own].settings.changed(
        first_frame_steps=plain.first_frame_steps or own,
        fast_steps=0,
        fast_first_timestep=0,
        fast_last_timestep=0,
        fast_score=0,
    )
    print(f"full: {own} steps, {_ends(settings, most)}")
    if fast.steps < own:
        names = ("steps", "first_timestep", "last_timestep")
        settings = settings.changed(**{f"fast_{name}": getattr(fast, name) for name in names}, fast_score=score)
        print(f"fast: {fast.steps} steps, {_ends(fast, most)}")
    if not options.dry_run:
        print(write_config(options.model, loaded.config.model_copy(update={"sampling": settings})))


def _ends(settings: SamplingConfig, timesteps: int) -> str:
    return f"{settings.first_timestep or timesteps - 1} to {settings.last_timestep}"


def _held_out(loaded: "Pretrained", options: TuneStepsOptions) -> "HeldOutTokens":
    """Tokens of the clips with their conditions: labels and actions as they are, the noise level of sampling."""
    import torch

    from magi.sampling.tune_steps import HeldOutTokens, held_out_tokens
    from magi.seeding import torch_generator
    from magi.training.parallelize import resolve_device

    model, config, device = loaded.model, loaded.config, resolve_device(options.device)
    if config.data.root and options.data.resolve() == Path(config.data.root).resolve():
        warnings.warn(f"{options.data}: what the model was trained on, which flatters its head", stacklevel=2)
    data = config.data.model_copy(update={"root": str(options.data)})
    config = config.model_copy(
        update={"data": data, "training": config.training.model_copy(update={"seed": options.seed})}
    )
    with progress("decoding videos", "videos") as report:
        dataset = open_data(config, loaded.vae, report)
    model.to(device)
    vae, parts, count = loaded.vae.to(device), list[HeldOutTokens](), min(options.clips, len(dataset))
    with progress("reading held-out clips", "clips") as report:
        for first in range(0, count, AT_A_TIME):
            samples = range(first, min(first + AT_A_TIME, count))
            batch = _undisturbed(config, model, dataset, samples).to(device)
            latents_BTCHW = batch.latents_BTCHW
            if batch.video_BTHWC is not None:
                latents_BTCHW = vae.encode(batch.video_BTHWC)
            assert latents_BTCHW is not None
            generators = [torch_generator("tune-steps", options.seed, sample) for sample in samples]
            tokens_BTNC = model.patchify(latents_BTCHW.to(model.mask_token))
            parts.append(held_out_tokens(model, tokens_BTNC, batch.conditions, config.sampling, generators))
            report(samples[-1] + 1, count)
    return HeldOutTokens(torch.cat([part.z_MD for part in parts]), torch.cat([part.token_MC for part in parts]))


def _undisturbed(config: Config, model: "Magi", dataset: "ClipDataset | LatentDataset", samples: range) -> "Batch":
    """Clips under all of their conditions, and the noise level that sampling has."""
    import torch

    from magi.training.batch import make_batch
    from magi.training.corruption import TokenShape, draw_corruption

    shape = TokenShape(config.model.frames, model.tokens_per_frame, model.token_channels)
    kept: dict[str, Any] = {"drop_class": False, "drop_actions": False, "amplitude": torch.zeros(())}
    corruptions = [replace(draw_corruption(config.training, config.model, shape, sample), **kept) for sample in samples]
    batch = make_batch([dataset[sample] for sample in samples], corruptions, config.model)
    level_B = torch.full_like(batch.conditions.noise_level_B, config.sampling.noise_level)
    return replace(batch, conditions=replace(batch.conditions, noise_level_B=level_B))
