"""The checks of a GPU run work as far as a CPU can show, and one that fails is told by the exit code."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from magi.bench.case import Parity


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_checks", Path(__file__).parents[2] / "runs/gpu_checks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checks_hold_on_a_cpu(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(torch.device("cpu")) == 0
    printed = capsys.readouterr().out
    assert "float32 frame" in printed and "levels of 255 in frames 12 to 15" in printed and "FAILED" not in printed


@pytest.mark.parametrize("difference", [2.0, float("nan")])
def test_a_check_that_fails_is_an_exit_code(
    script: ModuleType, difference: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sampling", "continuation"):
        monkeypatch.setattr(script, name, lambda _: iter([Parity("a kernel", difference, 1.0)]))
    assert script.main(torch.device("cpu")) == 1
    assert "FAILED" in capsys.readouterr().out
