"""``magi distill``: a head of one step on a trained model, as a run of its own.

What is trained and how is ``magi.training.distill``'s to know; a run is as any other.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from magi.cli.assemble import class_names, data_summary, model_summary, open_data_together
from magi.cli.options import Device, check_device, checked, parse
from magi.cli.training_samples import sheet_writer
from magi.config import DataConfig, TrainingConfig
from magi.config_files import load_config
from magi.files import CONFIG_FILE, MODEL_FILE


@dataclass(frozen=True)
class DistillOptions:
    """Train a head that makes a token in one step, on the frozen averaged weights of MODEL; OUT is a run of its own.

    MODEL comes first; the videos or latents are those that it was trained on unless --data.root names others. Sample,
    evaluate and export OUT as any run. The same command again continues; Ctrl-C saves it first.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """run directory; made if it is not there"""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    device: Device = "auto"
    """auto takes a GPU where there is one; with torchrun, one a process"""


def distill(words: list[str]) -> None:
    """Distil a model, or continue."""
    if {"-h", "--help"} & set(words):
        parse(DistillOptions, "distill MODEL", ["--help"])
    if not words or words[0].startswith("-"):
        raise ValueError("a model comes first, as in: magi distill build/run build/one-step")
    source = words[0]
    from magi.sampling.pretrained import find_model, load_pretrained
    from magi.training.distill import distilled_config, one_step_student
    from magi.training.loop import train
    from magi.training.parallelize import init_distributed

    config = load_config(find_model(source) / CONFIG_FILE)
    if config.model.objective == "energy":
        raise ValueError(f"{source}: its head takes one step already; name the model that it was distilled from")
    config = distilled_config(config)
    options = parse(
        DistillOptions, f"distill {source}", words[1:], DistillOptions(tyro.MISSING, config.data, config.training)
    )
    config = config.model_copy(update={"data": checked(options.data), "training": checked(options.training)})
    check_device(options.device)
    _check_folder(options.out)
    loaded = load_pretrained(source)
    student = one_step_student(loaded.model, config)
    with init_distributed(options.device) as process:
        vae = loaded.vae.to(process.device)
        dataset = open_data_together(config, vae, process)
        if process.is_main:
            print("\n".join([model_summary(config, student.latent), *data_summary(config, dataset)]), flush=True)
        train(
            config,
            dataset,
            vae,
            student,
            options.out,
            sheet_writer(config, vae, options.out),
            classes=loaded.classes or class_names(dataset),
            device=options.device,
        )


def _check_folder(out: Path) -> None:
    """Refuse the folder of another model, whose config would be written over; the trainer checks the rest."""
    if (out / MODEL_FILE).exists() or (
        (out / CONFIG_FILE).is_file() and load_config(out / CONFIG_FILE).model.objective != "energy"
    ):
        raise ValueError(f"{out}: has another model; name a new folder")
