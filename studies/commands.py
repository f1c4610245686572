"""The command line of a study: its options, and errors as one line and an exit code. Knows no study."""

import sys
from collections.abc import Callable
from typing import TypeVar

from magi.cli.options import parse
from magi.errors import USAGE_EXIT_CODE, CheckpointError, DataError, NumericsError, StoppedCleanly

Options = TypeVar("Options")


def options_of(kind: type[Options], study: str) -> Options:
    """The options on the command line of ``python -m studies.STUDY``; ``ValueError`` of one line."""
    try:
        return parse(kind, study, sys.argv[1:])
    except ValueError as error:
        raise ValueError(str(error).replace(f"magi {study}", f"python -m {study}")) from None


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
