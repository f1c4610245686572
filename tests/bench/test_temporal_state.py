"""Break-even of cache and state: what is compared is what it says, and a state that is one frame late has no number."""

import pytest
import torch

from magi.bench.case import OURS, Setting
from magi.bench.models import small_model
from magi.bench.runner import run_case
from magi.bench.suite import choose
from magi.bench.temporal_state import FRAMES, SMOKE_IN_VIEW, ViewedFrames
from magi.model.temporal.gated_linear import LinearState

SMOKE = Setting(torch.device("cpu"), smoke=True, rounds=1)


def test_bytes_of_a_cache_grow_with_the_frames_in_view_and_those_of_a_state_do_not() -> None:
    (case,) = choose(["cpu.state"])
    record = run_case(case, SMOKE)
    assert record["status"] == "measured", record.get("traceback", record.get("reason"))
    shapes, sizes = record["shapes"], record["shapes"]["bytes"]
    assert shapes["frames in view"] == list(SMOKE_IN_VIEW)
    few, many = (sizes[f"cache of {known} frames"] for known in SMOKE_IN_VIEW)
    a_frame = 2 * shapes["blocks"] * shapes["positions"] * shapes["width"] * 4
    assert many - few == (SMOKE_IN_VIEW[1] - SMOKE_IN_VIEW[0]) * a_frame
    assert sizes[OURS] == small_model("smoke", SMOKE.device, temporal="gated_linear").new_cache(1, 9999).nbytes
    timed = {name.removeprefix("layer us, ") for name in record["metrics"] if name.startswith("layer us, ")}
    assert timed == sizes.keys() == record["candidates"].keys()


@pytest.mark.parametrize("temporal", ["softmax", "gated_linear"])
def test_every_round_begins_with_the_same_frames_in_view(temporal: str) -> None:
    with torch.inference_mode():
        viewed = ViewedFrames(small_model("smoke", SMOKE.device, temporal=temporal), 5)
        for _ in range(3):
            viewed.again()
            viewed.add()
            assert viewed.sampler.history.cache.length == 5 + FRAMES


def test_a_state_that_is_one_frame_late_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LinearState.advance

    def late(self: LinearState, frames: int) -> None:
        if self.length:
            plain(self, frames)
        else:
            self.length += frames

    monkeypatch.setattr(LinearState, "advance", late)
    (case,) = choose(["cpu.state"])
    record = run_case(case, SMOKE)
    assert record["status"] == "no parity" and "gated_linear" in record["reason"]
