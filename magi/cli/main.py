"""``magi VERB ...``: finds the verb, runs it, and turns what went wrong into one line and an exit code.

The verbs are in the other modules of this folder and are imported when they are called, so that ``magi --help`` loads
neither torch nor the rooms. Knows no options of any verb.
"""

import atexit
import difflib
import gc
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TextIO

import magi
from magi.errors import USAGE_EXIT_CODE, CheckpointError, DataError, NumericsError, StoppedCleanly

# NOTE: at its end Python looks for cycles in all that torch has loaded, a second of work and several on a busy machine,
# for memory that the end of the process frees at once.
atexit.register(gc.freeze)

INTERRUPTED_EXIT_CODE = 130
INTERNAL_EXIT_CODE = 1


@dataclass(frozen=True)
class Verb:
    """One command: its name, where its function is, and what it does in one line."""

    name: str
    module: str
    function: str
    summary: str
    alone: bool = False
    """Runs without further arguments, though other verbs begin with its name."""


VERBS = (
    Verb("data digits", "videos", "data_digits", "write the built-in videos as mp4 files, one folder a class"),
    Verb("data world", "videos", "data_world", "write videos of a built-in world with actions and exact state"),
    Verb("data record", "videos", "data_record", "write episodes of a Gymnasium environment with their actions"),
    Verb("data import-lerobot", "videos", "data_import_lerobot", "write a LeRobot dataset's episodes with actions"),
    Verb("data captions", "videos", "data_captions", "write the captions of an annotation file beside their videos"),
    Verb("data index", "data", "data_index", "decode every video once, safely; write the index and a report"),
    Verb("encode", "data", "encode", "latents on disk; restartable; N workers need no coordination"),
    Verb("encode-text", "data", "encode_text", "states of captions by a frozen text encoder, on disk; restartable"),
    Verb("vae check", "vae", "check", "quality, speed and leaks of an autoencoder on your videos"),
    Verb("vae import", "vae", "import_weights", "released OmniTokenizer or Cosmos weights as a folder of safetensors"),
    Verb("train-vae", "train", "train_vae", "train a small autoencoder on your own videos"),
    Verb("train", "train", "train", "train a preset or a config file; the same command again resumes"),
    Verb("tune-steps", "tune_steps", "tune_steps", "place a model's denoising steps by their energy score; its config"),
    Verb("distill", "distill", "distill", "train a head of one step a token on a frozen model, by the energy score"),
    Verb("sample", "sample", "sample", "generate or continue videos: mp4, GIF and a contact sheet"),
    Verb("play", "play", "play", "a page in the browser where the model dreams under your keys", alone=True),
    Verb("export", "sample", "export", "write the folder that MagiPipeline.from_pretrained loads"),
    Verb("evaluate import-weights", "evaluate", "import_weights", "check and keep a published weight file"),
    Verb("evaluate protocols", "evaluate", "list_protocols", "the named protocols, or all fields of one"),
    Verb("evaluate compare", "evaluate", "compare", "rank results whose protocol cards are equal"),
    Verb("evaluate text", "evaluate", "evaluate_text", "measure how a model of captioned digits obeys prompts"),
    Verb("evaluate", "evaluate", "evaluate_protocol", "score a model: evaluate PROTOCOL MODEL DATA OUT"),
    Verb("bench data", "bench", "bench_data", "clips a second of one core, and the cores that a training step needs"),
    Verb(
        "bench", "bench", "bench", "speed cases against their baselines in the same run; JSON and a table", alone=True
    ),
    Verb("inspect mask", "inspect", "inspect_mask", "the attention mask of teacher forcing as rows of 0 and 1"),
    Verb("inspect model", "inspect", "inspect_model", "parameters and shapes of a preset, size, config or MODEL"),
    Verb("inspect cost", "cost", "inspect_cost", "operations, memory, GPU-days and disk of a preset, before it is run"),
)

EPILOGUE = """
MODEL is a run directory, an exported folder, a hub id, 'demo' or 'platform' (shipped with the package).

exit codes: 0 done, 2 usage or config, 3 data beyond tolerance, 4 numerics, 5 checkpoint refused,
            75 stopped cleanly (the same command continues), 130 interrupted
--debug     anywhere in a command: the full traceback instead of one line
--version   the version of this installation

example:    magi data digits build/digits --clips 1000 --size 64 --seed 0
            magi train digits --run build/run --training.steps 2000
            magi sample build/run build/samples --frames 60 --context clip.mp4 --context-frames 4

'magi VERB --help' lists the options of a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` default to those of the process."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be what a terminal can show
    return exit_code_of(lambda: _dispatch([word for word in argv if word != "--debug"]), debug="--debug" in argv)


def exit_code_of(work: Callable[[], object], debug: bool = False) -> int:
    """Run ``work``: 0, or the exit code of what went wrong, which is one line on stderr."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            work()
            return 0
    except SystemExit as error:  # the option parser has printed its message already
        return error.code if isinstance(error.code, int) else USAGE_EXIT_CODE
    except BrokenPipeError:  # the reader of our output has exited, as in 'magi ... | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERNAL_EXIT_CODE
    except KeyboardInterrupt:
        print("magi: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _dispatch(argv: list[str]) -> None:
    if argv == ["--version"]:
        print(f"magi {magi.__version__}")
        return
    verb, rest = _find_verb(argv)
    if verb is None:
        print(_help(rest))
        return
    module = importlib.import_module(f"magi.cli.{verb.module}")
    function: Callable[[list[str]], None] = getattr(module, verb.function)
    function(rest)


def _find_verb(argv: list[str]) -> tuple[Verb | None, list[str]]:
    """The verb that ``argv`` begins with and what follows it; no verb where help is wanted."""
    groups = {verb.name.split()[0] for verb in VERBS if " " in verb.name}
    if not argv or argv[0] in ("-h", "--help", "help"):
        return None, []
    help_wanted = argv[1:2] in (["-h"], ["--help"]) and argv[0] not in {verb.name for verb in VERBS}
    incomplete = len(argv) == 1 and argv[0] not in {verb.name for verb in VERBS if verb.alone}
    if argv[0] in groups and (incomplete or help_wanted):
        return None, argv[:1]
    for verb in VERBS:  # 'evaluate' and 'bench' come after the verbs that begin with them
        length = len(verb.name.split())
        if " ".join(argv[:length]) == verb.name:
            return verb, argv[length:]
    given = " ".join(argv[: 2 if argv[0] in groups else 1])
    nearest = difflib.get_close_matches(given, [verb.name for verb in VERBS], n=1)
    hint = f"did you mean 'magi {nearest[0]}'?" if nearest else "'magi --help' lists the verbs"
    raise ValueError(f"unknown verb '{given}'; {hint}")


def _help(group: list[str]) -> str:
    verbs = [verb for verb in VERBS if not group or verb.name.split()[0] == group[0]]
    width = max(len(verb.name) for verb in verbs)
    rows = "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs)
    opening = "magi: from video files to generated video (masked autoregressive, complete teacher forcing)"
    return f"{opening}\n\nusage: magi VERB ...\n\n{rows}\n{EPILOGUE}"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one line; drop those of libraries to programmers (deprecations and the like)."""
    if issubclass(category, UserWarning):
        print(f"magi: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _report(error: Exception) -> int:
    """Print ``error`` on stderr, one line for each mistake; return its exit code."""
    if isinstance(error, StoppedCleanly):
        print(f"magi: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, DataError | NumericsError | CheckpointError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, ValueError):
        code, message = USAGE_EXIT_CODE, str(error)
    elif isinstance(error, OSError):
        code, message = USAGE_EXIT_CODE, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        code = INTERNAL_EXIT_CODE
        message = f"{type(error).__name__}: {' '.join(str(error).split())} (add --debug for the traceback)"
    for line in message.splitlines() or [""]:
        print(f"magi: error: {line}", file=sys.stderr)
    return code
