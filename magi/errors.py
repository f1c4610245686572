"""Errors that a user can cause or meet, each with the exit code of the command line.

A mistake in arguments or configuration is a plain ``ValueError`` (exit code 2). The classes here are the other outcomes
that a script may want to distinguish. A message is one line: what, which file or field, what to do.
"""

import difflib
from collections.abc import Iterable

USAGE_EXIT_CODE = 2


def hint(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known word that is nearly ``word``, as a question; where there is none, ``otherwise`` or all known ones."""
    names = list(known)
    nearest = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else otherwise or f"there are: {', '.join(names)}"


class DataError(Exception):
    """Too much of the data is missing or unreadable."""

    exit_code = 3


class NumericsError(Exception):
    """Losses or gradients stayed non-finite, or a speed case does not compute what its reference does."""

    exit_code = 4


class CheckpointError(Exception):
    """A checkpoint or weight file is damaged, unsafe to read, or of another architecture."""

    exit_code = 5


class OtherRunError(CheckpointError):
    """A checkpoint is that of a run with another config or other data; nothing about it is damaged."""


class StoppedCleanly(Exception):
    """The run was asked to stop; its state is saved and the same command continues it."""

    exit_code = 75
