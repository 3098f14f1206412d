"""The causal depthwise convolution in front of the scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablate.errors import unknown_name

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
        ValueError: shapes that do not fit together, or an unknown activation.
    """
    _check(x, weight, bias, seq_idx, initial_state)
    if activation not in _ACTIVATIONS:
        raise unknown_name("activation", activation, _ACTIVATIONS)
    width = weight.shape[1]
    if initial_state is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([initial_state.transpose(1, 2).to(x.dtype), x], dim=1)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if seq_idx is None:
        return _CausalConv.apply(padded, weight, bias, activation == "silu")
    y = _conv_within_documents(padded, weight, bias, seq_idx)
    return F.silu(y) if activation == "silu" else y


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, state: Tensor | None) -> None:
    if x.ndim != 3 or weight.ndim != 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (batch, length, channels) and (channels, width)"
        )
    batch, length, channels = x.shape
    width = weight.shape[1]
    for name, tensor, axes, shape in (
        ("weight", weight, "channels, width", (channels, width)),
        ("bias", bias, "channels", (channels,)),
        ("seq_idx", seq_idx, "batch, length", (batch, length)),
        ("initial_state", state, "batch, channels, width - 1", (batch, channels, width - 1)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({axes}) = {shape}")


class _CausalConv(torch.autograd.Function):
    """(b, width - 1 + l, c) -> (b, l, c), with silu on top if asked.

    The library's forward pass over channels-last memory is as fast as memory allows, but its backward pass on CPU is
    20 times slower; the gradient of the input is again such a convolution, that of the weight a few inner products.
    """

    @staticmethod
    def forward(ctx, padded, weight, bias, silu):
        ctx.save_for_backward(padded, weight, bias)
        ctx.silu = silu
        y = _depthwise(padded, weight, bias)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        padded, weight, bias = ctx.saved_tensors
        width = weight.shape[1]
        if ctx.silu:  # the result before the activation is cheaper to compute again than to keep
            dy = torch.ops.aten.silu_backward(dy, _depthwise(padded, weight, bias))
        dpadded = _depthwise(F.pad(dy, (0, 0, width - 1, width - 1)), weight.flip(1), None)
        dbias = None if bias is None else dy.sum((0, 1))
        return dpadded, _weight_gradient(padded, dy, width).to(weight.dtype), dbias, None


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, l, c), weight (c, width) -> (b, l - width + 1, c), without leaving this memory layout."""
    channels, width = weight.shape
    as_image = x.transpose(1, 2).unsqueeze(2)  # (b, c, 1, l), in channels-last memory
    y = F.conv2d(as_image, weight.view(channels, 1, 1, width), bias, groups=channels)
    return y.squeeze(2).transpose(1, 2)


def _weight_gradient(padded: Tensor, dy: Tensor, width: int) -> Tensor:
    """sum over b, l of padded[:, l + k] dy[:, l] for each k: (c, width), in float32 at least."""
    batch, length, channels = dy.shape
    dtype = dy.dtype if dy.dtype == torch.float64 else torch.float32
    total = dy.new_zeros(width, channels, dtype=dtype)
    block = max(1, 2**17 // (batch * channels))  # products of a block stay in the cache
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
        same = document[:, k : k + length] == document[:, width - 1 :]
        y = y + (padded[:, k : k + length] * weight[:, k]).masked_fill(~same[..., None], 0)
    return y if bias is None else y + bias
