"""Typed options of a verb from its arguments: tyro on a frozen dataclass, with the config's own checks.

Knows no verb. A wrong option is a ``ValueError`` with the nearest name.
"""

import difflib
import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from magi.config import Config, SamplingConfig, Section, validated
from magi.config_files import load_config
from magi.presets import PRESETS, preset

Options = TypeVar("Options")
AnySection = TypeVar("AnySection", bound=Section)
Device = Literal["auto", "cpu", "cuda"]
Speed = Literal["full", "fast"]
SHORT = ("guidance", "iterations", "steps", "temperature", "longer", "noise_level")
"""Sampling settings that also have an option without ``sampling.`` before it."""

_registry = ConstructorRegistry()


@_registry.struct_rule
def _section_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Take a section's options without checking them: ``checked`` does, for all sections, with one line a mistake."""
    if not (isinstance(info.type, type) and issubclass(info.type, Section)):
        return None
    fields = []
    for name, field in info.type.model_fields.items():
        given = getattr(info.default, name, field.get_default(call_default_factory=True))
        fields.append(
            StructFieldSpec(name=name, type=cast(Any, field.annotation), default=given, helptext=field.description)
        )
    section = info.type

    def instantiate(**values: Any) -> Section:
        return section.model_construct(**values)

    instantiate.__doc__ = section.__doc__  # the help text of the section
    return StructConstructorSpec(instantiate=instantiate, fields=tuple(fields))


@dataclass(frozen=True)
class SamplingChanges:
    """The sampling settings that the command line names, by field; those of the model's config stay for the others."""

    fields: Mapping[str, Any]


@_registry.struct_rule
def _sampling_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """An option for every field of ``SamplingConfig``, without a default."""
    if info.type is not SamplingChanges:
        return None
    fields = []
    for name, field in SamplingConfig.model_fields.items():
        choices = get_args(field.annotation)
        arg = tyro.conf.arg(
            aliases=[f"--{name.replace('_', '-')}"] if name in SHORT else [],
            metavar="|".join(choices) or cast(type, field.annotation).__name__.upper(),
            help_behavior_hint="",
        )
        kind = cast(Any, Annotated[cast(Any, field.annotation) | None, arg])
        fields.append(StructFieldSpec(name=name, type=kind, default=None, helptext=field.description))

    def instantiate(**values: Any) -> SamplingChanges:
        return SamplingChanges({name: value for name, value in values.items() if value is not None})

    instantiate.__doc__ = "What is not given is taken from the config of the model."
    return StructConstructorSpec(instantiate=instantiate, fields=tuple(fields))


def parse(options: type[Options], verb: str, argv: list[str], default: Options | None = None) -> Options:
    """The options of ``magi VERB`` in ``argv``; ``ValueError`` of one line where they do not parse."""
    given: Any = tyro.MISSING_NONPROP if default is None else default
    marks = (tyro.conf.FlagCreatePairsOff,)
    with redirect_stderr(StringIO()) as printed:
        try:
            return tyro.cli(options, prog=f"magi {verb}", args=argv, default=given, config=marks, registry=_registry)
        except SystemExit as error:
            if not error.code:  # help was asked for, and printed
                raise
    raise ValueError(f"{_one_line(printed.getvalue())} ('magi {verb} --help' lists the options)")


_RULE = re.compile("[─-]{3}")
"""The frame of a box, whose top has its title, or a line across it; with and without Unicode."""
_NO_NUMBER = re.compile(r"Error parsing (--[\w.-]+).*(?:string to (float)|int\(\) with base 10): ('.*')")
_UNKNOWN = re.compile(r"Unrecognized options: (--[\w.-]+)")


def _one_line(boxed: str) -> str:
    """What tyro prints in a box of several lines: the mistake, and the nearest option where it names some."""
    lines = [line.strip(" │|") for line in boxed.splitlines() if line.strip()]
    parts = [" ".join(part) for ruled, part in groupby(lines, lambda line: bool(_RULE.search(line))) if not ruled]
    # Without Unicode the title is a line of its own, above the first rule.
    wrong = parts[0 if _RULE.search(lines[0]) or len(parts) == 1 else 1]
    if number := _NO_NUMBER.search(wrong):
        return f"{number[1]} {number[3]}: expected a {'number' if number[2] else 'whole number'}"
    if (unknown := _UNKNOWN.search(wrong)) is None:
        return wrong
    # tyro's order prefers options with more words; those that are nearest letter by letter are few.
    offered = [name for line in lines if line.startswith("--") for name in re.findall(r"--\w[\w.-]*", line)]
    nearness = {name: difflib.SequenceMatcher(None, unknown[1], name).ratio() for name in offered}
    nearest = [name for name, ratio in nearness.items() if ratio == max(nearness.values())]
    return f"{wrong}; did you mean {' or '.join(nearest)}?" if nearest else wrong


def checked(section: AnySection) -> AnySection:
    """The section that the command line built, checked as a file is; ``ValueError`` has a line for each mistake."""
    return validated(type(section), section.model_dump(warnings=False), "command line")


def preset_or_file(name: str) -> Config:
    """The config of a preset or of a YAML file; a ``ValueError`` names the nearest preset."""
    if name in PRESETS:
        return preset(name)
    if name.endswith((".yaml", ".yml")) or Path(name).exists():
        path = Path(name)
        return load_config(path / "config.yaml" if path.is_dir() else path)
    return preset(name)


def existing_folder(path: Path) -> Path:
    """``path`` itself; a ``ValueError`` where it is not a folder."""
    if not path.is_dir():
        raise ValueError(f"{path}: not a folder" if path.exists() else f"{path}: no such folder")
    return path


def check_share(option: str, value: float) -> None:
    """Refuse, with a ``ValueError``, what is no share of a whole."""
    if not 0 <= value <= 1:
        raise ValueError(f"{option} {value}: expected a share between 0 and 1")


def check_device(device: Device) -> None:
    """Refuse, with a ``ValueError``, a GPU that is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU; use --device cpu")
