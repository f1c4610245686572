"""The speed case of reading latents reads what training would read."""

from pathlib import Path

import pytest
import torch

from magi.bench.data import clips_per_second
from magi.errors import DataError
from tests.encoded_videos import CONFIG, make_index, some_spread, write


def test_the_speed_of_reading_is_of_clips_of_the_config(tmp_path: Path) -> None:
    write(make_index(tmp_path / "videos"), tmp_path / "out", spread=some_spread)
    threads = torch.get_num_threads()
    for sampled in (False, True):
        speed = clips_per_second(tmp_path / "out", CONFIG.model_copy(update={"sample_posterior": sampled}), 0.01)
        assert (speed.bytes_per_clip, speed.sampled) == (4 * 3 * 4 * 4 * 4, sampled)
        assert speed.clips >= 20 and speed.clips_per_second >= speed.clips / speed.seconds
    assert torch.get_num_threads() == threads
    with pytest.raises(DataError, match="holds no latents"):
        clips_per_second(tmp_path / "videos", CONFIG, 0.01)
    with pytest.raises(ValueError, match="of 32x32 frames, data has 64x32"):
        clips_per_second(tmp_path / "out", CONFIG.model_copy(update={"height": 64}), 0.01)
