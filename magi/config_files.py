"""Configs as YAML files: read within limits, with keys of older files, and written whole. It knows no room."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from magi.config import Config, validated

# Of a stranger's file, before anything is built from it.
_YAML_BYTES, _YAML_DEPTH, _YAML_SCALAR = 1_000_000, 20, 10_000

RENAMED_KEYS = {"training": {"masks_per_clip": "masked_views"}}
"""By section: keys of older files, which are still read, and what they are called now."""


def _with_new_keys(name: Any, section: Any) -> Any:
    renamed = RENAMED_KEYS.get(name)
    if renamed is None or not isinstance(section, dict):
        return section
    # Where a file has both names, the older one stays and is refused as unknown.
    return {new if (new := renamed.get(key, key)) not in section else key: value for key, value in section.items()}


def parse_config(values: Any, source: str) -> Config:
    """Check a mapping; a ``ValueError`` names the source, the key, the value and the nearest known key."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected a mapping of sections, got {type(values).__name__}")
    return validated(Config, {name: _with_new_keys(name, section) for name, section in values.items()}, source)


def load_config(path: Path) -> Config:
    """Read a YAML file with the safe loader, so that a file from a stranger runs no code, and within limits.

    ``ValueError`` of one line for a file above 1 MB, with an alias (of which a few lines make billions of values),
    nested deeper than 20 levels, or with a value of more than 10,000 characters.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such config file")
    if path.stat().st_size > _YAML_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, above {_YAML_BYTES:,}; expected the config of a run")
    try:
        text = path.read_text(encoding="utf-8")
        _check_yaml(text)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the second for numbers and dates that are none
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    return parse_config(values, str(path))


def _check_yaml(text: str) -> None:
    """``ValueError`` where building the values of ``text`` could take long or fail in depth; nothing is built here."""
    depth = 0
    events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{line} has an alias (*{event.anchor}), which no config needs; write the value out")
        if depth > _YAML_DEPTH:
            raise ValueError(f"{line} is nested deeper than {_YAML_DEPTH} levels, which no config is")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _YAML_SCALAR:
            raise ValueError(f"{line} has a value of more than {_YAML_SCALAR:,} characters, which no config has")


def dump_config(config: BaseModel) -> str:
    """The whole config as YAML, in the order of the sections."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
