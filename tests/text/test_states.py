"""States of captions on disk: found by words, restartable, shared out, and never those of another encoder."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magi.errors import DataError
from magi.text.states import TextStates, read_header, write_states
from magi.weights import write_tensors
from tests.fakes.fake_encoder import FakeEncoder

CAPTIONS = [f"a digit number {number}" + " and more" * (number % 3) for number in range(23)]


def written(out: Path, captions: list[str] = CAPTIONS, **changes: str) -> FakeEncoder:
    encoder = FakeEncoder(**changes)
    write_states(captions, out, encoder, 6, captions_a_shard=5)
    return encoder


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_caption_finds_its_states_wherever_it_lies(tmp_path: Path) -> None:
    written(tmp_path, [*reversed(CAPTIONS), "", *CAPTIONS[:4]])
    states = pickle.loads(pickle.dumps(TextStates(tmp_path)))
    for caption in CAPTIONS:
        (expected_LE,) = FakeEncoder().states([caption], 6, cut=True)
        assert states[caption].dtype == np.float32 and np.array_equal(states[caption], expected_LE.float().numpy())
    assert states[None].shape == states[""].shape == (0, 4)
    assert CAPTIONS[0] in states and "a digit" not in states
    with pytest.raises(DataError, match="no states of the caption 'a digit'; run 'magi encode-text' again"):
        states["a digit"]


def test_captions_that_are_cut_are_counted(tmp_path: Path) -> None:
    assert write_states(CAPTIONS, tmp_path, FakeEncoder(), 6, captions_a_shard=5)[1:] == (5, 15)
    assert write_states(CAPTIONS, tmp_path, FakeEncoder(), 6, (1, 2), captions_a_shard=5)[1:] == (0, 7)


def test_the_same_call_goes_on_and_writes_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path / "once")
    for worker in ((1, 2), (0, 2)):
        write_states(CAPTIONS, tmp_path / "shared", FakeEncoder(), 6, worker, captions_a_shard=5)
    assert bytes_of(tmp_path / "once") == bytes_of(tmp_path / "shared") and len(bytes_of(tmp_path / "once")) == 6
    (tmp_path / "once" / "text-00001.safetensors").unlink()
    cut = tmp_path / "once" / "text-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"1 of 5 shards missing, first text-00001.safetensors; run 'magi encode-text'"):
        TextStates(tmp_path / "once")
    assert written(tmp_path / "once").calls == 2  # the two that were lost
    assert bytes_of(tmp_path / "once") == bytes_of(tmp_path / "shared")
    assert written(tmp_path / "once", source="elsewhere/encoder").calls == 0
    assert read_header(tmp_path / "once").source == "fakes/encoder"


@pytest.mark.parametrize(
    ("captions", "changes", "what"),
    [
        (CAPTIONS, {"id": "fake-2"}, "these states have encoder fake-1, asked fake-2; choose another folder"),
        (CAPTIONS, {"width": 5}, "these states have width 4, asked 5"),
        (CAPTIONS[1:], {}, "these states have other captions; choose another folder"),
        ([*CAPTIONS[1:], "x"], {}, "these states have other captions"),
        (["", ""], {}, "no video has a caption"),
    ],
)
def test_what_would_be_mixed_is_refused(
    tmp_path: Path, captions: list[str], changes: dict[str, str], what: str
) -> None:
    written(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=what):
        written(tmp_path, captions, **changes)
    assert bytes_of(tmp_path) == before


def test_shards_of_another_encoder_do_not_mix(tmp_path: Path) -> None:
    written(tmp_path / "one")
    written(tmp_path / "other", id="fake-2")
    name = "text-00002.safetensors"
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name}: belongs to other settings than magi-text.json"):
        TextStates(tmp_path / "one")
    with pytest.raises(ValueError, match=rf"{name}: belongs to other settings"):
        written(tmp_path / "one")


def test_states_that_are_not_finite_are_refused_when_written_and_when_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="states of 'a digit number 7 and more' are not finite in float16"):
        written(tmp_path / "nan", not_finite=CAPTIONS[7])
    written(tmp_path / "read")
    path = tmp_path / "read" / "text-00000.safetensors"
    tensors = load_file(path)
    tensors["states_FE"][:] = torch.inf
    write_tensors(path, tensors, {"settings": read_header(tmp_path / "read").settings})
    states = TextStates(tmp_path / "read")
    with pytest.raises(DataError, match=r"states of .* are not finite; delete the folder and run 'magi encode-text'"):
        for caption in CAPTIONS:
            states[caption]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("", "damaged or of another version"),
        ("[1]", "damaged or of another version"),
        ('{"format": 9}', "format 9 is not 1"),
        ('{"format": 1, "encoder": "x"}', "damaged or of another version"),
        ("[" * 100_000, "damaged or of another version"),
    ],
)
def test_a_damaged_header_is_one_line(tmp_path: Path, header: str, what: str) -> None:
    with pytest.raises(DataError, match=r"no such file, so .* holds no states of captions"):
        read_header(tmp_path)
    (tmp_path / "magi-text.json").write_text(header)
    with pytest.raises(DataError, match=what) as caught:
        read_header(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["states_FE", "lengths_V", "keys_VH"])
def test_a_shard_of_other_shapes_is_damaged(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    path = tmp_path / "text-00004.safetensors"
    tensors = load_file(path)
    for changed in ({name: tensors[name][1:]}, {}):
        kept = {key: value for key, value in tensors.items() if key != name} | changed
        write_tensors(path, kept, {"settings": read_header(tmp_path).settings})
        with pytest.raises(DataError, match=r"text-00004.safetensors: damaged.*; run 'magi encode-text' again"):
            TextStates(tmp_path)
