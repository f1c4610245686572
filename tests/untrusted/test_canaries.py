"""Claim: no path that reads a file runs code of it, whatever the file is called: it is parsed, never executed.

Five canaries (pickles in a zip, plain and in an array, a TorchScript program, a YAML that asks for a call) are put
before every loader; each leaves a folder or file when it is run. A scan of the package finds the modules that read
weights, arrays and YAML, so that a new one without a canary is noticed.
"""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError

from magi.cli.main import main
from magi.config_files import load_config
from magi.data.actions import read_track
from magi.data.index.records import IndexedVideos
from magi.errors import CheckpointError, DataError
from magi.evaluation.networks.published_files import WEIGHT_KINDS
from magi.evaluation.protocol.features import FeatureSet
from magi.evaluation.protocol.samples import SamplePlan
from magi.files import DEMO_FOLDER
from magi.latents.files import LatentHeader, map_shard, tensors_path
from magi.sampling.pretrained import load_pretrained
from magi.text.states import TextHeader, _open, _shard_path
from magi.untrusted.child import read
from magi.weights import read_tensors
from studies.survival.canaries import TRAPS
from tests.fakes.untrusted_files import read_in_process

PACKAGE = Path(__file__).parents[2] / "magi"
READERS = {"torch.load", "torch.jit.load", "np.load", "np.lib.format.read_array", "safe_open", "load_file", "yaml"}
"""What reads a file that could hold code if it were read by something else; JSON and CSV cannot."""


def shard_of_latents(path: Path) -> object:
    shutil.copy(path, tensors_path(path.parent, 0))
    return map_shard(path.parent, 0, cast(LatentHeader, None), 1)  # the header is compared with what was read


def shard_of_states(path: Path) -> object:
    shutil.copy(path, _shard_path(path.parent, 0))
    return _open(path.parent, 0, cast(TextHeader, None))  # the header is compared with what was read


def shard_of_samples(path: Path) -> object:
    plan = SamplePlan(path.parent, "k" * 64, 1)
    shutil.copy(path, plan.path(0))
    assert plan.missing() == [0]
    return next(plan.read(0, 1, 1))


def chunk_of_features(path: Path) -> object:
    found = FeatureSet((path,))
    for look in (found.names, lambda: found.values("images_BTD", 0), lambda: found.statistics(0, 1)):
        with pytest.raises(SafetensorError):
            look()
    return found.values("features_BD")


def restricted_reader(path: Path) -> None:
    if refusal := read(path, path.with_name("out")).refused:
        raise CheckpointError(refusal)


def track_of_actions(path: Path) -> object:
    return read_track(Path(shutil.copy(path, path.with_name("video.actions.npy"))), 4)


LOADERS: dict[str, Callable[[Path], object]] = {
    "config_files.py": load_config,
    "data/actions.py": track_of_actions,
    "data/index/records.py": IndexedVideos,
    "evaluation/protocol/features.py": chunk_of_features,
    "evaluation/protocol/samples.py": shard_of_samples,
    "latents/files.py": shard_of_latents,
    "text/states.py": shard_of_states,
    "untrusted/child.py": restricted_reader,
    "weights.py": read_tensors,
}
"""Module -> what it reads a file with."""
COMMANDS = [
    *(f"evaluate import-weights {kind} FILE --allow-unknown" for kind in WEIGHT_KINDS),
    "vae import FILE OUT",
]
"""Every command that reads a file which its user downloaded somewhere."""


@pytest.fixture(scope="module", params=TRAPS)
def trap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A canary, and the trace that it leaves when it is run."""
    folder = tmp_path_factory.mktemp(request.param)
    trace = folder / "trace"
    return TRAPS[request.param](folder / "file", trace), trace


def test_the_canaries_are_alive(tmp_path: Path) -> None:
    for name, run in {
        "npy": lambda path: np.load(path, allow_pickle=True),
        "zip": lambda path: torch.load(path, weights_only=False),
        "legacy": lambda path: torch.load(path, weights_only=False),
        "torchscript": lambda path: torch.jit.load(str(path)),
        "yaml": lambda path: yaml.unsafe_load(path.read_text()),
    }.items():
        trace = tmp_path / f"{name}-trace"
        path = TRAPS[name](tmp_path / name, trace)
        assert not trace.exists()
        run(path)
        assert trace.exists(), name


@pytest.mark.parametrize("module", LOADERS)
def test_no_loader_runs_what_is_in_a_file(module: str, trap: tuple[Path, Path], tmp_path: Path) -> None:
    path = shutil.copy(trap[0], tmp_path / "file.safetensors")
    with pytest.raises((CheckpointError, DataError, ValueError, OSError, SafetensorError)):
        LOADERS[module](path)
    assert not trap[1].exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_is_in_a_file(
    command: str, trap: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the child, so that what keeps the code from running is the reading, not the process around it."""
    read_in_process(monkeypatch)
    monkeypatch.setenv("MAGI_CACHE", str(tmp_path / "cache"))
    argv = {"FILE": str(trap[0]), "OUT": str(tmp_path / "out")}
    assert main([argv.get(word, word) for word in command.split()]) == CheckpointError.exit_code
    assert not trap[1].exists() and not list(tmp_path.glob("*/weights/*/tensors*"))


@pytest.mark.parametrize("file", ["config.yaml", "model.safetensors", "vae/config.json", "vae/model.safetensors"])
def test_no_file_of_a_model_runs(file: str, trap: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "model")
    shutil.copy(trap[0], tmp_path / "model" / file)
    with pytest.raises((CheckpointError, ValueError)):
        load_pretrained(tmp_path / "model")
    assert not trap[1].exists()


def test_every_module_that_reads_such_files_has_a_canary() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and READERS & {ast.unparse(node.func), ast.unparse(node.func).split(".")[0]}:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == set(LOADERS)
