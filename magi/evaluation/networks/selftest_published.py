"""Published reference values of the feature networks with their real weights, and the checks that hold them.

Black against white clips isolate the network, its epsilon, padding and precision. Where a source says which network
gave a number the check is judged; where it does not, the number is shown beside ours and decides nothing. What needs
other people's videos, statistics or checkpoints is listed as not run.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magi.errors import CheckpointError
from magi.evaluation.metrics.frechet import distance_of
from magi.evaluation.networks.i3d import BN_EPS, PUBLISHED_EPS
from magi.evaluation.networks.i3d_torchscript import load_i3d_torchscript
from magi.evaluation.networks.load import I3dFeatures, load_i3d, load_inception, load_lpips
from magi.evaluation.networks.precision import full_precision
from magi.evaluation.networks.published_files import WeightKind, has_weights, stored_weights, weights_cache
from magi.evaluation.networks.selftest import Check, black_against_white, judged
from magi.evaluation.networks.synthetic_weights import artificial_video

# frames -> squared distance; the README of common_metrics_on_video_quality, which says the values may move by about 1
# and does not say which of its two networks gave them.
UNATTRIBUTED = {
    10: 569.230,
    11: 486.358,
    12: 551.961,
    13: 146.366,
    14: 172.855,
    16: 152.918,
    17: 357.740,
    20: 338.415,
    24: 66.063,
    29: 152.152,
}
TENSORFLOW_15, TENSORFLOW_15_TOLERANCE = 131.0, 2.0  # "around 131", the example of frechet_video_distance
TENSORFLOW_30, README_TOLERANCE = 151.39244, 1.0  # TensorFlow 1.15, the same README
TORCHSCRIPT_15 = 134.24  # StyleGAN-V's file, an older README
NOISE, NOISE_TENSORFLOW, NOISE_TOLERANCE = 10.138084766713924, 10.13808536529541, 1e-2  # fvd-comparison
NOISE_COUNTS = (128, 256)  # its script and its README disagree
LPIPS_EXAMPLES = {"ex_p0.png": 0.722, "ex_p1.png": 0.138}  # PerceptualSimilarity, issue 120; against ex_ref.png
LPIPS_TOLERANCE = 1.5e-3  # printed with three digits, by a variant that averages a map
_REGRESSION_TOLERANCE = 1e-3
_NEEDS_OTHERS = (
    ("cd-fvd example, I3D 3383.9646", "needs that project's example videos and statistics"),
    ("cd-fvd example, VideoMAE 1064.6156", "VideoMAE is not among our networks"),
    ("LARP tokenizer, rFVD 19.53286, PSNR 28.70299, LPIPS-vgg 0.0754647", "needs LARP's checkpoint and UCF-101"),
)


def published_checks(
    device: str = "cpu", noise: bool = False, lpips_images: Path | None = None, cache: Path | None = None
) -> Iterator[Check]:
    """Every published value: judged, shown, or not run and why."""
    yield from _i3d_checks(device, cache)
    yield from _torchscript_checks(device, cache)
    yield from _noise_checks(device, noise, cache)
    yield from _regression_checks(device, cache)
    yield from _lpips_checks(device, lpips_images, cache)
    yield from (Check(name, "out of reach", note=reason) for name, reason in _NEEDS_OTHERS)


def _i3d_checks(device: str, cache: Path | None) -> Iterator[Check]:
    if not has_weights("i3d", cache):
        for name in (
            "i3d: gamma is 1",
            "i3d: black against white, 15 and 30 frames",
            "i3d: black against white, shown",
        ):
            yield _missing(name, "i3d")
        return
    gammas = [t for name, t in stored_weights("i3d", cache).tensors().items() if name.endswith("bn.weight")]
    yield judged(
        "i3d: gamma is 1", max(float((gamma - 1).abs().max()) for gamma in gammas), 0.0, 0.0, "largest |gamma-1|"
    )
    for mode, eps in BN_EPS.items():
        network = load_i3d("google", eps, cache).to(device)
        name = f"i3d ({mode} eps {eps:g}): black against white"
        at_15, at_30 = (black_against_white(network.features, frames) for frames in (15, 30))
        if eps == PUBLISHED_EPS:
            yield judged(f"{name}, 15 frames", at_15, TENSORFLOW_15, TENSORFLOW_15_TOLERANCE, "TensorFlow 1")
            yield judged(f"{name}, 30 frames", at_30, TENSORFLOW_30, README_TOLERANCE, "TensorFlow 1.15")
        else:
            yield _shown(f"{name}, 15 frames", at_15, TENSORFLOW_15)
            yield _shown(f"{name}, 30 frames", at_30, TENSORFLOW_30)
        yield from _unattributed(name, network.features)


def _torchscript_checks(device: str, cache: Path | None) -> Iterator[Check]:
    name = "i3d-torchscript: black against white"
    if not has_weights("i3d-torchscript", cache):
        yield _missing(name, "i3d-torchscript")
        return
    network = load_i3d_torchscript(cache).to(device)
    at_15 = black_against_white(network.features, 15)
    yield judged(f"{name}, 15 frames", at_15, TORCHSCRIPT_15, README_TOLERANCE, "older README")
    yield from _unattributed(name, network.features)


def _unattributed(name: str, features: Callable[[Tensor], Tensor]) -> Iterator[Check]:
    for frames, value in UNATTRIBUTED.items():
        yield _shown(f"{name}, {frames} frames", black_against_white(features, frames), value)


def _noise_checks(device: str, wanted: bool, cache: Path | None) -> Iterator[Check]:
    """Uniform noise fed raw; slow, because it takes hundreds of clips of 16 frames."""
    runners: dict[WeightKind, tuple[Callable[[], Callable[[Tensor], Tensor]], float]] = {
        "i3d": (lambda: _raw(load_i3d(cache=cache).to(device), device), NOISE_TENSORFLOW),
        "i3d-torchscript": (lambda: load_i3d_torchscript(cache).to(device).raw_logits, NOISE),
    }
    for kind, (build, value) in runners.items():
        name = f"{kind}: uniform noise"
        if not has_weights(kind, cache):
            yield _missing(name, kind)
        elif not wanted:
            yield Check(name, "not run", note="minutes on a CPU; add --noise")
        else:
            logits = build()
            found = [noise_distance(logits, count) for count in NOISE_COUNTS]
            nearest = min(found, key=lambda distance: abs(distance - value))
            told = ", ".join(f"N={n}: {d:.6f}" for n, d in zip(NOISE_COUNTS, found, strict=True))
            yield judged(name, nearest, value, NOISE_TOLERANCE, told)


def _raw(network: I3dFeatures, device: str) -> Callable[[Tensor], Tensor]:
    def logits(video_BCTHW: Tensor) -> Tensor:
        with full_precision():
            found: Tensor = network.network(video_BCTHW.to(device)).logits_BC.cpu()
        return found

    return logits


def noise_distance(logits: Callable[[Tensor], Tensor], count: int, frames: int = 16, side: int = 224) -> float:
    """Frechet distance of two sets of uniform noise in [0, 1], drawn by numpy's RandomState(1) and (2)."""
    sets = []
    for seed in (1, 2):
        random = np.random.RandomState(seed)  # the published number is of this old generator
        clips = [random.rand(1, frames, side, side, 3).astype(np.float32) for _ in range(count)]
        sets.append(torch.cat([logits(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)) for clip in clips]))
    return distance_of(sets[0], sets[1], allow_singular=True)


def _regression_checks(device: str, cache: Path | None) -> Iterator[Check]:
    """Outputs with the real weights, written down by the first self-test and held by the later ones."""
    outputs: dict[WeightKind, Callable[[], Tensor]] = {
        "i3d": lambda: load_i3d(cache=cache).to(device).features(artificial_video("video64", 17, 64, 64)[None]),
        "inception": lambda: (
            load_inception(cache=cache).to(device).features(artificial_video("image64", 1, 64, 64)[None])
        ),
    }
    for kind, output in outputs.items():
        name = f"{kind}: same output as at the first self-test"
        if not has_weights(kind, cache):
            yield _missing(name, kind)
            continue
        vector = output().double()
        path = (cache or weights_cache()) / kind / "first_selftest.json"
        values = {
            "sha256": stored_weights(kind, cache).sha256,
            "mean": float(vector.mean()),
            "std": float(vector.std(correction=0)),
        }
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before is None or before.get("sha256") != values["sha256"]:
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            yield Check(
                name, "shown", f"mean {values['mean']:.6g}, std {values['std']:.6g}", note="first run: recorded"
            )
            continue
        difference = max(abs(values[key] - before[key]) for key in ("mean", "std"))
        yield judged(name, difference, 0.0, _REGRESSION_TOLERANCE, f"recorded in {path.name}")


def _lpips_checks(device: str, images: Path | None, cache: Path | None) -> Iterator[Check]:
    kinds: tuple[WeightKind, ...] = ("alexnet", "lpips-alex")
    missing = [kind for kind in kinds if not has_weights(kind, cache)]
    for file, value in LPIPS_EXAMPLES.items():
        name = f"lpips alex: ex_ref.png to {file}"
        if missing:
            yield _missing(name, *missing)
        elif images is None:
            yield Check(name, "not run", note="needs the examples of PerceptualSimilarity; add --lpips-images FOLDER")
        else:
            first, second = (_image(images / wanted) for wanted in ("ex_ref.png", file))
            distance = float(load_lpips("alex", cache).to(device).distances(first, second))
            yield judged(name, distance, value, LPIPS_TOLERANCE, "PerceptualSimilarity, issue 120")
    yield Check("lpips vgg", "out of reach", note="nobody has published a value to hold it against")


def _image(path: Path) -> Tensor:
    """video_BTHWC uint8 of one image file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such image; --lpips-images takes a folder with ex_ref.png, ex_p0.png, ex_p1.png")
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))[None, None]
    except OSError as error:
        raise CheckpointError(f"{path}: not readable as an image ({' '.join(str(error).split())[:80]})") from None


def _shown(name: str, measured: float, published: float) -> Check:
    note = f"difference {measured - published:+.3f}; the source does not say which network"
    return Check(name, "shown", f"{measured:.3f}", f"{published:.3f}", note)


def _missing(name: str, *kinds: WeightKind) -> Check:
    words = " and ".join(f"'magi evaluate import-weights {kind} FILE'" for kind in kinds)
    return Check(name, "not run", note=f"weights missing: {words}")
