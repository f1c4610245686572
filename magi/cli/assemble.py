"""From a config to the parts of a run, checked against each other before anything expensive happens.

The only place where data, autoencoder and model meet. Knows no options and no loop.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from magi.config import Config, LatentShape
from magi.files import NORMALIZATION_FILE, VAE_FOLDER
from magi.progress import Report, progress

if TYPE_CHECKING:
    from magi.data.caption_table import CaptionTable
    from magi.data.clips import ClipDataset
    from magi.latents.dataset import LatentDataset
    from magi.model.magi import Magi
    from magi.text.states import TextStates
    from magi.training.parallelize import Distributed
    from magi.vae.contract import VideoAutoencoder
    from magi.vae.normalization import Normalization
    from magi.vae.normalized import NormalizedVae

MEASURED_CLIPS = 64
"""Clips that statistics are measured on where nothing else has them."""


def autoencoder(config: Config) -> "tuple[NormalizedVae, LatentShape]":
    """The autoencoder of a config and the size of its latents; a ``ValueError`` where sizes do not fit together."""
    from magi.vae.adapters import load_vae
    from magi.vae.contract import latent_shape

    vae = load_vae(config.vae)
    data, stride = config.data, vae.spatial_stride * config.model.patch_size
    if data.height % stride or data.width % stride:
        raise ValueError(
            f"data.height {data.height} x data.width {data.width}: both must be divisible by {stride} "
            f"(stride {vae.spatial_stride} of vae '{config.vae.name}' x model.patch_size {config.model.patch_size})"
        )
    latent = latent_shape(vae, data)
    _check_fit(config, latent)
    return vae, latent


def planned_latent(config: Config) -> LatentShape:
    """The size of an encoded clip without the autoencoder's weights, where its published size is enough to know it."""
    from magi.vae.adapters import published_latent

    latent = published_latent(config.vae, config.data, config.model.patch_size)
    if latent is None:
        return autoencoder(config)[1]
    _check_fit(config, latent)
    return latent


def _check_fit(config: Config, latent: LatentShape) -> None:
    """What the size of the latents decides on; sampling's settings, too, or a run would fail at its first sheet."""
    if latent.frames != config.model.frames:
        raise ValueError(
            f"model.frames {config.model.frames}: a clip of data.frames {config.data.frames} has {latent.frames} "
            f"latent frames; set --model.frames {latent.frames}"
        )
    sampling, tokens = config.sampling, latent.height * latent.width // config.model.patch_size**2
    for name, given, most, why in (
        ("iterations", sampling.iterations, tokens, "the tokens of a frame: every iteration predicts one at least"),
        ("noise_level", sampling.noise_level, config.model.noise_levels, "model.noise_levels"),
        ("first_frame_steps", sampling.first_frame_steps, config.model.diffusion_steps, "model.diffusion_steps"),
        ("context_frames", sampling.context_frames, max(0, config.data.frames - 1), "one less than data.frames"),
    ):
        if given > most:
            raise ValueError(
                f"sampling.{name} {given}: at most {most}, {why}; set --sampling.{name.replace('_', '-')} {most}"
            )
    from magi.model.objectives.contract import make_objective

    make_objective(config.model).steps(sampling)


def build_model(config: Config, latent: LatentShape, vae: "VideoAutoencoder") -> "Magi":
    """The model with the weights of ``training.start_from``, else fresh ones; the same in every process.

    ``ValueError`` where the model to start from is of another shape or was trained with another autoencoder.
    """
    import torch

    from magi.model.magi import Magi

    model = Magi(config.model, latent, torch.Generator().manual_seed(config.training.seed))
    source = config.training.start_from
    if not source:
        return model
    from magi.sampling.pretrained import load_pretrained

    start = load_pretrained(source)
    # What a checkpoint has no weights for may be trained otherwise from here on.
    free = {"dropout", "noise_max", "teacher_forcing", "frames"}
    for (name, given), (_, found) in zip(config.model, start.config.model, strict=True):
        if name not in free and given != found:
            option = name.replace("_", "-")
            raise ValueError(f"model.{name} {given}: {source} has {found}; set --model.{option} {found}")
    if start.vae.id != vae.id:
        raise ValueError(
            f"training.start_from {source}: trained on latents of {start.vae.id}, the run's are of {vae.id}; "
            "encode the videos with its own autoencoder"
        )
    model.load_state_dict(start.model.state_dict())
    return model


def open_data(config: Config, vae: "VideoAutoencoder", report: Report | None) -> "ClipDataset | LatentDataset":
    """The clips of ``data.root``, a folder of videos (indexed if it is not yet) or of latents, whitened as by ``vae``.

    ``ValueError`` where the number of classes is not the model's, or of actions; videos without usable actions are left
    out with a warning.
    """
    from magi.data.actions import with_actions
    from magi.data.caption_table import CaptionTable
    from magi.data.clips import ClipDataset
    from magi.data.index.index import open_index
    from magi.latents.dataset import LatentDataset, is_latents

    root, seed = Path(config.data.root), config.training.seed
    if not config.data.root or not (root.is_dir() or (root.suffix in (".csv", ".jsonl") and root.is_file())):
        missing = f"{root}: no such folder" if config.data.root else "data.root is empty"
        raise ValueError(f"{missing}; name a folder of videos with --data.root, or write one: magi data digits {root}")
    if is_latents(root):
        captioned = bool(config.model.text_encoder)
        latents = LatentDataset(root, config.data, seed, vae.id, vae.normalization, captioned)
        check_classes(config, latents.classes)
        if config.model.actions not in (0, latents.header.actions):
            raise ValueError(
                f"model.actions {config.model.actions}: {root} has {latents.header.actions or 'no'} actions; "
                f"set --model.actions {latents.header.actions}"
            )
        if latents.captions is not None:
            latents.states = check_captions(config, latents.captions)
        return latents
    index = open_index(config.data, report)
    check_classes(config, index.classes)
    if config.model.actions:
        index, reasons = with_actions(index, config.model.actions, config.data.max_bad_fraction)
        if reasons:
            warnings.warn(f"{len(reasons)} videos left out; {reasons[0]}", stacklevel=2)
    captions = None
    if config.model.text_encoder:
        captions, reasons = CaptionTable.beside(index, config.data.max_bad_fraction)
        if reasons:
            warnings.warn(f"{len(reasons)} captions left out; {reasons[0]}", stacklevel=2)
    clips = ClipDataset(index, config.data, seed, config.model.actions, captions)
    if captions is not None:
        clips.states = check_captions(config, captions)
    return clips


def check_captions(config: Config, captions: "CaptionTable") -> "TextStates | None":
    """A model with text needs captions; of some videos they may be missing. Returns their states for a frozen encoder.

    ``ValueError`` or ``DataError`` where there are none, or not of this model.
    """
    if not captions.count:
        raise ValueError(
            f"model.text_encoder {config.model.text_encoder}: no video of {config.data.root} has a caption (NAME.txt "
            "beside NAME.mp4; latents get them from 'magi encode', run again); write them, or leave text out"
        )
    if config.model.text_encoder != "frozen":
        return None
    if not config.data.text_states:
        raise ValueError(
            "data.text_states is empty: name the folder that 'magi encode-text DATA OUT --encoder PATH' has written"
        )
    from magi.text.states import TextStates

    states = TextStates(Path(config.data.text_states))
    states.check(config.model, captions.texts())
    return states


def open_data_together(
    config: Config, vae: "VideoAutoencoder", process: "Distributed"
) -> "ClipDataset | LatentDataset":
    """``open_data`` in every process; the first one indexes the videos, the others then read its index."""
    if process.is_main:
        with progress("decoding videos", "videos") as report:
            dataset = open_data(config, vae, report)
    process.barrier()
    return dataset if process.is_main else open_data(config, vae, None)


def choose_normalization(
    config: Config, vae: "NormalizedVae", dataset: "ClipDataset | LatentDataset", run: Path, process: "Distributed"
) -> str:
    """Let ``vae`` and ``dataset`` whiten by the statistics of the run, the same in all processes; a line says which.

    They are those that the run has recorded, else those of ``vae.normalization``, else those of the model that it
    starts from, else those measured while the latents were encoded, else those that came with the autoencoder (saved or
    published), else measured now on a few clips.
    """
    from magi.latents.dataset import LatentDataset
    from magi.vae.normalization import Normalization

    values = [0.0] * (2 * vae.channels)
    source = ""
    if process.is_main:
        found = _normalization(config, vae, dataset, run)
        values, source = [*found.mean, *found.std], found.source
    shared = process.sum(*values)
    mean, std = tuple(shared[: vae.channels]), tuple(shared[vae.channels :])
    vae.normalize(Normalization(weights=vae.id, source=source or "the first process", mean=mean, std=std))
    if isinstance(dataset, LatentDataset):
        dataset.normalize(vae.normalization)
    return f"latents   of {vae.id}; mean and standard deviation {source}"


def _normalization(
    config: Config, vae: "NormalizedVae", dataset: "ClipDataset | LatentDataset", run: Path
) -> "Normalization":
    from magi.latents.dataset import LatentDataset
    from magi.vae.normalization import read_normalization

    recorded = run / VAE_FOLDER / NORMALIZATION_FILE
    if recorded.is_file():
        return read_normalization(recorded)
    if vae.fixed or config.vae.normalization:
        return vae.normalization
    if config.training.start_from:
        from magi.sampling.pretrained import find_model

        return read_normalization(find_model(config.training.start_from) / VAE_FOLDER / NORMALIZATION_FILE)
    if isinstance(dataset, LatentDataset):
        return dataset.measured
    if vae.measured:
        return vae.normalization
    clips = min(MEASURED_CLIPS, len(dataset))
    videos = (dataset[sample].video_THWC for sample in range(clips))
    return vae.measure(videos, f"measured on {clips} clips before training")


def class_names(dataset: "ClipDataset | LatentDataset") -> tuple[str, ...]:
    """Names of the labels of a dataset."""
    from magi.latents.dataset import LatentDataset

    return dataset.classes if isinstance(dataset, LatentDataset) else dataset.index.classes


def check_classes(config: Config, classes: Sequence[str]) -> None:
    """A model with classes needs exactly those of the data; one without classes takes any data."""
    wanted = config.model.classes
    if wanted and len(classes) != wanted:
        found = f"{len(classes)} class folders ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
        raise ValueError(
            f"model.classes {wanted}: {config.data.root} has {found if classes else 'no class folders'}; "
            f"set --model.classes {len(classes)}"
        )


def model_summary(config: Config, latent: LatentShape) -> str:
    """What is trained, in one line."""
    from magi.training.cost import count_parameters

    return (
        f"model     {count_parameters(config, latent):,} parameters, {latent.frames} frames of "
        f"{latent.channels} x {latent.height} x {latent.width} latents"
    )


def data_summary(config: Config, dataset: "ClipDataset | LatentDataset") -> list[str]:
    """What it is trained on, and for how long."""
    training = config.training
    too_short = f", {dataset.too_short} videos are too short" if dataset.too_short else ""
    clips = training.steps * training.batch
    captions = "" if dataset.captions is None else f"{_captions_summary(dataset.captions, config)}, "
    return [
        f"data      {len(dataset)} videos, {captions}{len(class_names(dataset))} classes{too_short}",
        f"training  {training.steps} steps of {training.batch} clips = {clips:,} clips, "
        f"{clips / len(dataset):.1f} passes over the videos",
    ]


def _captions_summary(captions: "CaptionTable", config: Config) -> str:
    """How many videos have a caption, and how many of these are cut."""
    if config.model.text_encoder != "bytes":
        return f"{captions.count} captions"
    long = sum(len(text.encode()) > config.model.text_length for text in captions.texts())
    cut = f" ({long} of them cut to model.text_length {config.model.text_length} bytes)" if long else ""
    return f"{captions.count} captions{cut}"


def check_memory(config: Config, latent: LatentShape, process: "Distributed") -> None:
    """Warn, in one line, before a run whose memory will not be enough; on a CPU there is no plan."""
    import torch

    if process.device.type != "cuda" or not process.is_main:
        return
    from magi.training.cost import GIB, Gpu, plan, will_not_fit

    found = torch.cuda.get_device_properties(process.device)
    # The peak does not matter for memory; 1 TFLOP/s stands for a GPU whose data sheet is not at hand.
    gpu = Gpu(found.name, 1.0, found.total_memory / GIB, "the driver")
    warning = will_not_fit(plan(config, latent, gpu, process.world), config, latent)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)
