"""MAGI: masked autoregressive video generation with complete teacher forcing (CVPR 2025, arXiv 2501.12389).

A clip walks one way through the rooms; a room imports only rooms to its left:

    config, presets -> data -> vae -> model -> training | sampling -> evaluation -> cli

    video file --data--> video_THWC uint8 --vae--> latents_TCHW --model.patchify--> tokens_TNC
      training:  tokens + masks --teacher forcing--> sequence --model--> z, noise prediction --> loss
      sampling:  context tokens --> KV cache; frame by frame: masked iterations x denoising steps
                 --> tokens --> latents --vae--> frames, yielded one by one

Tensors carry their shape in their name; ``tokens_BTNC`` has the axes B, T, N and C:

    B batch                     N tokens a frame                     D hidden width
    T latent frames             K condition tokens a frame           M picked masked tokens
    S temporal slots            P = K + N positions of a slot        R noisings of a token
    C channels                  H, W height and width

Importing this package loads no torch; the names below load their room when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magi.config import Config
    from magi.config_files import dump_config, load_config
    from magi.model.magi import Magi
    from magi.presets import preset
    from magi.sampling.pipeline import MagiPipeline

__version__ = "0.1.0"

__all__ = ["Config", "Magi", "MagiPipeline", "__version__", "dump_config", "load_config", "preset"]

_ROOM_OF = {
    "Config": "magi.config",
    "dump_config": "magi.config_files",
    "load_config": "magi.config_files",
    "preset": "magi.presets",
    "Magi": "magi.model.magi",
    "MagiPipeline": "magi.sampling.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'magi' has no attribute '{name}'")
    return getattr(import_module(_ROOM_OF[name]), name)
