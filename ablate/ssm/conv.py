"""The causal depthwise convolution in front of the scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution in which a token sees itself and the width - 1 tokens before it.

    Args:
        x: (batch, length, channels).
        weight: (channels, width); weight[:, -1] meets the token itself.
        bias: (channels,) or None.
        seq_idx: (batch, length) integers; a token sees no token on the other side of a change.
        initial_state: (batch, channels, width - 1), the tokens before the first (of the first document); default zeros.

    Returns:
        (batch, length, channels) in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together.
    """
    batch, length, channels = x.shape
    width = weight.shape[-1]
    if weight.shape != (channels, width):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (channels, width) = ({channels}, width)")
    if initial_state is not None and initial_state.shape != (batch, channels, width - 1):
        raise ValueError(
            f"initial_state has shape {tuple(initial_state.shape)}, "
            f"expected (batch, channels, width - 1) = {(batch, channels, width - 1)}"
        )
    if initial_state is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([initial_state.transpose(1, 2).to(x.dtype), x], dim=1)
    weight = weight.to(x.dtype)
    begun = None
    if seq_idx is not None:
        # documents begun so far; the initial state belongs to the first document
        begun = F.pad(F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)).cumsum(1), (width - 1, 0))
    y = x * weight[:, -1]
    for back in range(1, width):
        start = width - 1 - back
        seen = padded[:, start : start + length]
        if begun is not None:
            same = begun[:, width - 1 :] == begun[:, start : start + length]
            seen = seen.masked_fill(~same[..., None], 0)
        y = y + seen * weight[:, -1 - back]
    return y if bias is None else y + bias.to(x.dtype)
