"""The names in a released OmniTokenizer checkpoint, and which tensor of ours each one is.

Of the 308 tensors under the four prefixes of the autoencoder, our network keeps 230 (210 parameters, 20 zero shifts of
norms); two are tables that follow from the window, and 76 are never used. This module reads no file and knows no
value.
"""

import re
from collections.abc import Iterable, Mapping

RELEASED_PREFIXES = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.")
MOMENTS_WEIGHT = "pre_vq_conv.1.weight"
"""Its rows tell the continuous autoencoder (two for each latent channel) from the quantised one (one for each)."""

# Ours -> released, in order. Their slot 0 of a layer is the position convolution, 1 the attention, 3 the feed-forward.
_RENAMES = (
    (r"^encoder\.embed_first\.0\.", "encoder.to_patch_emb_first_frame.1."),
    (r"^encoder\.embed_first\.1\.", "encoder.to_patch_emb_first_frame.2."),
    (r"^encoder\.embed_first\.2\.", "encoder.to_patch_emb_first_frame.3."),
    (r"^encoder\.embed_rest\.0\.", "encoder.to_patch_emb.1."),
    (r"^encoder\.embed_rest\.1\.", "encoder.to_patch_emb.2."),
    (r"^encoder\.embed_rest\.2\.", "encoder.to_patch_emb.3."),
    (r"^encoder\.(spatial|temporal)\.", r"encoder.enc_\1_transformer."),
    (r"^decoder\.(spatial|temporal)\.", r"decoder.dec_\1_transformer."),
    (r"^decoder\.pixels_first\.", "decoder.to_pixels_first_frame.0."),
    (r"^decoder\.pixels_rest\.", "decoder.to_pixels.0."),
    (r"^to_moments\.", "pre_vq_conv.1."),
    (r"^from_latents\.", "post_vq_conv.1."),
    (r"(\.layers\.\d+)\.peg\.", r"\1.0."),
    (r"(\.layers\.\d+)\.attention\.", r"\1.1."),
    (r"(\.layers\.\d+)\.feed_forward\.norm\.", r"\1.3.0."),
    (r"(\.layers\.\d+)\.feed_forward\.expand\.", r"\1.3.1."),
    (r"(\.layers\.\d+)\.feed_forward\.contract\.", r"\1.3.4."),
)
# Stored by every full attention, used by none: the norm of a cross-attention's context, and a position bias.
_UNUSED = re.compile(
    r"\.layers\.\d+\.1\.(context_norm\.(gamma|beta)|spatial_rel_pos_bias\.net\.[\d.]+\.(weight|bias))$"
)
_WINDOW_TABLE = re.compile(r"\.layers\.\d+\.1\.relative_position_index$")


def released_name(name: str) -> str:
    """Return the name in a released checkpoint of the tensor ``name`` of ``OmniNetwork``."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def unused(released: str) -> bool:
    """Whether a name of the autoencoder's is one that no computation uses."""
    return bool(_UNUSED.search(released))


def is_window_table(released: str) -> bool:
    """Whether a name is that of an index table, which follows from the size of the window."""
    return bool(_WINDOW_TABLE.search(released))


def differing_names(ours: Mapping[str, tuple[int, ...]], released: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps released shapes by name from being those of our network, one phrase a tensor; empty if they fit."""
    wanted = {released_name(name): size for name, size in ours.items()}
    shapes = [
        f"{name} has {released[name]}, expected {size}"
        for name, size in wanted.items()
        if name in released and released[name] != size
    ]
    missing = [f"{name} missing" for name in wanted if name not in released]
    return shapes + missing + [f"{name} unknown" for name in _unknown(wanted, released)]


def _unknown(wanted: Iterable[str], released: Iterable[str]) -> list[str]:
    known = set(wanted)
    return [name for name in released if name not in known and not unused(name) and not is_window_table(name)]
