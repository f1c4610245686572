"""Claims: an import checks before it reads, keeps every tensor of the network and no other, and replaces as a whole."""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magi.errors import CheckpointError
from magi.evaluation.networks import import_weights as module
from magi.evaluation.networks.import_weights import expected_shapes, import_weights, our_name
from magi.evaluation.networks.load import load_i3d, load_inception, load_lpips
from magi.evaluation.networks.lpips import LpipsTrunk
from magi.evaluation.networks.published_files import PUBLISHED, PublishedFile, WeightKind, stored_weights
from magi.untrusted.reader import UntrustedCheckpoint
from tests.fakes.network_cases import CASES
from tests.fakes.synthetic_weights import synthetic_tensor
from tests.fakes.untrusted_files import compiled, read_in_process

FILES: dict[WeightKind, str] = {
    "i3d": "i3d_pretrained_400.pt",
    "inception": "pt_inception-2015-12-05-6726825d.pth",
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
    "lpips-alex": "alex.pth",
    "lpips-vgg": "vgg.pth",
}


@cache
def published(kind: WeightKind) -> dict[str, Tensor]:
    """A look-alike of the published file: all its tensors of the right shapes; a classifier is cut to one value."""
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in CASES["keys"][FILES[kind]].items()}
    return {
        name: torch.zeros(1) if name.startswith("classifier.") else synthetic_tensor(name, shape)
        for name, shape in shapes.items()
    }


def written(path: Path, tensors: dict[str, Tensor], kind: WeightKind, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tensors as a safetensors file that counts as published."""
    save_file(tensors, path)
    return known(path, kind, monkeypatch)


def known(path: Path, kind: WeightKind, monkeypatch: pytest.MonkeyPatch) -> Path:
    content = path.read_bytes()
    file = PublishedFile(path.name, "here", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(PUBLISHED, kind, file)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_networks_need_exactly_the_published_names_and_shapes(kind: WeightKind) -> None:
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in CASES["keys"][FILES[kind]].items()}
    needed = {name: shape for name, shape in shapes.items() if not name.startswith("classifier.")}
    assert expected_shapes(kind) == needed


def test_a_torch_file_with_counters_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And becomes the network: its name is the plain one, its hash that of the file that was given."""
    tensors = published("i3d")
    counters = {
        f"{name[:-12]}.num_batches_tracked": torch.tensor(0) for name in tensors if name.endswith(".running_var")
    }
    torch.save(tensors | counters, tmp_path / "i3d.pt")
    path = known(tmp_path / "i3d.pt", "i3d", monkeypatch)
    imported = import_weights("i3d", path, cache=tmp_path / "cache")
    assert imported.tensors == 287 and imported.source.known
    network = load_i3d(cache=tmp_path / "cache")
    assert network.name == "i3d-kinetics400-logits"
    assert network.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    port = load_i3d("magvit_train", 1e-5, tmp_path / "cache")
    assert (port.name, port.preprocessing) == ("i3d-kinetics400-logits[magvit_train,eps1e-05]", "magvit_train")
    assert port.network.Conv3d_1a_7x7.bn.eps == 1e-5
    state = network.network.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("trunk", "kinds"), [("alex", ("alexnet", "lpips-alex")), ("vgg", ("vgg16", "lpips-vgg"))])
def test_trunk_and_heads_make_lpips(
    trunk: LpipsTrunk, kinds: tuple[WeightKind, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for kind in kinds:
        path = written(tmp_path / f"{kind}.safetensors", published(kind), kind, monkeypatch)
        import_weights(kind, path, cache=tmp_path / "cache")
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    measure = load_lpips(trunk, tmp_path / "cache")
    assert measure.name == f"lpips_{trunk}" and measure.hash == "+".join(hashes)
    assert torch.equal(measure.network.features["0"].weight, published(kinds[0])["features.0.weight"])
    other: LpipsTrunk = "vgg" if trunk == "alex" else "alex"
    with pytest.raises(CheckpointError, match="weights not imported"):
        load_lpips(other, tmp_path / "cache")


@pytest.mark.slow
def test_inception_becomes_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "inception.safetensors", published("inception"), "inception", monkeypatch)
    import_weights("inception", path, cache=tmp_path / "cache")
    assert load_inception(cache=tmp_path / "cache").name == "inception-2015-12-05-pool3"


def heads(**changes: Any) -> dict[str, Tensor]:
    return published("lpips-alex") | changes


def test_an_unknown_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(heads(), tmp_path / "heads.safetensors")

    def parsed(path: Path) -> Any:
        raise AssertionError("a file of unknown hash was parsed")

    monkeypatch.setattr(module, "read_untrusted", parsed)
    monkeypatch.setattr(module, "is_torchscript", parsed)
    with pytest.raises(CheckpointError, match="not a published lpips-alex file"):
        import_weights("lpips-alex", tmp_path / "heads.safetensors", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_allowed_unknown_file_is_recorded_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(heads(), tmp_path / "heads.safetensors")
    with pytest.warns(UserWarning, match="every score will say so"):
        import_weights("lpips-alex", tmp_path / "heads.safetensors", allow_unknown=True, cache=tmp_path / "cache")
    trunk = written(tmp_path / "trunk.safetensors", published("alexnet"), "alexnet", monkeypatch)
    import_weights("alexnet", trunk, cache=tmp_path / "cache")
    assert not stored_weights("lpips-alex", tmp_path / "cache").source.known
    assert load_lpips("alex", tmp_path / "cache").name == "lpips_alex[unknown-weights]"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lin5.model.1.weight": torch.ones(1)}, "lin5.model.1.weight unknown"),
        ({"lin2.model.1.weight": torch.ones(1, 7, 1, 1)}, r"has \(1, 7, 1, 1\), the network \(1, 384, 1, 1\)"),
        ({"lin2.model.1.weight": torch.full((1, 384, 1, 1), torch.nan)}, "not finite"),
        ({"lin2.model.1.weight": torch.full((1, 384, 1, 1), -0.1)}, "negative"),
        ({"lin2.model.1.weight": torch.ones(1, 384, 1, 1, dtype=torch.int32)}, "floating point"),
    ],
)
def test_tensors_of_another_network_are_refused(
    changes: dict[str, Tensor], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "heads.safetensors", heads(**changes), "lpips-alex", monkeypatch)
    with pytest.raises(CheckpointError, match=words) as error:
        import_weights("lpips-alex", path, cache=tmp_path / "cache")
    assert "\n" not in str(error.value) and not (tmp_path / "cache" / "lpips-alex").exists()


def test_a_missing_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = heads()
    del tensors["lin4.model.1.weight"]
    path = written(tmp_path / "heads.safetensors", tensors, "lpips-alex", monkeypatch)
    with pytest.raises(CheckpointError, match=r"lin4\.model\.1\.weight missing"):
        import_weights("lpips-alex", path, cache=tmp_path / "cache")


def test_an_import_replaces_the_one_before_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for number in (1, 2):
        tensors = {name: number * tensor for name, tensor in heads().items()}
        path = written(tmp_path / f"{number}.safetensors", tensors, "lpips-alex", monkeypatch)
        import_weights("lpips-alex", path, cache=cache)
    stored = stored_weights("lpips-alex", cache)
    assert stored.source.file == "2.safetensors"
    assert all(torch.equal(tensor, 2 * heads()[name]) for name, tensor in stored.tensors().items())
    assert [entry.name for entry in cache.iterdir()] == ["lpips-alex"]  # nothing unfinished is left


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "heads.safetensors", heads(), "lpips-alex", monkeypatch)
    reading = module.read_untrusted

    def exchange(given: Path) -> UntrustedCheckpoint:
        save_file({name: 2 * tensor for name, tensor in heads().items()}, given)
        return reading(given)

    monkeypatch.setattr(module, "read_untrusted", exchange)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        import_weights("lpips-alex", path, cache=tmp_path / "cache")


def torchscript_name(name: str) -> str:
    """The name of a tensor of ours in the TorchScript file."""
    branches = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
    name = re.sub(r"\.(b\d[ab]?)\.", lambda match: f".branch_{branches[match[1]]}.", name)
    name = name.replace(".bn.", ".batch3d.").replace("logits.", "conv3d_0c_1x1.")
    return name[0].lower() + name[1:]


def test_names_in_the_torchscript_file_become_ours() -> None:
    for name in expected_shapes("i3d"):
        assert our_name(torchscript_name(name)) == our_name(name) == name
    assert torchscript_name("Mixed_3b.b1a.bn.running_mean") == "mixed_3b.branch_1.0.batch3d.running_mean"
    assert our_name("mixed_9z.branch_0.conv3d.weight") == "mixed_9z.branch_0.conv3d.weight"  # to be refused


def test_a_torchscript_file_gives_its_tensors_to_our_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an import of kind i3d it is what I3D is loaded from, and the name of every score says so."""
    read_in_process(monkeypatch)
    tensors = {torchscript_name(name): tensor for name, tensor in published("i3d").items()}
    counters = {"conv3d_1a_7x7.batch3d.num_batches_tracked": torch.tensor(0)}
    path = known(compiled(tensors | counters, tmp_path / "program.pt"), "i3d-torchscript", monkeypatch)
    assert import_weights("i3d-torchscript", path, cache=tmp_path / "cache").tensors == 287
    network = load_i3d(cache=tmp_path / "cache")
    assert network.name == "i3d-kinetics400-logits[torchscript-tensors]"
    assert network.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    weight = network.network.state_dict()["Mixed_5c.b2b.conv3d.weight"]
    assert torch.equal(weight, published("i3d")["Mixed_5c.b2b.conv3d.weight"])
    known(path, "i3d", monkeypatch)
    with pytest.raises(CheckpointError, match="import it as i3d-torchscript"):
        import_weights("i3d", path, cache=tmp_path / "cache")
    i3d = written(tmp_path / "i3d.safetensors", published("i3d"), "i3d", monkeypatch)
    import_weights("i3d", i3d, cache=tmp_path / "cache")
    assert load_i3d(cache=tmp_path / "cache").name == "i3d-kinetics400-logits"  # the published file comes first
