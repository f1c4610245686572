"""The command line of a study: its options, and how to write them again."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from magi.cli.main import exit_code_of
from magi.cli.options import parse

Options = TypeVar("Options")
NOT_PART = ("out", "results", "device")
"""Options that change where and how fast a study runs, and not what it finds."""


def run_command(module: str, kind: type[Options], work: Callable[[Options], object]) -> None:
    """Run ``work`` with the options of ``python -m studies.MODULE``; errors are one line and an exit code."""

    def parse_and_work() -> None:
        try:
            options = parse(kind, f"studies.{module}", sys.argv[1:])
        except ValueError as error:
            raise ValueError(str(error).replace("magi studies", "python -m studies")) from None
        work(options)

    sys.exit(exit_code_of(parse_and_work))


def command_line(module: str, options: object) -> str:
    """The command that gives the same result: the study's name and all options that are not their defaults."""
    return " ".join([f"python -m studies.{module}", *_given(options, "")])


def _given(options: Any, prefix: str) -> Iterator[str]:
    for field in fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _given(value, f"{name}.")
        elif field.name not in NOT_PART and value != field.default:
            numbers = [f"{one:g}" for one in value] if isinstance(value, tuple) else [str(value)]
            yield " ".join([f"--{name}", *numbers])
