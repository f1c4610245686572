"""Complete and masked teacher forcing side by side: the paper's idea, readable as a diff (section 2).

Both turn the same tokens and masks into the sequence of temporal slots that the transformer sees in training.

    complete (CTF, the paper)           masked (MTF, the baseline)
    earlier frames are complete         earlier frames are masked, as the predicted one is
    p(f_j^m | f_1 .. f_{j-1})           p(f_j^m | f_1^m .. f_{j-1}^m)
    S = 2T - 1 slots                    S = T slots
    k masked views: S = T - 1 + kT      one view alone
    e more of frame 1: S = T - 1 + kT + e

U counts predicted slots: the T frames of the first masked view of a clip, then those of the second, and so on, then the
further views of its first frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotPattern:
    """Who attends to whom in training, without a mask tensor.

    The first ``causal`` slots attend to those of them up to themselves. ``views`` times ``frames`` slots follow: frame
    j of a view attends to the first j of the causal slots, and to itself. The last ``alone`` attend to themselves.
    """

    causal: int
    frames: int = 0
    views: int = 0
    alone: int = 0

    @property
    def slots(self) -> int:
        """S, the number of all slots."""
        return self.causal + self.views * self.frames + self.alone

    def past_counts(self, device: torch.device | None = None) -> Tensor:
        """How many causal slots each later slot attends to."""
        count_V = torch.arange(self.frames, device=device).repeat(self.views)
        return torch.cat([count_V, count_V.new_zeros(self.alone)])

    def mask_SS(self, device: torch.device | None = None) -> Tensor:
        """The same as booleans: the query row may attend to the key column. The definition; fast paths avoid it."""
        past_C = torch.arange(self.causal, device=device)
        frame_U = self.past_counts(device)
        past_to_past = past_C[:, None] >= past_C[None, :]
        past_to_predicted = torch.zeros(len(past_C), len(frame_U), dtype=torch.bool, device=device)
        predicted_to_past = frame_U[:, None] > past_C[None, :]
        predicted_to_itself = torch.eye(len(frame_U), dtype=torch.bool, device=device)
        upper = torch.cat([past_to_past, past_to_predicted], dim=1)
        return torch.cat([upper, torch.cat([predicted_to_past, predicted_to_itself], dim=1)])


@dataclass(frozen=True)
class ForcedSequence:
    """Temporal slots of a training clip: first ``observations`` complete frames, then the U predicted ones.

    ``tokens_BSNC``; ``masked_BSN`` (bool: replaced by the mask token); ``time_S`` (latent frame number of each slot);
    ``attend`` says who attends to whom, as a pattern or as booleans (query slots, key slots).
    """

    tokens_BSNC: Tensor
    masked_BSN: Tensor
    observations: int
    time_S: Tensor
    attend: SlotPattern | Tensor

    @property
    def attend_SS(self) -> Tensor:
        """``attend`` as booleans."""
        return self.attend.mask_SS(self.time_S.device) if isinstance(self.attend, SlotPattern) else self.attend


def complete_teacher_forcing(tokens_BTNC: Tensor, masked_BUN: Tensor, first_frame_views: int = 0) -> ForcedSequence:
    """CTF: every masked frame is predicted from complete earlier frames.

    The last observation frame is attended by no masked frame, so T - 1 observation slots are exact. All masked views of
    a clip share them, and none sees another. The last ``first_frame_views`` of the masks are further ones of frame 0,
    which has nothing before it.

        observation i -> observation k with k <= i
        masked j      -> observation k with k <  j, and masked j itself
    """
    frames, alone = tokens_BTNC.shape[1], first_frame_views
    views = (masked_BUN.shape[1] - alone) // frames
    if views < 1 or views * frames + alone != masked_BUN.shape[1]:
        slots = masked_BUN.shape[1] - alone
        raise ValueError(f"masks of {slots} predicted slots are no multiple of the {frames} frames")
    time_T = torch.arange(frames, device=tokens_BTNC.device)
    visible_BTN = torch.zeros_like(masked_BUN[:, : frames - 1])
    return ForcedSequence(
        tokens_BSNC=torch.cat([tokens_BTNC[:, :-1], *[tokens_BTNC] * views, *[tokens_BTNC[:, :1]] * alone], dim=1),
        masked_BSN=torch.cat([visible_BTN, masked_BUN], dim=1),
        observations=frames - 1,
        time_S=torch.cat([time_T[:-1], *[time_T] * views, time_T.new_zeros(alone)]),
        attend=SlotPattern(causal=frames - 1, frames=frames, views=views, alone=alone),
    )


def masked_teacher_forcing(tokens_BTNC: Tensor, masked_BUN: Tensor, first_frame_views: int = 0) -> ForcedSequence:
    """MTF: every masked frame is predicted from masked earlier frames; the gap to inference that CTF closes.

        masked j      -> masked k with k <= j

    A second view would share nothing with the first: ``ValueError`` unless U = T.
    """
    frames = tokens_BTNC.shape[1]
    if masked_BUN.shape[1] != frames or first_frame_views:
        raise ValueError(f"masked teacher forcing has one view of {frames} frames, got {masked_BUN.shape[1]} slots")
    return ForcedSequence(
        tokens_BSNC=tokens_BTNC,
        masked_BSN=masked_BUN,
        observations=0,
        time_S=torch.arange(frames, device=tokens_BTNC.device),
        attend=SlotPattern(causal=frames),
    )
