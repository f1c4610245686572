"""PreparedSampler: everything that a stream of frames needs, built in one place before its first frame (section 5).

Packed or fused weights, buffers of the history, reverse steps and, on a GPU, recorded graphs, which take seconds to
record and serve every later call of the same shapes, settings and weights. It knows neither pixels nor files.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions, no_action
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser
from magi.sampling.execution import Execution, choose_execution, in_format
from magi.sampling.frame import FramePlan, generate_frame, guidance_scales, plan_frame
from magi.sampling.history import History, time_positions

SET_BY_BEGIN = {"guidance", "guidance_schedule", "noise_level", "context_frames"}
"""Settings that a prepared sampler takes anew with each video; of guidance only whether there is any was built in."""
MOST_BYTES = 4 * 2**30
"""A history with a larger cache is freed after its stream: between calls that memory is the user's."""


class PreparedSampler:
    """Generates frames of one batch of videos after another; one stream at a time may use it.

    ``conditions`` and ``generators`` (on the CPU, one a video) say how many videos there are and whether they are
    guided; ``frames`` is the length of the videos in latent frames. Call ``begin`` before the first frame.
    ``execution`` is how it runs, by default the fastest way that ``settings.precision`` allows on the model's device.
    """

    def __init__(
        self,
        model: Magi,
        settings: SamplingConfig,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
        execution: Execution | None = None,
    ) -> None:
        self.key = sampler_key(model, settings, conditions, frames)
        self.execution = execution or choose_execution(model, settings.precision)
        # The source is held so that nothing else gets its number in the key.
        self.source, self.model = model, in_format(model, self.execution.weights)
        self.guided = is_guided(model, conditions, settings)
        self.plan = plan_frame(model, settings)
        self.first_plan = plan_frame(model, settings, first=True) if settings.first_frame_steps else self.plan
        pool = torch.cuda.graph_pool_handle() if self.execution.graphs else None
        self.generators = generators
        self._text: tuple[Tensor, Tensor] | None = None
        self._null_BKD: Tensor | None = None
        self.history = History(self.model, self._halves(conditions), generators, frames, settings, self.execution, pool)
        self.denoiser = Denoiser(
            self.model.head, settings.temperature, self.execution.head_products, self.execution.graphs, pool=pool
        )

    def begin(self, settings: SamplingConfig, conditions: Conditions, generators: Sequence[torch.Generator]) -> None:
        """Forget all frames and start other videos, as many as before; buffers and graphs stay where they are."""
        self.generators = generators
        scales = guidance_scales(settings, self.plan.counts)
        self.plan, self.first_plan = replace(self.plan, scales=scales), replace(self.first_plan, scales=scales)
        self.history.begin(self._halves(conditions), generators)

    def lead(self, action_BA: Tensor | None = None, text_BLE: Tensor | None = None) -> None:
        """What leads to the next frame: its action (rows of ``action_rows``, one a video), its text, or both."""
        device, values = self.model.mask_token.device, dict[str, Tensor]()
        if action_BA is not None:
            action_BA = action_BA.to(device)
            values["action_BA"] = torch.cat([action_BA, no_action(action_BA)]) if self.guided else action_BA
        if text_BLE is not None:
            last = self._text
            if last is None or last[0] is not text_BLE:
                self._text = last = text_BLE, self._encoded(text_BLE.to(device))
                if self.history.observes_anew:
                    self.history.observe_anew({"text_BKD": last[1]})
            values["text_BKD"] = last[1]
        self.history.lead(values)

    def observe(self, tokens_BTNC: Tensor) -> None:
        """Add finished frames to the history."""
        self.history.observe(tokens_BTNC)

    def frame(self, order_BN: Tensor | None = None, plan: FramePlan | None = None) -> Tensor:
        """tokens_BNC of the next frame; tokens in a random order and the prepared plan unless others are given."""
        plan = plan or (self.plan if self.history.finished else self.first_plan)
        return generate_frame(self.model, self.history, self.generators, plan, self.denoiser, order_BN)

    def masked_pass(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        """One pass of the transformer over the next frame: z_GBmD of the picked tokens."""
        return self.history.predict(tokens_BNC, masked_BN, picked_Bm)

    def denoise(self, z_GMD: Tensor, noise_IMC: Tensor, iteration: int = 0) -> Tensor:
        """The denoising loop of an iteration: tokens x_MC."""
        scale = noise_IMC.new_tensor(self.plan.scales[iteration])
        return self.denoiser(z_GMD, noise_IMC, self.plan.table, scale)

    def _halves(self, conditions: Conditions) -> Conditions:
        """On the device, their text encoded; under guidance with label, action and text, then without."""
        encode = self.model.conditioning.encode_text
        conditions = conditions.to(self.model.mask_token.device)
        null = encode(conditions.null(self.model.config)) if self.guided else None
        self._text, self._null_BKD = None, None if null is None else null.text_BKD
        return encode(conditions) if null is None else Conditions.cat([encode(conditions), null])

    def _encoded(self, text_BLE: Tensor) -> Tensor:
        """text_BKD of a text that comes later, in the same halves."""
        assert self.model.conditioning.text is not None
        text_BKD: Tensor = self.model.conditioning.text(text_BLE)
        return text_BKD if self._null_BKD is None else torch.cat([text_BKD, self._null_BKD])


class SamplerCache:
    """The sampler of the last stream, for the next one that it fits.

    Whoever takes it has it alone until it is put back, so streams that run at the same time, in threads too, share
    nothing. A copy starts empty.
    """

    def __init__(self) -> None:
        # Appending to a deque and popping from it are atomic, and an append to a full one drops what was there.
        self._held: deque[PreparedSampler] = deque(maxlen=1)

    def __reduce__(self) -> tuple[type["SamplerCache"], tuple[()]]:
        return SamplerCache, ()

    def take(
        self,
        model: Magi,
        settings: SamplingConfig,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
    ) -> PreparedSampler:
        """The held sampler if it fits; else that one is freed, and another prepared."""
        try:
            held = self._held.pop()
            if held.key == sampler_key(model, settings, conditions, frames):
                return held
            del held
        except IndexError:
            pass
        return PreparedSampler(model, settings, conditions, generators, frames)

    def put(self, sampler: PreparedSampler) -> None:
        """Hold a sampler whose stream has ended between two frames."""
        if sampler.history.nbytes <= MOST_BYTES:
            self._held.append(sampler)

    def clear(self) -> None:
        """Free what is held."""
        self._held.clear()


def sampler_key(model: Magi, settings: SamplingConfig, conditions: Conditions, frames: int) -> Hashable:
    """What a prepared sampler depends on and ``begin`` does not set: shapes, settings, and the weights.

    Weights are known by their addresses and versions, without reading them. NOTE: writes through ``.data`` and fused
    optimizers count no version, and graphs hold what PyTorch's switches (TF32, attention backends, autocast) chose when
    they were recorded; after a change of those, call ``forget()`` of the pipeline.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return (
        (id(model), model.config),
        tuple((tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors),
        (model.mask_token.device, model.mask_token.dtype),
        (conditions.batch, is_guided(model, conditions, settings)),
        tuple(time_positions(frames, model.config.frames, settings).tolist()),
        tuple(settings.model_dump(exclude=SET_BY_BEGIN).items()),
    )


def is_guided(model: Magi, conditions: Conditions, settings: SamplingConfig) -> bool:
    """Whether guidance changes anything: without a single label, action or text both halves are the same."""
    if settings.guidance == 1 or conditions.label_B is None:
        return settings.guidance != 1 and conditions.can_guide
    others = conditions.action_BA is not None or conditions.text_BLE is not None
    return others or not bool((conditions.label_B == model.config.classes).all())
