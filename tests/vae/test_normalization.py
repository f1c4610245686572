"""Claims: statistics are those of all latents at once, as they are drawn; the file comes back or is refused."""

import json
from pathlib import Path

import pytest
import torch

from magi.errors import CheckpointError
from magi.vae.normalization import ChannelStatistics, Normalization, read_normalization, write_normalization

GOOD = Normalization(weights="cosmos-0", source="a test", mean=(0.25, -1.0), std=(2.0, 0.5))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pieces_of_any_size_give_the_statistics_of_the_whole() -> None:
    whole_BTCHW = 1000 + latents(6, 2, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    statistics = ChannelStatistics(3)
    for piece in (whole_BTCHW[:1], whole_BTCHW[1:5], whole_BTCHW[5, 0], whole_BTCHW[5, 1:]):
        statistics.add(piece)
    values_CN = whole_BTCHW.movedim(2, 0).flatten(1)
    assert statistics.mean == pytest.approx(values_CN.mean(1).tolist(), rel=1e-12)
    assert statistics.std == pytest.approx(values_CN.std(1, correction=0).tolist(), rel=1e-9)
    assert statistics.count == 6 * 2 * 4 * 5


def test_what_is_drawn_from_distributions_has_unit_variance_afterwards() -> None:
    mean_BTCHW, std_BTCHW = latents(20, 2, 2, 8, 8) * 0.5 + 3, torch.full((20, 2, 2, 8, 8), 1.2, dtype=torch.float64)
    statistics = ChannelStatistics(2)
    statistics.add(mean_BTCHW, std_BTCHW)
    drawn_BTCHW = mean_BTCHW + std_BTCHW * latents(20, 2, 2, 8, 8, seed=1)
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (statistics.mean, statistics.std))
    values_CN = ((drawn_BTCHW - mean_C11) / std_C11).movedim(2, 0).flatten(1)
    assert values_CN.mean(1).abs().max() < 0.06 and (values_CN.std(1) - 1).abs().max() < 0.05


def test_a_channel_that_never_changes_is_not_divided_by_zero() -> None:
    statistics = ChannelStatistics(1)
    statistics.add(torch.ones(1, 2, 1, 4, 4))
    assert statistics.mean == (1.0,) and statistics.std[0] > 0


def test_the_file_comes_back(tmp_path: Path) -> None:
    write_normalization(tmp_path / "new" / "normalization.json", GOOD)
    assert read_normalization(tmp_path / "new" / "normalization.json") == GOOD
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["normalization.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"std": [1.0]}, "mean has 2 numbers, std 1"),
        ({"std": [1.0, 0.0]}, "std must be positive"),
        ({"mean": [1.0, float("inf")]}, "must be finite"),
        ({"mean": [], "std": []}, "mean: "),
        ({"weights": None}, "weights: "),
        ({"sdt": 1}, "did you mean 'std'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(change: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "normalization.json"
    path.write_text(json.dumps(GOOD.model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"normalization.json: .*{said}") as caught:
        read_normalization(path)
    assert "\n" not in str(caught.value)
