"""The speed case of reading latents reads what training would read."""

from pathlib import Path

import pytest
import torch

from magi.bench.latents import DataSpeed, clips_per_second
from magi.cli.main import main
from magi.config import DataConfig
from magi.errors import DataError
from magi.latents.dataset import read_header
from tests.fakes.encoded_videos import CLIPS, CONFIG, encode_clip, make_index, some_spread, write


def test_the_command_measures_clips_of_the_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every frame: clips of the options; of chosen clips: those that were encoded."""
    index = make_index(tmp_path / "videos")
    write(index, tmp_path / "frames", spread=some_spread)
    write(index, tmp_path / "clips", CLIPS, encode_clip)
    words = ["bench", "data", "--seconds", "0.01", "--latents"]
    assert main([*words, str(tmp_path / "frames"), "--frames", "4", "--interval-max", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["drawn from the posterior", "its mean"]
    assert all("clips/s at best" in line and "0.75 KiB a clip" in line for line in lines)
    assert main([*words, str(tmp_path / "clips")]) == 0 and "0.375 KiB a clip" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "videos")]) == 3 and "holds no latents" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "frames"), "--seconds", "0"]) == 2
    assert "--seconds 0.0: expected more than 0" in capsys.readouterr().err


def test_a_word_less_bench_is_all_cases_and_not_the_list_of_its_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("magi.cli.bench.bench", asked.append)
    assert main(["bench"]) == 0 and main(["bench", "cpu"]) == 0
    assert asked == [[], ["cpu"]]


def test_the_speed_of_reading_is_of_clips_of_the_config(tmp_path: Path) -> None:
    write(make_index(tmp_path / "videos"), tmp_path / "out", spread=some_spread)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    for sampled in (False, True):
        speed = clips_per_second(tmp_path / "out", CONFIG.model_copy(update={"sample_posterior": sampled}), 0.01)
        assert (speed.bytes_per_clip, speed.sampled) == (4 * 3 * 4 * 4 * 4, sampled)
        assert speed.clips >= 20 and speed.clips_per_second >= speed.clips / speed.seconds
    assert torch.get_num_threads() == threads + 1, "as they were"
    torch.set_num_threads(threads)
    with pytest.raises(DataError, match="holds no latents"):
        clips_per_second(tmp_path / "videos", CONFIG, 0.01)
    with pytest.raises(ValueError, match="of 32x32 frames, data has 64x32"):
        clips_per_second(tmp_path / "out", CONFIG.model_copy(update={"height": 64}), 0.01)


def test_both_rates_are_of_clips_as_training_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the posterior, then its mean; frames and intervals as asked, or as the clips were chosen when encoded."""
    asked: list[tuple[object, ...]] = []

    def speed(folder: Path, config: DataConfig, seconds: float) -> DataSpeed:
        asked.append((config.sample_posterior, config.frames, config.interval_min, config.interval_max, seconds))
        return DataSpeed(1, 1, 1, 1, config.sample_posterior)

    monkeypatch.setattr("magi.bench.latents.clips_per_second", speed)
    index = make_index(tmp_path / "videos")
    write(index, tmp_path / "frames", spread=some_spread)
    write(index, tmp_path / "clips", CLIPS, encode_clip)
    words = ["bench", "data", "--seconds", "0.5", "--latents"]
    assert main([*words, str(tmp_path / "frames"), "--frames", "4", "--interval-max", "9"]) == 0
    assert main([*words, str(tmp_path / "clips"), "--frames", "4", "--interval-max", "9"]) == 0
    header = read_header(tmp_path / "clips")
    chosen = (header.frames, header.interval_min, header.interval_max)
    assert chosen != (4, 1, 9)
    assert asked == [(drawn, *one, 0.5) for one in ((4, 1, 9), chosen) for drawn in (True, False)]
