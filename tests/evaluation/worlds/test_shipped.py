"""The shipped platform model answers to the keys: a short form of ``runs/world.sh``'s evaluation."""

import numpy as np
import torch

from magi.data.worlds.worlds import find_world, play_clip
from magi.evaluation.worlds.ground_truth import PlayedClip, measure, read_videos, residual_limit
from magi.files import SHIPPED
from magi.sampling.pipeline import MagiPipeline

CLIPS, FRAMES, CONTEXT = 6, 28, 4
WORLD = find_world("platform")


def real_clips() -> list[PlayedClip]:
    clips = []
    for number in range(CLIPS):
        actions, states = play_clip(WORLD, 7, number, FRAMES)
        video_THWC = np.stack([WORLD.draw(state) for state in states])
        clips.append(PlayedClip("platform", video_THWC, (0, *actions[1:]), tuple(states)))
    return clips


def test_the_shipped_model_obeys_its_actions_and_no_others() -> None:
    clips, pipe = real_clips(), MagiPipeline.from_pretrained("platform")
    real_BTHWC = np.stack([clip.video_THWC for clip in clips])
    dream_BTHWC = pipe(
        frames=FRAMES,
        context=torch.from_numpy(real_BTHWC[:, :CONTEXT]),
        actions=np.array([clip.actions for clip in clips]),
        seeds=range(CLIPS),
    ).video_BTHWC.numpy()
    reconstructed_BTHWC = pipe.vae.decode(pipe.vae.encode(torch.from_numpy(real_BTHWC))).numpy()
    limit = residual_limit(read_videos(WORLD, reconstructed_BTHWC))
    curves = measure(WORLD, dream_BTHWC, read_videos(WORLD, dream_BTHWC), clips, limit)
    control, shuffled = (curves[name][:, CONTEXT:].mean() for name in ("control", "control_shuffled"))
    assert control > 0.9 and control - shuffled > 0.3, (control, shuffled)
    assert curves["position_error"][:, CONTEXT:12].mean() < 4 and curves["alive"].mean() > 0.8


def test_the_shipped_model_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED["platform"].rglob("*") if path.is_file()) < 15e6
