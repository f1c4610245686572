"""The configuration: one frozen section a room (``magi.config_files`` reads and writes them as YAML).

Every default is written here once, as the paper's (arXiv 2501.12389) value where it gives one; fields marked
"the paper leaves this open" are decisions of this project. This module knows no torch and no room.
"""

from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from magi.errors import hint

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Section(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Which videos, and how a clip is cut from one."""

    root: str = Field(
        "",
        description="folder of videos (sub-folders become class labels), folder of latents, or a .csv or .jsonl with "
        "the columns path, label, split",
    )
    annotations: str = Field(
        "",
        description="labels that are not folders: UCF-101's folder of split files (ucfTrainTestlist), or the Kinetics "
        "annotations, a .csv or a folder of them",
    )
    split: str = Field(
        "", description="part that the annotations or the list name: trainlist01 or train01 (UCF-101), train, val, test"
    )
    frames: int = Field(16, ge=1, description="frames of a clip (paper: 16 with a 2-D VAE, 17 with a 3-D one)")
    height: int = Field(256, ge=1, description="height of a clip in pixels, after resize and centre crop")
    width: int = Field(256, ge=1, description="width of a clip in pixels, after resize and centre crop")
    fps: float = Field(
        0, ge=0, le=1000, description="frames a second that every video is read at; 0 takes those stored (paper)"
    )
    interval_min: int = Field(1, ge=1, description="smallest interval between the frames of a clip")
    interval_max: int = Field(25, ge=1, description="largest interval (paper: dynamic interval, uniform in 1..25)")
    sample_posterior: bool = Field(
        True, description="latents are drawn from the autoencoder's posterior, anew for every clip; else its mean"
    )
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="share of unreadable videos that is tolerated")
    text_states: str = Field(
        "", description="folder of 'magi encode-text', of a model whose text_encoder is frozen (not in the paper)"
    )
    workers: int = Field(2, ge=0, description="loader processes; the order of clips does not depend on it")

    @model_validator(mode="after")
    def _interval_range(self) -> Self:
        if self.interval_max < self.interval_min:
            raise ValueError(f"interval_max {self.interval_max} is below interval_min {self.interval_min}")
        return self


class VaeConfig(Section):
    """Which autoencoder turns pixels into latents."""

    name: Literal["pixel", "small", "sd", "cosmos", "omni", "ltx"] = Field("pixel", description="adapter")
    weights: str = Field(
        "",
        description="folder, single safetensors file (sd) or hub id owner/name[/folder] (sd, cosmos, ltx); of small "
        "'demo' is the shipped one",
    )
    normalization: str = Field(
        "",
        description="file of the channels' mean and standard deviation, as another run's vae/normalization.json; empty "
        "takes those measured with the latents, else those saved or published with the weights, else measures them",
    )
    pixel_stride: int = Field(8, ge=1, description="stride of the pixel adapter (space to depth)")
    frames_per_batch: int = Field(64, ge=1, description="frames encoded or decoded at a time")


class ModelConfig(Section):
    """Shape of the transformer and of its diffusion head; defaults are the paper's large model (section 3)."""

    width: int = Field(1280, ge=8, description="hidden size")
    blocks: int = Field(20, ge=1, description="spatial-temporal blocks")
    heads: int = Field(16, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP width over hidden size (paper: 5120 over 1280)")
    patch_size: int = Field(2, ge=1, description="latent patch size; a token is patch_size^2 latent pixels")
    frames: int = Field(16, ge=1, description="latent frames that the time embedding is trained on")
    head_width: int = Field(1024, ge=8, description="width of the diffusion head")
    head_blocks: int = Field(3, ge=1, description="residual blocks of the diffusion head")
    classes: int = Field(0, ge=0, description="number of class labels; 0 is an unconditional model")
    class_tokens: int = Field(64, ge=1, description="condition tokens of the class (the paper leaves this open)")
    actions: int = Field(
        0, ge=0, description="numbers of an action, or kinds where it is one of several (not in the paper); 0 is none"
    )
    text_encoder: Literal["", "bytes", "frozen"] = Field(
        "",
        description="what reads captions (not in the paper): bytes is trained with the model and needs nothing, frozen "
        "takes the states of 'magi encode-text'; empty is a model without text",
    )
    text_tokens: int = Field(16, ge=1, description="condition tokens that carry the text")
    text_length: int = Field(128, ge=1, description="longest text: bytes of UTF-8, or tokens of the frozen encoder")
    text_width: int = Field(0, ge=0, description="width of the frozen encoder's states")
    interval_vocabulary: int = Field(25, ge=1, description="size of the interval embedding, intervals 1..25")
    noise_levels: int = Field(5, ge=1, description="noise levels of the observation frames, 1..5")
    noise_max: float = Field(0.7, ge=0, description="largest amplitude of the noise on observation frames")
    dropout: float = Field(0.1, ge=0, lt=1, description="on projections only (the paper leaves this open; MAR 0.1)")
    teacher_forcing: Literal["complete", "masked"] = Field(
        "complete", description="complete is the paper's, masked the baseline"
    )
    objective: Literal["ddpm", "energy"] = Field(
        "ddpm",
        description="what the head is trained on: ddpm is the paper's noise prediction with a learned variance; energy "
        "goes from noise to the token in one step, by the energy score (sampling.steps is then 1)",
    )
    temporal: Literal["softmax", "gated_linear"] = Field(
        "softmax",
        description="attention along time: softmax is the paper's, with a cache of keys and values; gated_linear (not "
        "in the paper) has a state of constant size and no positions in time",
    )
    state_width: int = Field(
        16,
        ge=1,
        description="features a head of gated_linear; its state is as large as that many frames of a bf16 cache",
    )
    diffusion_steps: int = Field(1000, ge=2, description="steps of the cosine noise schedule in training")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by heads {self.heads} and by 4")
        return self

    @model_validator(mode="after")
    def _text_width_is_the_frozen_encoders(self) -> Self:
        if (self.text_encoder == "frozen") != (self.text_width > 0):
            raise ValueError(f"text_width {self.text_width}: the width of states with text_encoder frozen, else 0")
        return self


class TrainingConfig(Section):
    """The optimisation (section 4). Everything is counted in steps and clips."""

    steps: int = Field(100_000, ge=1, description="optimizer steps")
    batch: int = Field(128, ge=1, description="clips an optimizer step, over all processes")
    micro_batch: int = Field(0, ge=0, description="clips a forward pass in one process; 0 is the whole share at once")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="after warm-up, constant until a cool-down")
    warmup_steps: int = Field(10_000, ge=0, description="steps of linear warm-up")
    cooldown_steps: int = Field(
        0, ge=0, description="last steps, over which the rate falls linearly to zero (the paper has none)"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW")
    weight_decay: float = Field(0.02, ge=0, description="not on norms, biases and embeddings")
    gradient_clip: float = Field(3.0, gt=0, description="largest global gradient norm")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the averaged weights")
    precision: Literal["bf16", "fp32", "auto"] = Field(
        "bf16",
        description="of the model's products; weights and loss are fp32; auto is bf16 on a GPU, and on a CPU that "
        "computes in it, else fp32",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="how several processes share a model: ddp, each holds all of it; fsdp, each holds a share of "
        "weights, gradients, optimizer and average (training.batch must then be divisible by the processes)",
    )
    activation_checkpointing: bool = Field(
        False, description="keep a block's input only and compute the block again in backward: less memory, more time"
    )
    compile: bool = Field(False, description="torch.compile of each block")
    diffusion_batch_mul: int = Field(4, ge=1, description="noisings of each masked token a step (MAR)")
    masked_views: int = Field(
        1,
        ge=1,
        description="masked views of a clip that share its complete frames: 4 of them cost 1.25 of masked teacher "
        "forcing each, one alone 1.92 (the paper has 1)",
    )
    first_frame_views: int = Field(
        0,
        ge=0,
        description="further masked views of a clip's first frame alone, for videos made from nothing (not in the "
        "paper): it has no frames before it, so a view costs a slot",
    )
    mask_ratio_mean: float = Field(1.0, description="of the truncated normal that mask ratios are drawn from (MAR)")
    mask_ratio_std: float = Field(0.25, gt=0, description="of the same")
    mask_ratio_min: float = Field(0.7, ge=0, le=1, description="of the same; its maximum is 1")
    class_dropout: float = Field(0.1, ge=0, le=1, description="share of clips trained with the null class")
    action_dropout: float = Field(0.1, ge=0, le=1, description="share of clips trained without their actions")
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of clips trained without their caption")
    start_from: str = Field(
        "",
        description="run, export, shipped model or hub id whose averaged weights the first step starts from, in place "
        "of fresh ones; its autoencoder and model.* must be the run's",
    )
    seed: int = Field(0, ge=0, description="of initial weights, data order, masks and noise")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints kept; 2 at least: one may be bad")
    sample_every: int = Field(0, ge=0, description="steps between contact sheets of samples; 0 is never")


class VaeTrainingConfig(Section):
    """How `magi train-vae` trains the small autoencoder on the user's own videos (not in the paper)."""

    steps: int = Field(4000, ge=1, description="optimizer steps")
    batch: int = Field(16, ge=1, description="frames a step")
    learning_rate: float = Field(5e-3, gt=0, le=1, description="after warm-up; falls to a fiftieth along a cosine")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    gradient_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, which are the result")
    kl_weight: float = Field(
        3e-5,
        ge=0,
        description="weight of the KL term (mean over latents) beside the mean pixel error; this tiny, it only keeps "
        "latents centred and smooth and costs no sharpness",
    )
    height: int = Field(64, ge=1, description="height of a frame in pixels, after resize and centre crop")
    width: int = Field(64, ge=1, description="width of a frame in pixels, after resize and centre crop")
    channels: int = Field(4, ge=1, description="channels of a latent")
    patch: int = Field(2, ge=1, description="pixels of a side folded into channels before the first convolution")
    widths: tuple[int, ...] = Field(
        (16, 32, 48), min_length=1, description="channels of each level; stride is patch * 2^(levels - 1)"
    )
    pool_megabytes: int = Field(
        1000, ge=0, description="frames are kept in memory if they fit in this, else read by clips"
    )
    pool_frames: int = Field(40, ge=1, description="frames kept in memory a video, evenly spread over it")
    seed: int = Field(0, ge=0, description="of initial weights, frame order and posterior noise")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="share of unreadable videos that is tolerated")
    workers: int = Field(2, ge=0, description="threads that read videos; the order of frames does not depend on it")
    log_every: int = Field(50, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")


class SamplingConfig(Section):
    """How frames are generated (section 5)."""

    iterations: int = Field(64, ge=1, description="masked-prediction iterations a frame")
    steps: int = Field(100, ge=1, description="denoising steps a token")
    first_timestep: int = Field(0, ge=0, description="where denoising starts; 0 is the last timestep of the schedule")
    last_timestep: int = Field(0, ge=0, description="timestep of the last denoising step, which gives the clean token")
    first_frame_steps: int = Field(
        0, ge=0, description="steps, over the whole schedule, of a frame with none before it; 0 is as of other frames"
    )
    fast_steps: int = Field(0, ge=0, description="steps at speed 'fast', found by 'magi tune-steps'; 0: no such speed")
    fast_first_timestep: int = Field(0, ge=0, description="first_timestep at speed 'fast'")
    fast_last_timestep: int = Field(0, ge=0, description="last_timestep at speed 'fast'")
    fast_score: float = Field(
        0.0, ge=0, description="energy score of tokens at speed 'fast' over that of the own steps; 0: not measured"
    )
    temperature: float = Field(1.0, ge=0, description="scale of the noise in the reverse steps (MAR)")
    x0_limit: float = Field(
        10.0,
        gt=0,
        description="bound of the clean token that a prediction implies, in standard deviations (the paper leaves this "
        "open; MAR has none)",
    )
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale; 1 is none")
    guidance_schedule: Literal["constant", "linear"] = Field("linear", description="over the iterations of a frame")
    noise_level: int = Field(
        1, ge=1, description="noise level of the observed frames: 1 adds none, a higher one adds noise of that level"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="auto: on a GPU bf16 and the kernels, on a CPU bf16 for the products that are faster so; "
        "bf16 and fp32 ask for one of them",
    )
    context_frames: int = Field(
        0,
        ge=0,
        description="frames that the run's sample sheets continue (paper: 1 on UCF-101, 5 on Kinetics-600); 0 is a "
        "quarter of the clip, or with a 3-D autoencoder its first latent frame",
    )
    longer: Literal["window", "interpolate"] = Field(
        "interpolate",
        description="how videos grow longer than trained: interpolate keeps all frames in view, their positions fitted "
        "into the trained range (gated_linear has none and goes on without end); window begins anew with the newest "
        "frames whenever it is full",
    )
    window_keep: int = Field(8, ge=1, description="latent frames kept when a full window slides")
    prompt_change: Literal["keep", "observe_anew"] = Field(
        "keep",
        description="the frames in view where a prompt changes in the middle of a video: keep leaves them as observed "
        "under the prompt that made each of them; observe_anew observes them once more, under the new one",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_older_keys(cls, values: Any) -> Any:
        """Older files name a solver, steps of the last iteration, and a precision of the passes and of the head."""
        for key, kept in (("solver", "ancestral"), ("last_steps", 0)):
            if isinstance(values, dict) and key in values:
                if values[key] != kept:
                    raise ValueError(
                        f"{key} {values[key]}: is gone, a few ancestral steps placed well do as well; remove it and "
                        "run 'magi tune-steps'"
                    )
                values = {name: value for name, value in values.items() if name != key}
        older = [key for key in ("pass_precision", "head_precision") if isinstance(values, dict) and key in values]
        if not older:
            return values
        asked = {values.get("pass_precision", "model"), values.get("head_precision", "model")}
        if len(asked) > 1 or "precision" in values:
            raise ValueError(f"{' and '.join(older)}: replace with precision, which is auto, bf16 or fp32")
        (format,) = asked
        return {key: value for key, value in values.items() if key not in older} | {
            "precision": "auto" if format == "model" else format
        }

    def changed(self, **fields: Any) -> "SamplingConfig":
        """These settings with other values of some fields; ValueError for an unknown field or a value out of range."""
        return validated(SamplingConfig, self.model_dump() | fields, "sampling")


class LatentShape(Section):
    """Size of an encoded clip: latent frames, channels, height and width."""

    frames: int = Field(ge=1)
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


class Config(Section):
    """A whole run."""

    data: DataConfig = Field(default_factory=DataConfig)
    vae: VaeConfig = Field(default_factory=VaeConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.data.interval_max > self.model.interval_vocabulary:
            raise ValueError(
                f"data.interval_max {self.data.interval_max} exceeds "
                f"model.interval_vocabulary {self.model.interval_vocabulary}"
            )
        if self.data.fps and self.model.actions:
            raise ValueError(f"data.fps {self.data.fps:g}: actions are a row a stored frame; set it to 0")
        if self.training.masked_views > 1 and self.model.teacher_forcing == "masked":
            raise ValueError(
                f"training.masked_views {self.training.masked_views} needs model.teacher_forcing complete: masked "
                "views share the complete frames, and masked teacher forcing has none; set it to 1"
            )
        if self.training.first_frame_views and self.model.teacher_forcing == "masked":
            raise ValueError(
                f"training.first_frame_views {self.training.first_frame_views}: masked teacher forcing has one view of "
                "each frame; set it to 0"
            )
        return self


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def validated(kind: type[AnyModel], values: Any, source: str, refusal: type[Exception] = ValueError) -> AnyModel:
    """``values`` as a ``kind``.

    ``ValueError`` has a line for each mistake, ``source: key: what is wrong (got value)``, with the nearest name of an
    unknown key; another ``refusal`` has the first line alone.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explained(item, source, kind) for item in error.errors()]
    raise refusal("\n".join(lines) if refusal is ValueError else lines[0])


def _explained(item: "ErrorDetails", source: str, kind: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        known = _known_keys(kind, item["loc"][:-1])
        nearest = hint(str(item["loc"][-1]), known, f"known keys: {', '.join(known)}")
        return f"{source}: {key}: unknown key; {nearest}"
    got = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
    return f"{source}: {key}: {item['msg']}{got}"
