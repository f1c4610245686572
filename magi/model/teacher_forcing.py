"""Complete and masked teacher forcing side by side: the paper's idea, readable as a diff (section 2).

Both turn the same tokens and masks into the sequence of temporal slots that the transformer sees in training.

    complete (CTF, the paper)           masked (MTF, the baseline)
    earlier frames are complete         earlier frames are masked, as the predicted one is
    p(f_j^m | f_1 .. f_{j-1})           p(f_j^m | f_1^m .. f_{j-1}^m)
    S = 2T - 1 slots                    S = T slots
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForcedSequence:
    """Temporal slots of a training clip: first ``observations`` complete frames, then the T predicted ones.

    ``tokens_BSNC``; ``masked_BSN`` (bool: replaced by the mask token); ``time_S`` (latent frame number of each slot);
    ``attend_SS`` (bool: the query row may attend to the key column).
    """

    tokens_BSNC: Tensor
    masked_BSN: Tensor
    observations: int
    time_S: Tensor
    attend_SS: Tensor


def complete_teacher_forcing(tokens_BTNC: Tensor, masked_BTN: Tensor) -> ForcedSequence:
    """CTF: every masked frame is predicted from complete earlier frames.

    The last observation frame is attended by no masked frame, so T - 1 observation slots are exact.

        observation i -> observation k with k <= i
        masked j      -> observation k with k <  j, and masked j itself
    """
    frames = tokens_BTNC.shape[1]
    time_T = torch.arange(frames, device=tokens_BTNC.device)
    visible_BTN = torch.zeros_like(masked_BTN)
    observed_T = time_T[:-1]
    past_to_past = observed_T[:, None] >= observed_T[None, :]
    past_to_predicted = torch.zeros(frames - 1, frames, dtype=torch.bool, device=time_T.device)
    predicted_to_past = time_T[:, None] > observed_T[None, :]
    predicted_to_itself = torch.eye(frames, dtype=torch.bool, device=time_T.device)
    return ForcedSequence(
        tokens_BSNC=torch.cat([tokens_BTNC[:, :-1], tokens_BTNC], dim=1),
        masked_BSN=torch.cat([visible_BTN[:, :-1], masked_BTN], dim=1),
        observations=frames - 1,
        time_S=torch.cat([observed_T, time_T]),
        attend_SS=torch.cat(
            [
                torch.cat([past_to_past, past_to_predicted], dim=1),
                torch.cat([predicted_to_past, predicted_to_itself], dim=1),
            ]
        ),
    )


def masked_teacher_forcing(tokens_BTNC: Tensor, masked_BTN: Tensor) -> ForcedSequence:
    """MTF: every masked frame is predicted from masked earlier frames; the gap to inference that CTF closes.

    masked j -> masked k with k <= j
    """
    time_T = torch.arange(tokens_BTNC.shape[1], device=tokens_BTNC.device)
    return ForcedSequence(
        tokens_BSNC=tokens_BTNC,
        masked_BSN=masked_BTN,
        observations=0,
        time_S=time_T,
        attend_SS=time_T[:, None] >= time_T[None, :],
    )
