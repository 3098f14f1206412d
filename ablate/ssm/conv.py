"""The causal depthwise convolution in front of the scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablate.core.errors import UserError, unknown_name
from ablate.ssm.precision import connected_zero

_ACTIVATIONS = ("identity", "silu")


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str = "identity",
) -> Tensor:
    """Depthwise convolution in which a token sees itself and the width - 1 tokens before it.

    Args:
        x: (batch, length, channels).
        weight: (channels, width); weight[:, -1] meets the token itself.
        bias: (channels,) or None.
        seq_idx: (batch, length) integers; a token sees no token on the other side of a change.
        initial_state: (batch, channels, width - 1), the inputs before the first token, oldest first (they belong to the
            first document); zeros by default.
        activation: "identity" or "silu", applied to the result (cheaper here than afterwards).

    Returns:
        (batch, length, channels) in the dtype of x.

    Raises:
        UserError: shapes that do not fit together, or an unknown activation.
    """
    _check(x, weight, bias, seq_idx, initial_state)
    if activation not in _ACTIVATIONS:
        raise unknown_name("activation", activation, _ACTIVATIONS)
    weight = weight.to(x.dtype)
    bias, initial_state = (None if t is None else t.to(x.dtype) for t in (bias, initial_state))
    if x.numel() == 0:
        return x + connected_zero(x, weight, bias, initial_state).to(x.dtype)
    if seq_idx is None:
        return _CausalConv.apply(x, weight, bias, initial_state, activation == "silu")
    y = _conv_within_documents(_with_past(x, initial_state, weight.shape[1]), weight, bias, seq_idx)
    return F.silu(y) if activation == "silu" else y


def _with_past(x: Tensor, initial_state: Tensor | None, width: int) -> Tensor:
    """x (b, l, c) after the width - 1 inputs before it: (b, width - 1 + l, c)."""
    if initial_state is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat([initial_state.transpose(1, 2), x], dim=1)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, state: Tensor | None) -> None:
    if x.ndim != 3 or weight.ndim != 2:
        raise UserError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (batch, length, channels) and (channels, width)"
        )
    batch, length, channels = x.shape
    width = weight.shape[1]
    if not channels or not width:
        raise UserError(f"weight has shape {tuple(weight.shape)}: expected at least one channel and a width of 1")
    for name, tensor, axes, shape in (
        ("weight", weight, "channels, width", (channels, width)),
        ("bias", bias, "channels", (channels,)),
        ("seq_idx", seq_idx, "batch, length", (batch, length)),
        ("initial_state", state, "batch, channels, width - 1", (batch, channels, width - 1)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected ({axes}) = {shape}")


class _CausalConv(torch.autograd.Function):
    """(x, weight, bias, initial state, whether silu comes on top) -> y, shapes as of `causal_conv1d`.

    The library's forward pass over channels-last memory is as fast as memory allows, but its backward pass on CPU is
    20 times slower; the gradient of the input is again such a convolution, that of the weight a few inner products.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, initial_state, silu):
        padded = _with_past(x, initial_state, weight.shape[1])
        ctx.save_for_backward(padded, weight, bias)
        ctx.silu, ctx.has_state = silu, initial_state is not None
        y = _depthwise(padded, weight, bias)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        padded, weight, bias = ctx.saved_tensors
        width = weight.shape[1]
        if ctx.silu:  # the result before the activation is cheaper to compute again than to keep
            dy = torch.ops.aten.silu_backward(dy, _depthwise(padded, weight, bias))
        dpadded = _depthwise(dy, weight.flip(1), None, padding=width - 1)
        dstate = dpadded[:, : width - 1].transpose(1, 2) if ctx.has_state else None
        dbias = None if bias is None else dy.sum((0, 1))
        return dpadded[:, width - 1 :], _weight_gradient(padded, dy, width).to(weight.dtype), dbias, dstate, None


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    """x (b, l, c) with `padding` zeros on both sides, weight (c, width) -> (b, l + 2 padding - width + 1, c)."""
    channels, width = weight.shape
    as_image = x.transpose(1, 2).unsqueeze(2)  # (b, c, 1, l) in channels-last memory: nothing is moved
    y = F.conv2d(as_image, weight.view(channels, 1, 1, width), bias, padding=(0, padding), groups=channels)
    return y.squeeze(2).transpose(1, 2)


def _weight_gradient(padded: Tensor, dy: Tensor, width: int) -> Tensor:
    """sum over b, l of padded[:, l + k] dy[:, l] for each k: (c, width), in float32 at least."""
    batch, length, channels = dy.shape
    dtype = dy.dtype if dy.dtype == torch.float64 else torch.float32
    total = dy.new_zeros(width, channels, dtype=dtype)
    # On a CPU products of a block stay in the cache; on a GPU blocks would be thousands of tiny kernels.
    block = max(1, 2**19 // (batch * channels)) if dy.device.type == "cpu" else length
    for start in range(0, length, block):
        stop = min(start + block, length)
        dy_block = dy[:, start:stop].to(dtype)
        for k in range(width):
            total[k] += (padded[:, start + k : stop + k] * dy_block).sum((0, 1))
    return total.T


def _conv_within_documents(padded: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor) -> Tensor:
    """As `_CausalConv`, but inputs on the other side of a change of `seq_idx` (b, l) count as zeros."""
    length, width = seq_idx.shape[1], weight.shape[1]
    begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    document = F.pad(begins.cumsum(1), (width - 1, 0))  # (b, width - 1 + l): the initial state is of document 0
    y = padded[:, width - 1 :] * weight[:, -1]
    for k in range(width - 1):
        other = document[:, k : k + length] != document[:, width - 1 :]
        # Masked before the product: where the other document holds a NaN, its gradient of zero would be NaN as well.
        y = y + padded[:, k : k + length].masked_fill(other[..., None], 0) * weight[:, k]
    return y if bias is None else y + bias
