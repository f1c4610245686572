"""The command line of a study: its options, how to write them again, and errors as one line. Knows no study."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

from magi.cli.options import parse
from magi.errors import USAGE_EXIT_CODE, CheckpointError, DataError, NumericsError, StoppedCleanly

Options = TypeVar("Options")
NOT_PART = ("out", "results", "device", "jobs", "dry_run")
"""Options that change where and how fast a study runs, and not what it finds."""


def options_of(kind: type[Options], study: str) -> Options:
    """The options on the command line of ``python -m studies.STUDY``; ``ValueError`` of one line."""
    try:
        return parse(kind, study, sys.argv[1:])
    except ValueError as error:
        raise ValueError(str(error).replace(f"magi {study}", f"python -m {study}")) from None


def command_line(study: str, options: object) -> str:
    """The command that gives the same result: the study's name and all options that are not their defaults."""
    return " ".join([f"python -m studies.{study}", *_given(options, "")])


def _given(options: Any, prefix: str) -> Iterator[str]:
    for field in fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _given(value, f"{name}.")
        elif field.name not in NOT_PART and value != _default(field):
            numbers = [f"{one:g}" for one in value] if isinstance(value, tuple) else [str(value)]
            yield " ".join([f"--{name}", *numbers])


def _default(field: Field[Any]) -> object:
    return field.default if field.default is not MISSING else None


def command(work: Callable[[], None]) -> None:
    """Run a command; what goes wrong is one line on stderr and an exit code, as with ``magi``."""
    try:
        work()
    except StoppedCleanly as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("interrupted; the same command continues", StoppedCleanly.exit_code)
    except (DataError, NumericsError, CheckpointError) as error:
        _leave(f"error: {error}", error.exit_code)
    except ValueError as error:
        _leave(f"error: {error}", USAGE_EXIT_CODE)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _leave(f"error: {named}", USAGE_EXIT_CODE)


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)
