"""The TorchScript I3D file of StyleGAN-V, run as the program it is: its own resize, padding and epsilon.

Many published Frechet video distances come from this file, and its inside (resize kernel, padding at odd lengths) is
not documented, so it is another network than ours and has another name. A TorchScript file is a program: it is run
only after its hash was checked at import and again here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.errors import CheckpointError
from magi.evaluation.networks.features import check_clips
from magi.evaluation.networks.i3d import CLASSES, MINIMUM_FRAMES
from magi.evaluation.networks.precision import full_precision, is_full_precision
from magi.evaluation.networks.published_files import PROGRAM_FILE, stored_weights

TORCHSCRIPT_NAME = "i3d-torchscript-kinetics400-logits"
_CLIPS_AT_A_TIME = 4


class I3dTorchscriptFeatures:
    """Kinetics-400 logits of clips by the published program (``FeatureNetwork``)."""

    dimension = CLASSES
    minimum_frames = MINIMUM_FRAMES

    def __init__(self, program: Any, weights: str, known: bool = True) -> None:
        """Wrap a loaded ``program`` whose file has the hash ``weights``."""
        self.program = program
        self.hash = weights
        self.name = TORCHSCRIPT_NAME if known else f"{TORCHSCRIPT_NAME}[unknown-weights]"
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "I3dTorchscriptFeatures":
        """Move the program; clips follow it."""
        self.device = torch.device(device)
        self.program.to(self.device)
        return self

    def features(self, video_BTHWC: Tensor) -> Tensor:
        """Return logits_BC float32 of uint8 clips, on their device; ``ValueError`` below 9 frames."""
        check_clips(video_BTHWC, self)
        # NOTE: without this the just-in-time compiler fuses kernels and results change between calls.
        with full_precision(), torch.jit.fuser("none"):
            assert is_full_precision()
            logits = [self._logits(clips_BTHWC) for clips_BTHWC in video_BTHWC.split(_CLIPS_AT_A_TIME)]
        return torch.cat(logits).to(video_BTHWC.device)

    def raw_logits(self, video_BCTHW: Tensor) -> Tensor:
        """Return logits_BC of a float video that the program neither rescales nor resizes (224 x 224)."""
        with full_precision(), torch.jit.fuser("none"):
            logits_BC: Tensor = self.program(
                video_BCTHW.to(self.device), rescale=False, resize=False, return_features=True
            )
        return logits_BC.to(video_BCTHW.device)

    def _logits(self, clips_BTHWC: Tensor) -> Tensor:
        video_BCTHW = clips_BTHWC.to(self.device).permute(0, 4, 1, 2, 3).float()
        logits_BC: Tensor = self.program(video_BCTHW, rescale=True, resize=True, return_features=True)
        if logits_BC.shape != (len(clips_BTHWC), CLASSES):
            raise CheckpointError(f"{self.name}: gave {tuple(logits_BC.shape)} for {len(clips_BTHWC)} clips")
        return logits_BC


def load_i3d_torchscript(cache: Path | None = None) -> I3dTorchscriptFeatures:
    """The imported program; ``CheckpointError`` where it was not imported, has changed, or does not load."""
    stored = stored_weights("i3d-torchscript", cache)
    path = stored.folder / PROGRAM_FILE
    if not path.is_file():
        raise CheckpointError(f"{stored.folder}: holds no program; import i3d-torchscript again")
    try:
        program = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a TorchScript program ({str(error).splitlines()[0][:120]})") from None
    return I3dTorchscriptFeatures(program, stored.sha256, stored.source.known)
