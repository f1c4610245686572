"""CLIP scores against the library's own embeddings, with a small CLIP model of random weights ('make test-text')."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from magi.errors import CheckpointError
from magi.evaluation.text.clip_score import CLIP_FRAMES, ClipScore
from tests.text.test_frozen import needs_transformers, write_random

TEXTS = ["a cat", "a dog a", "dog"]
SIZE = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import CLIPConfig

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=shape | {"vocab_size": 8, "max_position_embeddings": 5, "eos_token_id": 4, "pad_token_id": 0},
        vision_config=shape | {"image_size": SIZE, "patch_size": 4},
        projection_dim=8,
    )
    return write_random(tmp_path / "clip", "CLIPModel", config)


def some_videos(size: int = 24) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 10, size, size, 3), dtype=np.uint8)


@needs_transformers
def test_a_score_is_the_cosine_of_the_librarys_embeddings(folder: Path) -> None:
    """Frames have the model's size, so nothing is resized."""
    from transformers import AutoTokenizer, CLIPModel

    video_BTHWC = some_videos(SIZE)
    scores_B = ClipScore.load(str(folder)).scores(video_BTHWC, TEXTS)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for video_THWC, text, score in zip(video_BTHWC, TEXTS, scores_B, strict=True):
        images = torch.tensor((video_THWC[[0, 3, 6, 9]] / 255 - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            made = model(**tokenizer(text, return_tensors="pt"), pixel_values=images.permute(0, 3, 1, 2))
        expected = 100 * torch.cosine_similarity(made.image_embeds, made.text_embeds).mean()
        assert len(images) == CLIP_FRAMES and score == pytest.approx(float(expected), abs=1e-3)
    assert len({round(float(score), 3) for score in scores_B}) == 3


@needs_transformers
def test_frames_are_resized_and_cropped_and_long_texts_are_cut(folder: Path) -> None:
    clip = ClipScore.load(str(folder))
    large = some_videos()
    flat = np.full_like(large, 90)
    assert clip.scores(flat, TEXTS) == pytest.approx(clip.scores(flat[:, :, :SIZE, :SIZE], TEXTS), abs=1e-3)
    wide = np.concatenate([np.zeros_like(large), large, np.zeros_like(large)], axis=3)
    assert clip.scores(wide, TEXTS) == pytest.approx(clip.scores(large, TEXTS), abs=3)
    assert clip.scores(large, ["a cat dog a dog cat cat"] * 3) == pytest.approx(
        clip.scores(large, ["a cat dog a dog"] * 3)
    )


@needs_transformers
def test_the_id_is_that_of_the_weights_and_bad_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    first = ClipScore.load(str(folder)).id
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "visual_projection.weight"
    save_file(state | {name: state[name] + 0.1}, weights)
    assert first.startswith("clip-") and ClipScore.load(str(folder)).id != first
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, weights)
    with pytest.raises(CheckpointError, match=f"non-finite weights in {name}"):
        ClipScore.load(str(folder))
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no .safetensors; other weights are refused"):
        ClipScore.load(str(folder))


@needs_transformers
def test_what_is_no_clip_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; expected that of a CLIP model, or a hub id"):
        ClipScore.load(str(tmp_path / "none"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip_text_model"}))
    with pytest.raises(ValueError, match=r"no CLIP model \(a clip_text_model\)"):
        ClipScore.load(str(folder))


def test_without_the_library_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"a CLIP score needs transformers; pip install -e '.\[text\]'"):
        ClipScore.load(str(tmp_path))
