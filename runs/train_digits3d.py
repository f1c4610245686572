"""Trains digits3d, the feature network of built-in videos that is shipped with the package.

python runs/train_digits3d.py              about six minutes on two cores; --help for the options
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from magi.data.moving_digits import CLASSES, digit_video
from magi.evaluation.moving_digits.digits3d import DIMENSION, FRAMES, SHIPPED, SIZE, Digits3d
from magi.files import atomic_write, write_json
from magi.weights import read_json, sha256

TRAINING_SEED, HELD_OUT_SEED = 72_001, 72_002
_VIDEO_FRAMES = 64  # frames of a training video that clips are cut from
_INTERVALS = (1, 2)
_TOP_SPEED = 4.8  # pixels a frame of a clip: the fastest digit at interval 2


@dataclass(frozen=True)
class Digits3dCard:
    """How the network was trained, and how well it does on digits of a seed it was not trained on."""

    seed: int
    videos: int
    steps: int
    batch: int
    learning_rate: float
    held_out_seed: int
    held_out_clips: int
    class_accuracy: float
    direction_accuracy: float
    """Share of first and last steps whose direction is within 22.5 degrees of the truth."""
    direction_error_degrees: float
    """Median."""
    speed_error: float
    """Mean absolute, in pixels a frame of the clip (truth: 0.8 to 4.8)."""


@dataclass(frozen=True)
class DigitClips:
    """Clips with their truth: class, unit steps (x, y) at the first and last step, speed in pixels a frame."""

    video_BTHW: Tensor
    label_B: Tensor
    steps_B4: Tensor
    speed_B: Tensor


@dataclass(frozen=True)
class Answers:
    """What the network says of clips."""

    class_BC: Tensor
    steps_B4: Tensor
    speed_B: Tensor


def answers_of(model: Digits3d, hidden_BH: Tensor) -> Answers:
    """What the network says, read from its hidden layer."""
    read_BA = model.answers(functional.relu(hidden_BH))
    count = len(CLASSES)
    return Answers(read_BA[:, :count], read_BA[:, count : count + 4], read_BA[:, count + 4] * _TOP_SPEED)


@torch.no_grad()
def fit_directions(model: Digits3d, video_BTHWC: Tensor) -> None:
    """Choose the directions of the features: the main ones over clips, scaled by 1 / sqrt(standard deviation)."""
    hidden_BH = torch.cat([model.hidden(part).cpu() for part in video_BTHWC.split(50)]).double()
    values_H, vectors_HH = torch.linalg.eigh(torch.cov(hidden_BH.T))
    # eigh sorts the main directions last; their signs are arbitrary and do not matter to a distance
    scaled_HD = vectors_HH[:, -DIMENSION:] * values_H[-DIMENSION:].clamp_min(1e-12) ** -0.25
    model.centre_H.copy_(hidden_BH.mean(0))
    model.directions_HD.copy_(scaled_HD)


@dataclass(frozen=True)
class DigitVideos:
    """Videos with the exact path of the digit in each, its class and speed."""

    video_VTHW: Tensor
    path_VT2: Tensor
    label_V: Tensor
    speed_V: Tensor

    def clips(self, picked: Tensor, rng: np.random.Generator) -> DigitClips:
        """One clip of each picked video, interval 1 or 2, random start, half of them played backwards."""
        cut, steps, speeds = [], [], []
        for video in picked.tolist():
            interval = int(rng.choice(_INTERVALS))
            start = int(rng.integers(_VIDEO_FRAMES - (FRAMES - 1) * interval))
            times = torch.arange(FRAMES) * interval + start
            if rng.random() < 0.5:
                times = times.flip(0)
            path_T2 = self.path_VT2[video, times]
            ends_22 = torch.stack([path_T2[1] - path_T2[0], path_T2[-1] - path_T2[-2]])
            cut.append(self.video_VTHW[video, times])
            steps.append(functional.normalize(ends_22, dim=1).flatten())
            speeds.append(self.speed_V[video] * interval)
        return DigitClips(torch.stack(cut), self.label_V[picked], torch.stack(steps), torch.stack(speeds).float())


def draw_videos(seed: int, videos: int, progress: Callable[[int, int], None] | None = None) -> DigitVideos:
    """Draw ``videos`` built-in videos of one digit, to cut clips from."""
    video_VTHW = torch.empty(videos, _VIDEO_FRAMES, SIZE, SIZE, dtype=torch.uint8)
    paths, labels, speeds = [], [], []
    for number in range(videos):
        drawn = digit_video(seed, number, SIZE, _VIDEO_FRAMES)
        video_VTHW[number] = torch.from_numpy(drawn.video_THWC[..., 0])
        paths.append(torch.from_numpy(drawn.centroids_GT2[0]))
        labels.append(drawn.label)
        speeds.append(math.hypot(*drawn.glyphs[0].velocity))
        if progress is not None and (number + 1) % 250 == 0:
            progress(number + 1, videos)
    return DigitVideos(video_VTHW, torch.stack(paths).float(), torch.tensor(labels), torch.tensor(speeds))


def train_digits3d(
    seed: int = TRAINING_SEED,
    videos: int = 3000,
    steps: int = 1500,
    batch: int = 32,
    learning_rate: float = 2e-3,
    held_out_clips: int = 500,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Digits3d, Digits3dCard]:
    """Train from scratch on clips of ``videos`` videos of ``seed``; deterministic on one machine.

    ``progress`` is called with (stage, done, all). Raises ``ValueError`` for the seed that accuracy is measured on.
    """
    if seed == HELD_OUT_SEED:
        raise ValueError(f"seed {seed} is reserved for the held-out digits; train on another")
    on_progress = progress or (lambda stage, done, total: None)
    source = draw_videos(seed, videos, lambda done, total: on_progress("drawing", done, total))
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Digits3d().to(torch.device(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for step in range(steps):
        clips = source.clips(torch.randint(videos, (batch,), generator=generator), rng)
        loss = _loss(model, clips, device, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            on_progress(f"loss {loss.item():.3f}, step", step + 1, steps)
    model.to("cpu").eval()
    clips = source.clips(torch.arange(videos), np.random.default_rng(seed + 1))
    fit_directions(model, clips.video_BTHW[..., None].expand(-1, -1, -1, -1, 3))
    accuracy = held_out_accuracy(model, held_out_clips)
    card = Digits3dCard(seed, videos, steps, batch, learning_rate, HELD_OUT_SEED, held_out_clips, **accuracy)
    return model, card


def _loss(model: Digits3d, clips: DigitClips, device: str, generator: torch.Generator) -> Tensor:
    """Cross entropy of the class, squared error of directions and speed; a little noise, as codecs leave."""
    planes_BTHW = clips.video_BTHW.float() / 255
    amplitude_B = torch.rand(len(planes_BTHW), generator=generator) * 0.03
    planes_BTHW = planes_BTHW + amplitude_B[:, None, None, None] * torch.randn(planes_BTHW.shape, generator=generator)
    answers = answers_of(model, model(planes_BTHW[:, None].expand(-1, 3, -1, -1, -1).to(device)))
    return (
        functional.cross_entropy(answers.class_BC, clips.label_B.to(device))
        + 2 * functional.mse_loss(answers.steps_B4, clips.steps_B4.to(device))
        + functional.mse_loss(answers.speed_B, clips.speed_B.to(device))
    )


@torch.no_grad()
def held_out_accuracy(model: Digits3d, clips: int = 500) -> dict[str, float]:
    """Figures of ``Digits3dCard`` on one clip of each of ``clips`` videos of ``HELD_OUT_SEED``."""
    source = draw_videos(HELD_OUT_SEED, clips)
    truth = source.clips(torch.arange(clips), np.random.default_rng(HELD_OUT_SEED))
    video_BTHWC = truth.video_BTHW[..., None].expand(-1, -1, -1, -1, 3)
    answers = answers_of(model, torch.cat([model.hidden(part) for part in video_BTHWC.split(50)]))
    given_B22, true_B22 = answers.steps_B4.view(-1, 2, 2), truth.steps_B4.view(-1, 2, 2)
    cosine_B2 = functional.cosine_similarity(given_B22, true_B22, dim=-1).clamp(-1, 1)
    degrees_B2 = cosine_B2.acos().rad2deg()
    return {
        "class_accuracy": _rounded((answers.class_BC.argmax(1) == truth.label_B).float().mean()),
        "direction_accuracy": _rounded((degrees_B2 < 22.5).float().mean()),
        "direction_error_degrees": _rounded(degrees_B2.median()),
        "speed_error": _rounded((answers.speed_B - truth.speed_B).abs().mean()),
    }


def _rounded(value: Tensor) -> float:
    return round(float(value), 4)


def save_digits3d(model: Digits3d, card: Digits3dCard, path: Path = SHIPPED) -> None:
    """Write the weights to ``path`` and the card as JSON beside them."""
    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    write_json(path.with_suffix(".json"), asdict(card) | {"sha256": sha256(path)})


def load_card(path: Path = SHIPPED) -> Digits3dCard:
    """The card of weights; ``CheckpointError`` where it is damaged."""
    values = read_json(path.with_suffix(".json"))
    return Digits3dCard(**{key: value for key, value in values.items() if key != "sha256"})


def _main() -> None:
    parser = argparse.ArgumentParser(description="train digits3d")
    parser.add_argument("--seed", type=int, default=TRAINING_SEED)
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    model, card = train_digits3d(
        options.seed,
        options.videos,
        options.steps,
        device=options.device,
        progress=lambda stage, done, total: print(f"{stage} {done} of {total}", flush=True),
    )
    save_digits3d(model, card, options.out)
    print(json.dumps(asdict(card), indent=2))


if __name__ == "__main__":
    _main()
