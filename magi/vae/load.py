"""From the ``vae`` section of a config to an adapter.

It knows the names of the adapters and where the shipped one lies; nothing of how they work.
"""

from pathlib import Path

from magi.config import VaeConfig
from magi.vae.contract import VideoAutoencoder
from magi.vae.pixel import PixelVae
from magi.vae.small import SmallVae

DEMO_FOLDER = Path(__file__).parent.parent / "demo_model" / "vae"


def load_vae(config: VaeConfig) -> VideoAutoencoder:
    """Return the adapter that ``config`` names; ``ValueError`` or ``CheckpointError`` where its weights do not fit."""
    if config.name == "pixel":
        if config.weights:
            raise ValueError(f"vae.weights {config.weights!r}: the pixel adapter has no weights; use --vae.name small")
        return PixelVae(config.pixel_stride)
    if not config.weights:
        raise ValueError("vae.weights: the small adapter needs a folder that `magi train-vae` wrote, or 'demo'")
    folder = DEMO_FOLDER if config.weights == "demo" else Path(config.weights)
    return SmallVae.load(folder, config.frames_per_batch)
