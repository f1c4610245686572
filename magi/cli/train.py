"""``magi train``: from a preset or a config file and overrides to a run.

Which of a run's settings may change when it is continued, and what a checkpoint holds, is the trainer's to know.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from magi.cli.assemble import (
    autoencoder,
    build_model,
    check_memory,
    choose_normalization,
    class_names,
    data_summary,
    model_summary,
    open_data,
    open_data_together,
    planned_latent,
)
from magi.cli.options import Device, check_device, checked, existing_folder, parse, preset_or_file
from magi.cli.training_samples import sheet_writer
from magi.config import Config, DataConfig, VaeTrainingConfig
from magi.config_files import dump_config
from magi.errors import CheckpointError, DataError
from magi.presets import resized
from magi.progress import progress


@dataclass(frozen=True)
class TrainOptions:
    """Train a model in a run directory: checkpoints, metrics.jsonl, loss.png, sample sheets.

    PRESET, or a config file, comes first, and every field of it has an option. The same command again continues the
    run; Ctrl-C saves it first.
    """

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    size: str = ""
    """tiny, small, base or large: the transformer and head of another size than the preset's"""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR", aliases=["--run-dir"])] = None
    """run directory; made if it is not there"""
    dry_run: bool = False
    """print the whole config as YAML and what would be trained, and stop"""
    device: Device = "auto"
    """auto takes a GPU where there is one; with torchrun, one a process"""
    tensorboard: bool = False
    """also write TensorBoard files (needs the extra 'track')"""


def train(words: list[str]) -> None:
    """Train or continue a run, or print what it would be."""
    options = _options(words)
    config = checked(options.config)
    if options.dry_run:
        _dry_run(config)
        return
    if options.run is None:
        raise ValueError("--run is missing: name the directory of the run, as in --run build/run")
    check_device(options.device)
    from magi.training.loop import train as train_run
    from magi.training.parallelize import init_distributed

    with init_distributed(options.device) as process:
        vae, latent = autoencoder(config)
        dataset = open_data_together(config, vae, process)
        if process.is_main:
            print("\n".join([model_summary(config, latent), *data_summary(config, dataset)]), flush=True)
        vae.to(process.device)
        statistics = choose_normalization(config, vae, dataset, options.run, process)
        if process.is_main:
            print(statistics, flush=True)
        check_memory(config, latent, process)
        train_run(
            config,
            dataset,
            vae,
            build_model(config, latent, vae),
            options.run,
            sheet_writer(config, vae, options.run),
            classes=class_names(dataset),
            device=options.device,
            tensorboard=options.tensorboard,
        )


def _options(words: list[str]) -> TrainOptions:
    """Options over the preset or file that is named first."""
    if words and not words[0].startswith("-"):
        config, name = preset_or_file(words[0]), _size_in(words[1:])
        if name:  # before the options are read, so that they can change its fields
            config = resized(config, name)
        return parse(TrainOptions, f"train {words[0]}", words[1:], TrainOptions(config))
    if {"-h", "--help"} & set(words):
        return parse(TrainOptions, "train PRESET", ["--help"], TrainOptions())
    raise ValueError("a preset or a config file comes first, as in: magi train digits --run build/run")


def _size_in(words: list[str]) -> str:
    """The value of --size among ``words``; empty if there is none."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--size":
            return following
        if word.startswith("--size="):
            return word.partition("=")[2]
    return ""


def _dry_run(config: Config) -> None:
    """Print the config as YAML and the rest as its comments, so that the output is itself a config file.

    Neither data nor weights need be there; what is missing is said.
    """
    print(dump_config(config), end="")
    training, lines = config.training, []
    try:
        lines.append(model_summary(config, planned_latent(config)))
        lines.append(f"training  {training.steps} steps of {training.batch} clips")
        if not Path(config.data.root).exists():  # before the autoencoder, which may come from a hub
            raise ValueError(f"data.root {config.data.root or 'is empty'}: no such folder")
        vae, _ = autoencoder(config)
        with progress("decoding videos", "videos") as report:
            lines[1:] = data_summary(config, open_data(config, vae, report))
    except (ValueError, OSError, DataError, CheckpointError) as error:
        lines.append(f"not ready to train: {error}")
    print("\n".join(f"# {line}" for line in "\n".join(lines).splitlines()))


@dataclass(frozen=True)
class TrainVaeOptions:
    """Train a small 2-D autoencoder on your own videos; OUT is then what vae.weights names.

    The same command again continues; Ctrl-C saves first. OUT/reconstructions.png shows how well it does.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    config: Annotated[VaeTrainingConfig, tyro.conf.arg(name="")] = field(default_factory=VaeTrainingConfig)
    device: Device = "auto"
    """auto takes a GPU where there is one"""


def train_vae(words: list[str]) -> None:
    """Train or continue an autoencoder."""
    options = parse(TrainVaeOptions, "train-vae", words)
    config = checked(options.config)
    existing_folder(options.data)
    check_device(options.device)
    from magi.data.index.index import open_index
    from magi.training.small_vae.trainer import train_vae as train_autoencoder

    data = DataConfig(root=str(options.data), max_bad_fraction=config.max_bad_fraction)
    with progress("decoding videos", "videos") as report:
        index = open_index(data, report)
    train_autoencoder(config, index, options.out, options.device)
    print(f"use it with: --vae.name small --vae.weights {options.out}")
