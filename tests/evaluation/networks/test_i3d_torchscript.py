"""Claims: the TorchScript file runs as the program it is, with its own resize, only while its hash is the one kept."""

from pathlib import Path

import pytest
import torch

from magi.errors import CheckpointError
from magi.evaluation.networks.features import FeatureNetwork
from magi.evaluation.networks.i3d_torchscript import load_i3d_torchscript
from magi.evaluation.networks.import_weights import import_weights
from magi.evaluation.networks.published_files import PROGRAM_FILE
from tests.evaluation.networks.test_import_weights import known


class LookAlike(torch.nn.Module):
    """The call of the published program; its 'logits' are the mean and the maximum of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(400))

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert return_features
        if rescale:
            x = x / 127.5 - 1
        if resize:
            x = x + 0.0
        return x.mean((1, 2, 3, 4))[:, None] * self.weight + x[:, 0].amax((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the look-alike, whose tensors are not I3D's: it is kept as a program only, and that is said."""
    folder = tmp_path_factory.mktemp("torchscript")
    torch.jit.script(LookAlike()).save(str(folder / "program.pt"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = known(folder / "program.pt", "i3d-torchscript", monkeypatch)
        with pytest.warns(UserWarning, match="kept as a program only"):
            done = import_weights("i3d-torchscript", path, cache=folder / "cache")
    assert done.program and done.tensors == 0
    return folder / "cache"


def test_it_is_called_with_its_own_rescaling(imported: Path) -> None:
    network = load_i3d_torchscript(imported)
    promised: FeatureNetwork = network
    assert promised.name == "i3d-torchscript-kinetics400-logits" and promised.dimension == 400
    red_BTHWC = torch.zeros(5, 9, 8, 8, 3, dtype=torch.uint8)
    red_BTHWC[..., 0] = 255
    logits_BC = network.features(red_BTHWC)
    assert logits_BC.shape == (5, 400) and not logits_BC.requires_grad
    torch.testing.assert_close(logits_BC, torch.full((5, 400), -1 / 3 + 1))
    raw_BC = network.raw_logits(torch.full((1, 3, 9, 8, 8), 0.5))
    torch.testing.assert_close(raw_BC, torch.ones(1, 400))


def test_short_clips_are_refused(imported: Path) -> None:
    with pytest.raises(ValueError, match="clips of 8 frames"):
        load_i3d_torchscript(imported).features(torch.zeros(1, 8, 8, 8, 3, dtype=torch.uint8))


def test_a_changed_program_is_not_run(imported: Path) -> None:
    path = imported / "i3d-torchscript" / PROGRAM_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    try:
        with pytest.raises(CheckpointError, match="SHA-256 is not the manifest's"):
            load_i3d_torchscript(imported)
    finally:
        path.write_bytes(content)


def test_without_an_import_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="import-weights i3d-torchscript FILE"):
        load_i3d_torchscript(tmp_path)
