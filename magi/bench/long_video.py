"""Whether a frame costs the same however long a video is: eight frames after 100 in a sliding window, eight after 10.

The window slides once in every ``window_keep`` frames, so as many are timed together: both sides see the same lengths
of the cache and one slide, and what is left to differ is the length of the video.
"""

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.models import in_format, paper_model, small_model
from magi.bench.sampling import EXACT_LIMIT, make_ours, random_frame, shapes_of
from magi.config import SamplingConfig
from magi.model.magi import Magi

EARLY, LATE = 10, 100
CONFIG = SamplingConfig(iterations=8, steps=5, guidance=3.0, longer="window", window_keep=8)


class Rollout:
    """A video without end that can begin anew after any number of random frames."""

    def __init__(self, model: Magi) -> None:
        self.ours = make_ours(model, CONFIG, 1, known=0, frames=LATE + 2 * CONFIG.window_keep)

    def start(self, frames: int) -> Tensor:
        """Forget everything, then observe ``frames`` random frames one by one; tokens_BTNC of those in view."""
        past, observed = self.ours.past, [random_frame(self.ours.model, 1) for _ in range(frames)]
        past.cache.clear()
        past.recent_BTNC = None
        for tokens_BTNC in observed:
            past.observe(tokens_BTNC)
        return torch.cat(observed[-past.cache.length :], dim=1)

    def advance(self) -> None:
        """Make and observe as many frames as lie between two slides of the window."""
        for _ in range(CONFIG.window_keep):
            self.ours.past.observe(self.ours.frame()[:, None])


@torch.inference_mode()
def late_frame_parity(model: Magi) -> Parity:
    """A late frame against the same made by a sampler that was given the frames in view and nothing before them."""
    exact = in_format(model, torch.float32)
    late, fresh = Rollout(exact), Rollout(exact)
    fresh.ours.past.observe(late.start(LATE))
    allowed = EXACT_LIMIT[model.mask_token.device.type]
    return Parity("float32 frame", relative_error(late.ours.frame(), fresh.ours.frame()), allowed)


def _long_video(setting: Setting) -> Trial:
    if setting.device.type == "cuda":
        model = paper_model(setting)
    else:
        model = small_model("smoke" if setting.smoke else "tiny", setting.device)
    rollout = Rollout(model)
    advance = torch.inference_mode()(rollout.advance)

    def side(name: str, frames: int) -> Contender:
        return Contender(name, advance, before=torch.inference_mode()(lambda: rollout.start(frames)))

    return Trial(
        (side(OURS, LATE), side("early", EARLY)),
        check=lambda: late_frame_parity(model),
        units=CONFIG.window_keep,
        metrics=lambda seconds: {"late over early": seconds[OURS] / seconds["early"]},
        shapes=shapes_of(rollout.ours, CONFIG)
        | {"frames before": {OURS: LATE, "early": EARLY}, "window": model.config.frames, "frames": CONFIG.window_keep},
    )


_GOALS = (Goal("late over early", 1.05, 1.02, smaller=True),)
CASES = (
    Case(
        "sample.long",
        "cuda",
        "a frame of a long video, 8 from frame 101 against 8 from 11",
        "frame",
        _long_video,
        _GOALS,
        0.3,
    ),
    Case(
        "cpu.long",
        "cpu",
        "a frame of a long video, 8 from frame 101 against 8 from 11",
        "frame",
        _long_video,
        _GOALS,
        0.3,
    ),
)
