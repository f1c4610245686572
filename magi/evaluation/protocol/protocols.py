"""Evaluation protocols as data: everything that two scores must share before they can be compared, under a name.

A Frechet video distance is a function of the split, the choice of real clips, their frame interval, every resize, the
number of clips and the network; published numbers differ by factors for reasons no larger than these. A protocol fixes
all of them. What the paper leaves open is a decision, and a variant has the other choice. Knows no files and no models.
"""

from typing import Literal

from pydantic import Field

from magi.config import Section
from magi.errors import hint

ClipSampling = Literal["one_window", "centre_window", "random_window", "random_clip", "windows", "grid", "in_order"]


class EvaluationProtocol(Section):
    """One way to score videos; every field is on the protocol card."""

    name: str = Field(description="as on the command line; a variant has a longer name")
    source: str = Field(description="where it is from, and what that leaves open")
    split: str = Field(description="which videos the data folder is to hold")
    frames: int = Field(16, ge=1, description="frames of a clip, real and generated, the context included")
    interval: int = Field(1, ge=1, description="frames between the frames of a real clip; given to the model")
    clip_sampling: ClipSampling = Field(
        "one_window",
        description="real clips: one_window (distinct videos, a random window each), centre_window (the middle one), "
        "random_window (random video, window and crop), random_clip (every window of every video equally likely: long "
        "videos come more often), windows (of all that do not overlap), grid (windows x crops), "
        "in_order (the first frames of the first videos by number; no floor)",
    )
    windows: int = Field(2, ge=1, description="of a grid: windows spread evenly over a video")
    crops: int = Field(3, ge=1, description="of a grid: crops spread evenly along the longer side")
    crop: Literal["centre", "random", "grid", "squash"] = Field(
        "centre", description="where the square is cut; squash takes the whole frame and changes its shape"
    )
    read_size: int = Field(256, ge=1, description="height and width that real clips are resized to")
    read_filter: Literal["lanczos", "bicubic", "bilinear"] = Field("lanczos", description="antialiased, Pillow's")
    jpeg_quality: int = Field(0, ge=0, le=100, description="real frames pass through JPEG of this quality; 0 is none")
    score_size: int = Field(
        256, ge=1, description="height and width at which real and generated clips meet the network"
    )
    score_kernel: Literal["half_pixel", "tf1", "antialiased"] = Field(
        "half_pixel", description="bilinear kernel of the resize to score_size; only 'antialiased' antialiases"
    )
    context_frames: int = Field(
        0, ge=0, description="real frames that the model continues; 0 generates clips from nothing"
    )
    context: Literal["decoded", "ground_truth"] = Field(
        "decoded", description="context frames of a generated clip: out of the autoencoder, or the real ones"
    )
    context_set: Literal["real", "floor"] = Field(
        "real",
        description="whose clips are continued: the real ones that are scored against, as in the literature, or the "
        "floor's, so that a perfect model scores the floor",
    )
    labels: Literal["none", "real", "uniform"] = Field(
        "none", description="class given to the model: none, that of the real clip, or a uniform draw"
    )
    count: int = Field(2048, ge=1, description="clips a side and fold")
    folds: int = Field(1, ge=1, description="how many times, with other samples; 1 gives a bootstrap interval")
    network: Literal["i3d", "digits3d", "digit_classifier", "world_oracle", "inverse_dynamics"] = Field(
        "i3d",
        description="feature network; digit_classifier and world_oracle measure against the ground truth of built-in "
        "videos, inverse_dynamics against recorded actions; with the last two the model is given the clip's actions",
    )
    network_input: Literal["tats", "videogpt", "google", "magvit_train"] = Field(
        "tats", description="preprocessing of I3D: tats squashes by half-pixel, google and magvit_train by TF1 bilinear"
    )
    network_eps: Literal["published", "torch-port"] = Field(
        "published", description="epsilon of I3D's batch norms: 1e-3 of the published graph, 1e-5 of the torch ports"
    )
    table_seed: int = Field(0, ge=0, description="of the choice of real clips")

    @property
    def ground_truth(self) -> bool:
        """Whether clips are measured against exact states or recorded actions, and by no distance of features."""
        return self.network == "digit_classifier" or self.plays_actions

    @property
    def plays_actions(self) -> bool:
        """Whether the model is given the actions of the real clip."""
        return self.network in ("world_oracle", "inverse_dynamics")

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of real clips: those to score against, and those of the floor."""
        return ("real",) if self.clip_sampling == "in_order" else ("real", "floor")

    @property
    def one_per_video(self) -> bool:
        """Whether a set of real clips has one clip of each of its videos."""
        return self.clip_sampling in ("one_window", "centre_window")


def _variant(base: EvaluationProtocol, name: str, source: str, **changes: object) -> EvaluationProtocol:
    return EvaluationProtocol.model_validate(base.model_dump() | {"name": name, "source": source} | changes)


_UCF101 = EvaluationProtocol(
    name="ucf101-256-2048-s3",
    source="paper section 6 and appendix, UCF-101 unconditional: 2,048 real against 2,048 generated clips of 16 "
    "frames, real interval 3; 2,048 videos, a random window of each. The split is not stated: all 13,320 videos, "
    "as Latte trains; centre square, Lanczos",
    split="all",
    interval=3,
)
_UCF101_CLASS = EvaluationProtocol(
    name="ucf101-128-class-10k",
    source="paper section 6, class-conditional UCF-101 after MAGVIT (appendix B.3): train split 1, a random window "
    "and crop of a random video, 10,000 x 4 clips of 16 frames of 9,537 videos, so videos come several times and "
    "the floor shares them; labels those of the real clips, TF1 resize",
    split="trainlist01",
    clip_sampling="random_window",
    crop="random",
    read_size=128,
    read_filter="bilinear",
    score_size=128,
    labels="real",
    count=10_000,
    folds=4,
    network_input="magvit_train",
)
_UCF101_CLASS_ONE_FOLD = _variant(
    _UCF101_CLASS,
    "ucf101-128-class-10k-larp",
    "after LARP: 10,000 of all 16-frame windows that do not overlap, centre crop, antialiased resize, one fold",
    clip_sampling="windows",
    folds=1,
    crop="centre",
    network_input="tats",
)
_K600 = EvaluationProtocol(
    name="k600-64-f5-50k",
    source="paper section 6 and appendix, Kinetics-600: 5 frames continued to 16, 50,000 videos of the test set, a "
    "random window of each, interval 1, scored at 64 x 64. The set has no 100,000 videos: the floor takes those "
    "left over, then other windows of the same. Kernel to 64 and crop are not stated: half-pixel bilinear, centre "
    "square; the generated clip is scored whole, its context out of the autoencoder",
    split="test",
    read_size=256,
    read_filter="bilinear",
    score_size=64,
    context_frames=5,
    count=50_000,
)
_DIGITS3D = EvaluationProtocol(
    name="digits3d",
    source="this project: built-in videos of a seed of their own, a random window of each, 4 frames continued to "
    "16, features of digits3d",
    split="all",
    read_size=64,
    read_filter="bicubic",
    score_size=64,
    context_frames=4,
    context_set="floor",
    count=256,
    network="digits3d",
)
_DIGITS = EvaluationProtocol(
    name="digits",
    source="this project: built-in videos of a seed of their own, 4 frames continued to 104; class, position and "
    "brightness of the digit in every frame against the exact ones",
    split="all",
    frames=104,
    clip_sampling="in_order",
    read_size=64,
    read_filter="bicubic",
    score_size=64,
    context_frames=4,
    context="ground_truth",
    count=128,
    network="digit_classifier",
)
_WORLD = _variant(
    _DIGITS,
    "world",
    "this project: videos of a built-in world of a seed of their own, 4 frames continued for 256 under the same "
    "actions; control, position, things taken and survival by the world's oracle against the exact simulator",
    frames=260,
    network="world_oracle",
)
_GAME = _variant(
    _WORLD,
    "game",
    "this project: videos of a recorded game, 4 frames continued for 100 under the same actions, read from the dream "
    "by inverse dynamics, which is trained on other videos of the folder",
    frames=104,
    network="inverse_dynamics",
)
_ALL = (
    _UCF101,
    _variant(_UCF101, "ucf101-256-2048-s1", "as ucf101-256-2048-s3 at real interval 1", interval=1),
    _variant(_UCF101, "ucf101-256-2048-s3-17", "as ucf101-256-2048-s3 with 17 frames, for 3-D autoencoders", frames=17),
    _variant(
        _UCF101,
        "ucf101-256-2048-s3-jpeg",
        "as ucf101-256-2048-s3, after Latte: real frames pass through JPEG of quality 75, as its converter leaves them",
        jpeg_quality=75,
    ),
    _UCF101_CLASS,
    _variant(
        _UCF101_CLASS,
        "ucf101-128-class-10k-17",
        "as ucf101-128-class-10k with 17 frames, for 3-D autoencoders",
        frames=17,
    ),
    _UCF101_CLASS_ONE_FOLD,
    _variant(
        _UCF101_CLASS_ONE_FOLD,
        "ucf101-128-class-2048",
        "after TATS: 2,048 of all windows of the train split, so long videos come more often; uniform labels, "
        "half-pixel resize, epsilon 1e-5",
        clip_sampling="random_clip",
        labels="uniform",
        count=2048,
        network_eps="torch-port",
    ),
    _K600,
    _variant(
        _K600,
        "k600-64-f5-50k-17",
        "5 frames continued to 17, for the paper's 3-D autoencoder; clips chosen as by k600-64-f5-50k",
        frames=17,
    ),
    _variant(
        _K600,
        "k600-64-f5-50k-grid",
        "after MAGVIT (appendix B.3): 50,000 x 4 of 2 windows x 3 crops of every video of the validation split, at "
        "128, then 64 by TF1 bilinear; the floor shares videos",
        split="eval",
        clip_sampling="grid",
        crop="grid",
        read_size=128,
        folds=4,
        score_kernel="tf1",
        network_input="magvit_train",
    ),
    _variant(
        _K600,
        "k600-64-f5-50k-larp",
        "after LARP: 50,000 of all 16-frame windows of the validation split that do not overlap, 128 centre crop, then "
        "64 by antialiased bilinear, one fold",
        split="val",
        clip_sampling="windows",
        read_size=128,
        score_kernel="antialiased",
    ),
    _variant(
        _K600,
        "k600-64-f5-2048-omni",
        "after OmniTokenizer's released script: 2,048 train videos, 17 centre frames each, whole frame squashed",
        frames=17,
        split="train",
        clip_sampling="centre_window",
        crop="squash",
        read_size=64,
        count=2048,
        network_input="videogpt",
        network_eps="torch-port",
    ),
    _variant(_K600, "k600-64-f5-50k-given", "as k600-64-f5-50k with the real context frames", context="ground_truth"),
    _DIGITS,
    _WORLD,
    _GAME,
    _DIGITS3D,
    _variant(_DIGITS3D, "digits3d-s2", "as digits3d at interval 2", interval=2),
    _variant(_DIGITS3D, "digits3d-f1", "as digits3d from the first frame alone", context_frames=1),
)
PROTOCOLS: dict[str, EvaluationProtocol] = {one.name: one for one in _ALL}


def protocol(name: str) -> EvaluationProtocol:
    """The protocol called ``name``; a ``ValueError`` names the nearest."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{name}'; {hint(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def overridden(base: EvaluationProtocol, **changes: int | str | None) -> tuple[EvaluationProtocol, dict[str, object]]:
    """``base`` with the changes that are not None, and those changes: they go on the card and into the printed name."""
    given: dict[str, object] = {key: value for key, value in changes.items() if value is not None}
    different = {key: value for key, value in given.items() if value != getattr(base, key)}
    return EvaluationProtocol.model_validate(base.model_dump() | different), different
