"""Named sizes and named whole configs.

A size is the shape of the transformer and its diffusion head alone; ``large`` is the paper's model (section 3:
20 blocks, hidden 1280, MLP 5120, 16 heads; head of 3 blocks, width 1024), the others keep its proportions as the
paper's smaller variants do (names and exact shapes are this project's). A preset is a whole config, one function
each, citing the table it scales down. Knows neither torch nor files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, TrainingConfig, VaeConfig
from magi.errors import hint

T = TypeVar("T")

SIZES: dict[str, dict[str, int]] = {
    "nano": {"width": 128, "blocks": 4, "heads": 4, "head_width": 128, "head_blocks": 2},
    "tiny": {"width": 192, "blocks": 4, "heads": 4, "head_width": 256, "head_blocks": 3},
    "small": {"width": 384, "blocks": 8, "heads": 6, "head_width": 512, "head_blocks": 3},
    "base": {"width": 768, "blocks": 12, "heads": 12, "head_width": 1024, "head_blocks": 3},
    "large": {"width": 1280, "blocks": 20, "heads": 16, "head_width": 1024, "head_blocks": 3},
}


def size(name: str, **settings: Any) -> ModelConfig:
    """The model config of a size, with ``settings`` for its other fields; a ``ValueError`` names the nearest size."""
    return ModelConfig(**{**_lookup(SIZES, name, "size"), **settings})


def digits() -> Config:
    """Ten classes of bouncing glyphs, 64x64, on two CPU cores in minutes.

    Scaled down from the paper's UCF-101 row (section 4: 256x256, 16 frames, batch 128, learning rate 1e-4 with
    10,000 warm-up steps, EMA 0.9999; section 5: 64 iterations, 100 denoising steps). Kept from it: 16 frames, the
    optimizer, mask ratios, 3 head blocks. Changed: tiny size, batch 8, a higher rate for the smaller model with a short
    warm-up and a cool-down, an EMA that fits thousands of steps, intervals 1..2, noise up to 0.35 (a glyph's speed is
    fractions of a pixel), half of the clips without their label (a continuation shows it), no dropout, one class token,
    4 iterations of 50 steps at temperature 0.7, observed frames at noise level 2, and a sliding window for endless
    videos. The shipped model was trained with more clips a step and more noise (runs/digits.sh).
    """
    return Config(
        data=DataConfig(
            root="build/digits", frames=16, height=64, width=64, interval_min=1, interval_max=2, sample_posterior=False
        ),
        vae=VaeConfig(name="small", weights="demo"),
        model=size("tiny", frames=16, classes=10, class_tokens=1, dropout=0.0, noise_max=0.35),
        training=TrainingConfig(
            steps=4500,
            batch=8,
            learning_rate=1e-3,
            warmup_steps=200,
            cooldown_steps=1100,
            ema_decay=0.999,
            precision="auto",
            class_dropout=0.5,
            log_every=20,
            checkpoint_every=250,
            sample_every=500,
        ),
        sampling=SamplingConfig(iterations=4, steps=50, temperature=0.7, noise_level=2, longer="window", window_keep=8),
    )


def world_platform() -> Config:
    """The platform world under its six actions (`magi data world platform`), 64x64 at 15 frames a second.

    As ``digits`` (not in the paper), with four masked views of a clip and one interval. What follows from an action is
    certain, so one iteration at a low temperature obeys better than several, whose later tokens follow errors of the
    first; guidance on the action loses fewer players (0.99 of the actions of 196 frames obeyed, against 0.93
    without). Made by runs/world.sh.
    """
    return Config(
        data=DataConfig(
            root="build/platform",
            frames=16,
            height=64,
            width=64,
            interval_min=1,
            interval_max=1,
            sample_posterior=False,
        ),
        vae=VaeConfig(name="small", weights="build/platform/vae"),
        model=size("nano", frames=16, actions=6, dropout=0.0, noise_max=0.35),
        training=TrainingConfig(
            steps=5200,
            batch=8,
            masked_views=4,
            diffusion_batch_mul=2,
            learning_rate=1e-3,
            warmup_steps=200,
            cooldown_steps=1500,
            ema_decay=0.999,
            precision="auto",
            log_every=20,
            checkpoint_every=250,
            sample_every=1000,
        ),
        sampling=SamplingConfig(
            iterations=1,
            steps=12,
            first_timestep=949,
            first_frame_steps=12,
            temperature=0.25,
            guidance=1.5,
            longer="window",
            window_keep=8,
        ),
    )


def world_paddle() -> Config:
    """The paddle world under its three actions (`magi data world paddle`), 32x32: as ``world_platform``, shorter."""
    config = world_platform()
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": "build/paddle", "height": 32, "width": 32}),
            "vae": VaeConfig(name="small", weights="build/paddle/vae"),
            "model": size("nano", frames=16, actions=3, dropout=0.0, noise_max=0.35),
            "training": config.training.model_copy(update={"steps": 3000, "cooldown_steps": 750}),
        }
    )


def world_maze() -> Config:
    """The maze under its six actions (`magi data world maze`), 64x64: as ``world_platform``, not trained yet.

    With 64 tokens a frame in place of 16: what a model of the maze is to keep is where every wall stands.
    """
    config = world_platform()
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": "build/maze"}),
            "vae": VaeConfig(name="small", weights="build/maze/vae"),
            "model": config.model.model_copy(update={"patch_size": 1}),
        }
    )


def digits_text() -> Config:
    """Moving digits from their captions (`magi data digits --captions`), 64x64, generated from nothing.

    As ``world_platform`` (not in the paper), with the text of a clip in four tokens in place of actions, and one view.
    A video from nothing begins with a frame that has none before it, of which a clip has one in sixteen: eight further
    masked views train it. A frame from nothing is drawn token by token (16 iterations) at temperature 1: drawn at once,
    or more narrowly, it is black. runs/text.sh trains on clips of three frames first, where most of what a text says is
    decided, and goes on from there.
    """
    world = world_platform()
    return world.model_copy(
        update={
            "data": world.data.model_copy(update={"root": "build/text/latents"}),
            "vae": VaeConfig(name="small", weights="demo"),
            "model": size("nano", frames=16, text_encoder="bytes", text_tokens=4, dropout=0.0, noise_max=0.35),
            "training": world.training.model_copy(
                update={"steps": 4000, "batch": 16, "masked_views": 1, "first_frame_views": 8, "sample_every": 500}
            ),
            "sampling": SamplingConfig(
                iterations=16, steps=50, noise_level=2, guidance=3.0, longer="window", window_keep=8
            ),
        }
    )


@dataclass(frozen=True)
class VideoSet:
    """Facts of a published data set: how many videos a preset trains on, and frames of a video on average."""

    videos: int
    frames: int
    source: str


# What the presets below do not set is the paper's by default: AdamW, warm-up, EMA, mask ratios, intervals 1..25, noise
# up to 0.7, null class in a tenth of the clips, 64 iterations of 100 steps.

# Lengths: UCF-101 has 1,600 minutes at 25 frames a second. Kinetics clips last 10 s, at 25 to 30.
UCF101 = VideoSet(13_320, 180, "UCF-101, all videos (Soomro et al., arXiv 1212.0402)")
UCF101_SPLIT_1 = VideoSet(9_537, 180, "UCF-101, trainlist01 (Soomro et al., arXiv 1212.0402)")
K600_TRAIN = VideoSet(392_622, 280, "Kinetics-600, train, as first published (Carreira et al., arXiv 1808.01340)")
OPENVID = VideoSet(1_019_957, 180, "OpenVid-1M, clips of 7.2 s with captions (Nan et al., arXiv 2407.02371)")


def ucf101_sd() -> Config:
    """UCF-101 without classes at 256x256, Stable Diffusion's 2-D autoencoder: 16 frames, 16 latent frames.

    Paper section 4: batch 128, 1,400 epochs, learning rate 1e-4 (its body; the appendix says 2e-4). It names no split:
    all 13,320 videos, as Latte and StyleGAN-V, whose protocol of 2,048 clips its table follows. Micro-batches of 2 fit
    GPUs of 80 GB (`magi inspect cost ucf101-sd`).
    """
    return Config(
        data=DataConfig(root="data/UCF-101", frames=16),
        vae=VaeConfig(name="sd", weights="CompVis/stable-diffusion-v1-4/vae"),
        model=size("large", frames=16),
        training=TrainingConfig(
            steps=145_688,  # 13,320 videos x 1,400 epochs / batch 128
            batch=128,
            micro_batch=2,
            learning_rate=1e-4,
            log_every=50,
        ),
        sampling=SamplingConfig(context_frames=1),
    )


def ucf101_cosmos() -> Config:
    """As ``ucf101_sd`` with Cosmos' 3-D autoencoder (4x8x8, 16 channels): 17 frames, 5 latent frames (section 4)."""
    return Config(
        data=DataConfig(root="data/UCF-101", frames=17),
        vae=VaeConfig(name="cosmos", weights="weights/cosmos-4x8x8"),
        model=size("large", frames=5),
        training=TrainingConfig(
            steps=145_688,  # 13,320 videos x 1,400 epochs / batch 128
            batch=128,
            micro_batch=8,
            learning_rate=1e-4,
            log_every=50,
        ),
        sampling=SamplingConfig(context_frames=1),
    )


def ucf101_cosmos_class() -> Config:
    """UCF-101 with its 101 classes at 128x128, the size and split of MAGVIT's protocol (section 6), guidance 7.

    64 class tokens, as MAR. A frame has 64 tokens, so the 64 iterations predict one each.
    """
    return Config(
        data=DataConfig(
            root="data/UCF-101",
            annotations="data/ucfTrainTestlist",
            split="trainlist01",
            frames=17,
            height=128,
            width=128,
        ),
        vae=VaeConfig(name="cosmos", weights="weights/cosmos-4x8x8"),
        model=size("large", frames=5, classes=101),
        training=TrainingConfig(
            steps=104_311,  # 9,537 videos x 1,400 epochs / batch 128
            batch=128,
            micro_batch=16,
            learning_rate=1e-4,
            log_every=50,
        ),
        sampling=SamplingConfig(guidance=7.0),
    )


def k600_omni() -> Config:
    """Kinetics-600 at 256x256, OmniTokenizer's 3-D autoencoder (4x8x8, 8 channels): 17 frames, 5 latent frames.

    Section 4: batch 256, 150 epochs, learning rate 2e-4. Predicts from 5 frames, 2 latent ones. Copies of the data set
    differ, because videos have disappeared: for V videos, 150 V / 256 steps.
    """
    return Config(
        data=DataConfig(
            root="data/kinetics-600/train", annotations="data/kinetics-600/annotations", split="train", frames=17
        ),
        vae=VaeConfig(name="omni", weights="weights/omnitokenizer-k600"),
        model=size("large", frames=5),
        training=TrainingConfig(
            steps=230_052,  # 392,622 videos x 150 epochs / batch 256
            batch=256,
            micro_batch=8,
            learning_rate=2e-4,
            log_every=50,
        ),
        sampling=SamplingConfig(context_frames=5),
    )


def text() -> Config:
    """Text to video at the paper's size: OpenVid-1M at 256x256, Cosmos' autoencoder, 17 frames (not in the paper).

    As ``ucf101_cosmos`` with batch and rate of ``k600_omni`` and about as many steps, and 16 tokens that read the
    states of T5 v1.1 XXL, 128 tokens of width 4096 (the encoder and the length of Fluid, arXiv 2410.13863). A further
    view of the first frame, because a video of a prompt begins from nothing; guidance 7 as with classes. Planned
    (docs/plans.md), never trained.
    """
    return Config(
        data=DataConfig(root="data/OpenVid-1M/latents", frames=17, text_states="data/OpenVid-1M/text"),
        vae=VaeConfig(name="cosmos", weights="weights/cosmos-4x8x8"),
        model=size("large", frames=5, text_encoder="frozen", text_width=4096),
        training=TrainingConfig(
            steps=239_052,  # 1,019,957 videos x 60 epochs / batch 256
            batch=256,
            micro_batch=8,
            first_frame_views=1,
            learning_rate=2e-4,
            log_every=50,
        ),
        sampling=SamplingConfig(guidance=7.0),
    )


def world() -> Config:
    """A game of your own at the paper's size: 256x256, Stable Diffusion's autoencoder (not in the paper).

    Model and autoencoder as ``ucf101_sd``, actions and sampling as ``world_platform``; 18 actions are those of Atari
    (`--model.actions`). Planned (`magi inspect cost world`), never trained.
    """
    paper, small = ucf101_sd(), world_platform()
    return paper.model_copy(
        update={
            "data": DataConfig(root="my-game", frames=16, interval_max=1),
            "model": size("large", frames=16, actions=18),
            "training": paper.training.model_copy(update={"steps": 100_000, "micro_batch": 1, "masked_views": 4}),
            "sampling": small.sampling,
        }
    )


PAPER: dict[str, VideoSet] = {
    "ucf101-sd": UCF101,
    "ucf101-cosmos": UCF101,
    "ucf101-cosmos-class": UCF101_SPLIT_1,
    "k600-omni": K600_TRAIN,
}
"""The paper's own runs and what they train on."""
PAPER_SIZE = PAPER | {"text": OPENVID}
"""The presets of its size."""

PRESETS: dict[str, Callable[[], Config]] = {
    "digits": digits,
    "digits-text": digits_text,
    "world-platform": world_platform,
    "world-paddle": world_paddle,
    "world-maze": world_maze,
    "world": world,
    "ucf101-sd": ucf101_sd,
    "ucf101-cosmos": ucf101_cosmos,
    "ucf101-cosmos-class": ucf101_cosmos_class,
    "k600-omni": k600_omni,
    "text": text,
}


SPEEDS = {
    "full": "the settings of the model's config",
    "fast": "the fewest denoising steps that score as well as more ('magi tune-steps')",
}


def at_speed(config: SamplingConfig, name: str) -> SamplingConfig:
    """Sampling settings at a named speed; a ``ValueError`` names the nearest one, or says how a model gets it."""
    _lookup(SPEEDS, name, "speed")
    if name == "full":
        return config
    if not config.fast_steps:
        raise ValueError(
            "speed 'fast': no steps are known that keep this model's quality; find them on videos that it was not "
            "trained on: magi tune-steps MODEL --data DIR"
        )
    first, last = config.fast_first_timestep, config.fast_last_timestep
    return config.changed(steps=config.fast_steps, first_timestep=first, last_timestep=last)


def cost_and_quality(config: SamplingConfig, name: str, settings: SamplingConfig) -> str:
    """What ``settings``, of a speed and changed or not, cost a frame, and the quality measured of that speed."""

    def cost(one: SamplingConfig) -> str:
        return f"{one.iterations + 1} passes of the transformer and {one.iterations * one.steps} of the head"

    score = config.fast_score if name != "full" and settings == at_speed(config, name) else 0
    quality = f"energy score of its tokens {score:g} times that of full (lower is better)" if score else "not measured"
    ends = f"timestep {settings.first_timestep or 'the highest'} to {settings.last_timestep}"
    return f"{settings.steps} steps a token, {ends}: {cost(settings)} a frame (full: {cost(config)}); {quality}"


def resized(config: Config, name: str) -> Config:
    """The config with the transformer and head of another size; all other settings stay."""
    shape = _lookup(SIZES, name, "size")
    return config.model_copy(update={"model": ModelConfig(**{**config.model.model_dump(), **shape})})


def preset(name: str) -> Config:
    """The whole config called ``name``; a ``ValueError`` names the nearest preset."""
    return _lookup(PRESETS, name, "preset")()


def _lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        raise ValueError(f"unknown {kind} '{name}'; {hint(name, table)}")
    return table[name]
