"""Contact sheets while a run trains: a few training clips, each beside its continuation by the averaged weights.

Training and sampling do not know each other; they meet here. Knows no options.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from magi.cli.assemble import open_data
from magi.config import Config
from magi.errors import NumericsError
from magi.training.run_folder import SHEETS_FOLDER

if TYPE_CHECKING:
    import numpy as np

    from magi.model.magi import Magi
    from magi.vae.contract import VideoAutoencoder

CLIPS = 4
SEARCHED = 64  # clips looked through for some of one interval


def sheet_writer(config: Config, vae: "VideoAutoencoder", run: Path) -> "Callable[[int, Magi], None]":
    """What the trainer calls with (step, model): writes ``run/samples/step-*.png``, rows of real and continued clips.

    The first quarter of a clip is its context. A model that is not yet finite is said so and left alone.
    """

    def write(step: int, model: "Magi") -> None:
        from magi.data.sample_grid import contact_sheet
        from magi.data.video_writer import write_png
        from magi.sampling.pipeline import MagiPipeline

        real_BTHWC, labels, prompts, interval = _clips(config, vae)
        frames = real_BTHWC.shape[1]
        quarter, stride = max(1, frames // 4), vae.temporal_stride
        # What an autoencoder that compresses time can encode.
        context = config.sampling.context_frames or 1 + (quarter - 1) // stride * stride
        if frames == 1:
            return
        pipeline = MagiPipeline(model, vae, config)
        try:
            made = pipeline(
                frames=frames,
                context=real_BTHWC[:, :context],
                labels=labels if config.model.classes else None,
                prompt=prompts if config.model.text_encoder == "bytes" else None,
                interval=interval,
                seeds=range(len(real_BTHWC)),
            ).video_BTHWC.numpy()
        except NumericsError as error:
            print(f"step {step}: no sample sheet ({error})", flush=True)
            return
        rows = [row for pair in zip(real_BTHWC, made, strict=True) for row in pair]
        path = run / SHEETS_FOLDER / f"step-{step:09d}.png"
        write_png(path, contact_sheet(rows, context, frames, ["real", "made"] * len(made)))
        print(f"step {step}: samples in {path}", flush=True)

    return write


def _clips(config: Config, vae: "VideoAutoencoder") -> "tuple[np.ndarray, list[int | None], list[str], int]":
    """The first training clips of one interval as video_BTHWC, their labels and captions as read, and the interval.

    It is the smallest; of latents whose clips were chosen when they were encoded, that of the first clip.
    """
    import numpy as np
    import torch

    from magi.latents.dataset import LatentClip, is_latents, read_header

    root, data = Path(config.data.root), config.data
    if not (is_latents(root) and read_header(root).by_clips):
        data = data.model_copy(update={"interval_max": data.interval_min})
    dataset = open_data(config.model_copy(update={"data": data}), vae, None)
    interval = dataset[0].interval
    first = (dataset[number] for number in range(min(SEARCHED, len(dataset))))
    clips = list(islice((clip for clip in first if clip.interval == interval), CLIPS))
    videos = [
        vae.decode(torch.from_numpy(clip.latents_TCHW)[None])[0].cpu().numpy()
        if isinstance(clip, LatentClip)
        else clip.video_THWC
        for clip in clips
    ]
    captions = [(clip.caption or "").encode()[: config.model.text_length] for clip in clips]
    prompts = [caption.decode(errors="ignore") for caption in captions]
    return np.stack(videos), [clip.label for clip in clips], prompts, interval
