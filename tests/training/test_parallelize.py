import shutil
from pathlib import Path

import pytest
import torch

from magi.files import CHECKPOINTS_FOLDER
from magi.training.parallelize import init_distributed, parallelize
from magi.training.run_folder import STOPPED_FILE
from magi.weights import read_tensors, step_folder
from tests.fakes import launched
from tests.fakes.training_runs import (
    BROKEN,
    EVEN,
    TOGETHER,
    Clips,
    changed,
    kept_bytes,
    tiny_config,
    tiny_model,
    tiny_trainer,
    told,
    train_tiny,
)

BEGUN = changed(EVEN, steps=3)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, in one launch."""
    folder = tmp_path_factory.mktemp("together")
    train_tiny(folder / "begun-alone", BEGUN, Clips(BROKEN))
    code = launched.exit_code(launched.torchrun("tests.fakes.training_runs", str(folder), log=folder / "launched.log"))
    said = (folder / "launched.log").read_text()
    assert code == 0 and "Warning" not in said, said
    return folder


@pytest.fixture(scope="module")
def alone(together: Path) -> Path:
    train_tiny(together / "alone", EVEN, Clips(BROKEN))
    return together / "alone"


def same_run(left: Path, right: Path, relative: float = 1e-4, absolute: float = 1e-4) -> None:
    """Same losses, gradient norms, skipped steps, weights, averages and moments, up to the order of sums."""
    assert [line["step"] for line in told(left)] == [line["step"] for line in told(right)] == list(range(1, 7))
    for one, other in zip(told(left), told(right), strict=True):
        assert one == (other if one.get("skipped") else pytest.approx(other, rel=relative))
    for name in ("model", "ema", "optimizer"):
        file = Path(CHECKPOINTS_FOLDER) / step_folder(6) / f"{name}.safetensors"
        ours, theirs = read_tensors(left / file), read_tensors(right / file)
        assert ours.keys() == theirs.keys() and ours
        for key in ours:
            assert torch.allclose(ours[key], theirs[key], atol=absolute), key


def test_two_processes_equal_one(together: Path) -> None:
    """From unequal shares, over a resume; the broken clip of one process concerns both."""
    train_tiny(together / "unequal-alone", TOGETHER, Clips(BROKEN))
    same_run(together / "unequal", together / "unequal-alone")
    assert told(together / "unequal")[1] == {"step": 2, "skipped": True, "samples": [5, 6, 7, 8, 9]}


def test_fsdp_equals_ddp_equals_one_process(together: Path, alone: Path) -> None:
    """Over a resume and a skipped step; files hold whole tensors."""
    same_run(together / "ddp", alone)
    same_run(together / "fsdp", alone)
    assert told(together / "fsdp")[1] == {"step": 2, "skipped": True, "samples": [6, 7, 8, 9, 10, 11]}


def test_recomputing_and_sharding_together_change_nothing(together: Path, alone: Path) -> None:
    same_run(together / "recomputed", alone)


def test_a_run_goes_on_with_more_and_with_fewer_processes(together: Path, alone: Path) -> None:
    """Begun by one process and continued by two that share the model; begun by those two and continued by one."""
    same_run(together / "begun-alone", alone)
    run = together / "continued-alone"
    shutil.copytree(together / "fsdp", run)
    shutil.rmtree(run / CHECKPOINTS_FOLDER / step_folder(6))
    train_tiny(run, EVEN, Clips(BROKEN))
    same_run(run, alone)


def test_bf16_of_fsdp_is_that_of_ddp(together: Path, alone: Path) -> None:
    same_run(together / "fsdp-bf16", together / "ddp-bf16", relative=1e-3, absolute=5e-3)
    with pytest.raises(AssertionError):
        same_run(together / "fsdp-bf16", alone)
    stored = read_tensors(together / "fsdp-bf16" / CHECKPOINTS_FOLDER / step_folder(6) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_samples_of_a_sharded_run_come_from_the_whole_average(together: Path) -> None:
    """At steps 3 and 6, in the first process alone."""
    assert sorted(file.name for file in together.glob("sampled-*")) == [
        "sampled-3-0.safetensors",
        "sampled-6-0.safetensors",
    ]
    sampled = read_tensors(together / "sampled-6-0.safetensors")
    saved = read_tensors(together / "fsdp" / CHECKPOINTS_FOLDER / step_folder(6) / "ema.safetensors")
    assert sampled.keys() == saved.keys() and all(torch.equal(sampled[name], saved[name]) for name in saved)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_wish_of_one_process_stops_all(parallel: str, together: Path) -> None:
    """A signal (ddp) or the stop file (fsdp): all stop after the same step, and the folder says so."""
    run = together / f"stopped-{parallel}"
    for rank in (0, 1):
        assert "stopped after step 3, state saved" in run.with_name(f"{run.name}-{rank}.txt").read_text()
    assert (run / STOPPED_FILE).read_text() == "3\n" and (run / CHECKPOINTS_FOLDER / step_folder(3)).is_dir()


def test_uneven_shares_are_refused_by_fsdp(together: Path) -> None:
    for rank in (0, 1):
        assert "training.batch 5: fsdp needs a multiple" in (together / f"refused-{rank}.txt").read_text()


def test_compiled_blocks_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block and the head are compiled on their own, and recomputed if asked for; names of weights stay."""
    compiled: list[str] = []
    plain = torch.nn.Module.compile

    def without_code_generation(module: torch.nn.Module, **options: bool) -> None:
        compiled.append(type(module).__name__)
        plain(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_code_generation)
    whole = changed(EVEN, micro_batch=0)
    train_tiny(tmp_path / "compiled", changed(whole, compile=True, activation_checkpointing=True))
    train_tiny(tmp_path / "plain", whole)
    same_run(tmp_path / "compiled", tmp_path / "plain")
    assert compiled == ["Block", "Block", "DiffusionHead"]


def test_recomputation_keeps_block_inputs_only() -> None:
    """Less is kept for backward, and gradients are the same, dropout included."""
    kept, gradients = [], []
    for recompute in (False, True):
        config = tiny_config(activation_checkpointing=recompute, model={"dropout": 0.3, "blocks": 3})
        trainer = tiny_trainer(config)
        generator = torch.Generator().manual_seed(5)
        for value in trainer.model.parameters():  # the head begins at zero, and passes no gradient to the blocks
            value.data.normal_(std=0.1, generator=generator)
        with kept_bytes() as seen:
            trainer._backward()
        kept.append(seen.total)
        gradients.append([value.grad for value in trainer.model.parameters() if value.grad is not None])
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


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
    with init_distributed("cpu") as process:
        assert (process.rank, process.world, process.is_main) == (0, 1, True)
        assert process.sum(1.5, 2.0) == [1.5, 2.0]
        model = tiny_model(tiny_config())
        assert parallelize(model, tiny_config().training, process) is model
