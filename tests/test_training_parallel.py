import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magi.training.parallel import joined, prepare
from magi.weights import CHECKPOINTS, read_tensors, step_folder
from tests.training_runs import BROKEN, TOGETHER, Clips, tiny_config, tiny_model, tiny_trainer, told, train_tiny


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Same losses and weights from unequal shares, over a resume; a clip or a signal of one process concerns both."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.training_runs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    for rank in (0, 1):
        assert "stopped after step 3" in (tmp_path / f"stopped-{rank}.txt").read_text()
    train_tiny(tmp_path / "alone", TOGETHER, Clips(BROKEN))
    together, alone = told(tmp_path / "run"), told(tmp_path / "alone")
    assert [line["step"] for line in together] == [line["step"] for line in alone] == list(range(1, 7))
    assert together.pop(1) == alone.pop(1) == {"step": 2, "skipped": True, "samples": [5, 6, 7, 8, 9]}
    for left, right in zip(together, alone, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    for name in ("model.safetensors", "ema.safetensors"):
        folder = Path(CHECKPOINTS) / step_folder(6) / name
        left, right = read_tensors(tmp_path / "run" / folder), read_tensors(tmp_path / "alone" / folder)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.allclose(left[key], right[key], atol=1e-4), key


def test_bf16_is_inside_the_training_call_only() -> None:
    """The model multiplies in bfloat16; weights, their gradients and the loss are float32."""
    seen: dict[str, torch.dtype] = {}
    trainer = tiny_trainer(tiny_config(precision="bf16"))
    for name in ("transformer.blocks.0.spatial_attention.qkv", "head.output"):
        layer = trainer.model.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    parts = trainer._backward()
    assert list(seen.values()) == [torch.bfloat16] * 2 and parts.dtype == torch.float32
    assert {value.grad.dtype for value in trainer.model.parameters() if value.grad is not None} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_trains_like_fp32(tmp_path: Path) -> None:
    losses = [[line["mse"] for line in _trained(tmp_path / precision, precision)] for precision in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def _trained(run: Path, precision: str) -> list[dict[str, float]]:
    train_tiny(run, tiny_config(precision=precision))
    return told(run)


def test_one_process_needs_no_launcher() -> None:
    with joined("cpu") as process:
        assert (process.rank, process.world, process.is_first) == (0, 1, True)
        assert process.sum(1.5, 2.0) == [1.5, 2.0]
        model = tiny_model(tiny_config())
        assert prepare(model, "fp32", process) is model
