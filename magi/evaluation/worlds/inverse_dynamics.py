"""Inverse dynamics: which action led from one frame to the next, read from pixels by a small network trained here.

For recorded games, which have no simulator to ask (as in VPT, Baker et al. 2022, arXiv 2206.11795). Beside the frame
itself the network sees how the frames around it differ, also the next two: what is pushed may move only a frame later.
Knows no models and no files.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from magi.seeding import torch_generator

BEFORE, AFTER = 2, 2
"""Frames that are seen before and after the one that an action led to; at the ends of a video the last one again."""
STEPS, BATCH, LEARNING_RATE = 2000, 64, 2e-3
_WIDTHS = (32, 64, 64, 64)


class InverseDynamics(nn.Module):
    """windows_BFHWC (uint8, F = BEFORE + 1 + AFTER) -> logits_BA of the action that led to the middle frame."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3 * (BEFORE + 1 + AFTER)
        for width in _WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, actions))

    def forward(self, windows_BFHWC: Tensor) -> Tensor:
        frames_BFHWC = windows_BFHWC.float() / 127.5 - 1
        changes_BFHWC = frames_BFHWC.diff(dim=1)
        seen_BFHWC = torch.cat([frames_BFHWC[:, BEFORE : BEFORE + 1], 4 * changes_BFHWC], dim=1)
        logits_BA: Tensor = self.layers(seen_BFHWC.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous())
        return logits_BA

    @torch.no_grad()
    def read(self, video_BTHWC: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The action_BT that led to each frame; that of the first frame means nothing."""
        self.eval()
        frames = video_BTHWC.shape[1]
        rows = [
            self(_windows(video_THWC[None], np.zeros(frames, np.int64), np.arange(frames)))
            for video_THWC in video_BTHWC
        ]
        return torch.stack(rows).argmax(-1).numpy()


def train_inverse_dynamics(
    video_BTHWC: NDArray[np.uint8],
    action_BT: NDArray[np.int64],
    actions: int,
    seed: int = 0,
    steps: int = STEPS,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> InverseDynamics:
    """Train on real videos and what was pressed in them; the same for the same arguments, on one machine.

    Rare actions come as often as frequent ones. ``on_step`` is called with (steps done, steps).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseDynamics(actions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    generator, led_N = torch_generator("inverse dynamics", seed), action_BT[:, 1:].ravel()
    weights_N = torch.from_numpy(1 / np.bincount(led_N)[led_N])
    for step in range(steps):
        places = torch.multinomial(weights_N, BATCH, replacement=True, generator=generator).numpy()
        clip, frame = np.divmod(places, action_BT.shape[1] - 1)
        windows, target = _windows(video_BTHWC, clip, frame + 1), torch.from_numpy(led_N[places])
        loss = functional.cross_entropy(model(windows), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
    return model.eval()


def _windows(video_BTHWC: NDArray[np.uint8], clip_N: NDArray[np.int64], frame_N: NDArray[np.int64]) -> Tensor:
    """Windows around frames, each of one clip."""
    seen_NF = frame_N[:, None] + np.arange(-BEFORE, AFTER + 1)
    return torch.from_numpy(video_BTHWC[clip_N[:, None], seen_NF.clip(0, video_BTHWC.shape[1] - 1)])
