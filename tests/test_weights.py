"""Reading weights back: every damage is noticed and named, and nothing in a file is ever run."""

import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from magi.errors import CheckpointError
from magi.files import CHECKPOINTS_FOLDER
from magi.training.checkpoint import Checkpoint, save_checkpoint
from magi.weights import (
    CHECKPOINT_FILES,
    load_ema,
    load_weights,
    newest_good,
    read_tensors,
    step_folder,
    verify_manifest,
    write_tensors,
)


class Canary:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def save(run: Path, step: int, keep: int = 9) -> Path:
    tensors = {"weight": torch.full((2, 3), float(step)), "bias": torch.zeros(2)}
    return save_checkpoint(run, Checkpoint(tensors, tensors, {"exp_avg/weight": torch.ones(2)}, {"step": step}), keep)


def newest_intact(run: Path) -> Path | None:
    def verified(folder: Path) -> Path:
        verify_manifest(folder)
        return folder

    return newest_good(run, verified)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    *((f"{name}: truncated", lambda path: path.write_bytes(path.read_bytes()[:-1])) for name in CHECKPOINT_FILES),
    *((f"{name}: empty", lambda path: path.write_bytes(b"")) for name in CHECKPOINT_FILES),
    *((f"{name}: first bit", lambda path: flip(path, 0)) for name in CHECKPOINT_FILES),
    *((f"{name}: last bit", lambda path: flip(path, -1)) for name in CHECKPOINT_FILES),
    *((f"{name}: missing", Path.unlink) for name in CHECKPOINT_FILES),
    *((f"{name}: longer", lambda path: path.write_bytes(path.read_bytes() + b"\0")) for name in CHECKPOINT_FILES),
    ("manifest.json: truncated", lambda path: path.write_bytes(path.read_bytes()[:-9])),
    ("manifest.json: missing", Path.unlink),
    ("manifest.json: a list", lambda path: path.write_text("[]")),
    ("manifest.json: no files", lambda path: path.write_text('{"format": 1, "files": {}}')),
    ("manifest.json: not text", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    ("manifest.json: a FIFO", lambda path: (path.unlink(), os.mkfifo(path))),
    ("manifest.json: a device", lambda path: (path.unlink(), path.symlink_to("/dev/zero"))),
    ("manifest.json: deep", lambda path: path.write_text("[" * 100_000)),
]


@pytest.mark.parametrize(("what", "damage"), DAMAGES, ids=[what for what, _ in DAMAGES])
def test_damage_is_noticed_and_the_newest_intact_one_taken(
    what: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    save(tmp_path, 1)
    good = save(tmp_path, 2)
    bad = save(tmp_path, 3)
    damage(bad / what.split(":")[0])
    with pytest.warns(UserWarning, match=r"step-000000003.*falling back to step-000000002"):
        assert newest_intact(tmp_path) == good


def test_swapped_checkpoints_are_noticed(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    (second / "ema.safetensors").write_bytes((first / "ema.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: damaged, its SHA-256"):
        verify_manifest(second)


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) is None
    flip(save(tmp_path, 1) / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        newest_intact(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_ema(tmp_path / "other")


def test_newer_format_says_so(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1; update magi"):
        newest_intact(tmp_path)


def test_half_written_checkpoint_and_stale_latest_do_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (tmp_path / CHECKPOINTS_FOLDER / f".tmp-{step_folder(3)}").mkdir()
    (tmp_path / CHECKPOINTS_FOLDER / "step-old").mkdir()
    (tmp_path / CHECKPOINTS_FOLDER / "latest").write_text("step-000000001\n")
    assert newest_intact(tmp_path) == newest
    assert load_ema(tmp_path)["weight"][0, 0] == 2


def test_sampling_needs_the_averaged_weights_alone(tmp_path: Path) -> None:
    """A run copied without its optimizer still gives its model."""
    (save(tmp_path, 1) / "optimizer.safetensors").unlink()
    assert load_ema(tmp_path).keys() == {"weight", "bias"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_run(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "fired"), protocol))
    with pytest.raises(CheckpointError, match=r"not (a )?safetensors"):
        read_tensors(path)
    assert not (tmp_path / "fired").exists()
    os.mkdir(tmp_path / "live")
    pickle.loads(pickle.dumps(Canary(tmp_path / "live" / "fired"), protocol))
    assert (tmp_path / "live" / "fired").exists(), "the canary is alive"


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first byte of safetensors is the lowest of the header's length: 0x80 is a length, not a pickle's mark."""
    path, tensors = tmp_path / "model.safetensors", {}
    for number in range(200):
        tensors[f"layer.{number}.weight"] = torch.full((2,), float(number))
        save_file(tensors, path)
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80", "no header of such a length was made"
    assert read_tensors(path).keys() == tensors.keys()


def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "ema.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "fired")))
    with pytest.raises(CheckpointError):
        load_ema(tmp_path)
    assert not (tmp_path / "fired").exists()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


def header(text: bytes, length: int | None = None) -> Callable[[Path], object]:
    size = len(text) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + text)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "zip": zipped,
    "torch.save": lambda path: torch.save({"weight": torch.zeros(2)}, path),
    "text": lambda path: path.write_text("hello, this is not a model"),
    "header of 2^63 bytes": header(b"{}", 2**63),
    "header longer than the file": header(b"{}", 10_000),
    "tensor beyond the file": header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "negative offsets": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
    "unknown type": header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}0000'),
    "not JSON": header(b"{hello}"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    HOSTILE[kind](path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: [^\n]+$"):
        read_tensors(path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weight file"):
        read_tensors(tmp_path / "model.safetensors")


def test_another_architecture_lists_ten_tensors_and_loads_none() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    before = model[0].weight.clone()
    tensors = {name: torch.zeros(3, 3) for name in list(model.state_dict())[:3]} | {"0.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError) as refused:
        load_weights(model, tensors | {"strange": torch.zeros(1)}, Path("file"))
    message = str(refused.value)
    assert "0.bias has (3, 3), the model (2,)" in message and message.count("missing") == 8 and "and 6 more" in message
    assert torch.equal(model[0].weight, before)


def test_non_finite_weights_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="non-finite weights in weight"):
        load_weights(model, model.state_dict() | {"weight": torch.full((2, 2), torch.nan)}, Path("file"))


def test_float16_on_disk_is_float32_in_the_model(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2).half(), "bias": torch.ones(2).half()}, tmp_path / "m.safetensors")
    model = nn.Linear(2, 2)
    load_weights(model, read_tensors(tmp_path / "m.safetensors"), tmp_path)
    assert model.weight.dtype == torch.float32 and model.weight.detach().sum() == 4


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than 1,000 bytes, pytest's own output among them: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"weight": torch.ones(2)})
    with (
        full_disk(),
        pytest.raises(OSError, match=r"model\.safetensors: could not be written \([^\n]*\); free some space"),
    ):
        write_tensors(path, {"weight": torch.zeros(1000)})
    assert read_tensors(path)["weight"].tolist() == [1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"], "nothing half-written is left"


def test_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(3, 2).t()}, {"key": "value"})
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert read_tensors(tmp_path / "model.safetensors")["weight"].shape == (2, 3)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(kind: torch.dtype) -> None:
    """Copied into a model they would be numbers of another meaning; published weights come in any of the others."""
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    tensors = {"weight": torch.ones(2, 2).to(kind), "bias": torch.ones(2).double()}
    with pytest.raises(CheckpointError, match=rf"file: .*: weight is {str(kind)[6:]}, in the model float32; use"):
        load_weights(model, tensors, Path("file"))
    assert torch.equal(model.weight, before)
    load_weights(model, tensors | {"weight": torch.full((2, 2), 3.0).bfloat16()}, Path("file"))
    assert model.weight.detach().eq(3).all() and model.bias.dtype == torch.float32


def test_weights_in_a_folder_whose_name_is_no_text_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/v\xe9"))
    folder.mkdir()
    save_file({"a": torch.arange(3.0)}, folder / "w.safetensors")
    assert torch.equal(read_tensors(folder / "w.safetensors")["a"], torch.arange(3.0))
