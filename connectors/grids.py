"""Grids of patches: pooling, resizing, neighbours as channels. Shapes: (n, h, w, c), as connectors get features.

Pooling and resizing to any size are products with small matrices: PyTorch's own kernels add up gradients on a GPU in no
fixed order.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.core.errors import UserError


class GridError(UserError):
    """A grid that a connector does not take."""


def check_divisible(what: str, height: int, width: int, factor: int) -> None:
    """Raise GridError unless `factor` divides both sides of the grid."""
    if height % factor or width % factor:
        raise GridError(
            f"{what} takes grids whose sides are multiples of {factor}, got {height} x {width}: choose another image "
            "size or factor, or, where the connector has the field, pad=true."
        )


def check_at_least(what: str, height: int, width: int, least: int) -> None:
    """Raise GridError unless both sides of the grid are at least `least`."""
    if min(height, width) < least:
        raise GridError(f"{what} takes grids of at least {least} x {least} patches, got {height} x {width}.")


def check_heads(what: str, width: int, heads: int) -> None:
    """Raise UserError unless the heads divide the width."""
    if width % heads:
        raise UserError(f"{what}: {heads} heads do not divide the width {width}. Choose a divisor of it.")


def tiled(height: int, width: int, factor: int) -> tuple[int, int]:
    """The grid of squares of `factor` patches that covers a grid, those at its border included."""
    return -(-height // factor), -(-width // factor)


def at_most(height: int, width: int, side: int) -> tuple[int, int]:
    """The grid of `side` rows and columns, or fewer where the patches' grid has fewer."""
    return min(side, height), min(side, width)


def pad_to_multiple(features: Tensor, factor: int) -> Tensor:
    """Rows of zeros at the bottom and columns of zeros at the right, up to a multiple of `factor`."""
    below, right = -features.shape[1] % factor, -features.shape[2] % factor
    return F.pad(features, (0, 0, 0, right, 0, below)) if below or right else features


def windows(features: Tensor, factor: int) -> Tensor:
    """(n, h, w, c) -> (n, h / factor, w / factor, factor * factor, c), row by row within a window.

    The sides must be multiples of `factor`.
    """
    n, height, width, channels = features.shape
    split = features.reshape(n, height // factor, factor, width // factor, factor, channels)
    return split.transpose(2, 3).reshape(n, height // factor, width // factor, factor * factor, channels)


def space_to_depth(features: Tensor, factor: int) -> Tensor:
    """(n, h, w, c) -> (n, h / factor, w / factor, factor * factor * c), channels in the order (row, column, c)."""
    return windows(features, factor).flatten(3)


@functools.lru_cache(maxsize=256)
def _averaging(size: int, out: int) -> tuple[tuple[float, ...], ...]:
    """Weights (out, size) of adaptive average pooling, as `torch.nn.AdaptiveAvgPool2d` divides a side."""
    rows = []
    for i in range(out):
        start, end = i * size // out, math.ceil((i + 1) * size / out)
        rows.append(tuple(1 / (end - start) if start <= j < end else 0.0 for j in range(size)))
    return tuple(rows)


@functools.lru_cache(maxsize=256)
def _interpolation(size: int, out: int) -> tuple[tuple[float, ...], ...]:
    """Weights (out, size) of linear interpolation, pixels taken as areas (`align_corners=False`)."""
    rows = []
    for i in range(out):
        place = min(max((i + 0.5) * size / out - 0.5, 0.0), size - 1.0)
        left = min(int(place), max(size - 2, 0))
        row = [0.0] * size
        row[left] += 1 - (place - left)
        if size > 1:
            row[left + 1] += place - left
        rows.append(tuple(row))
    return tuple(rows)


def _resample(features: Tensor, rows: tuple[tuple[float, ...], ...], columns: tuple[tuple[float, ...], ...]) -> Tensor:
    left = torch.tensor(rows, dtype=features.dtype, device=features.device)
    right = torch.tensor(columns, dtype=features.dtype, device=features.device)
    return torch.einsum("jw,niwc->nijc", right, torch.einsum("ih,nhwc->niwc", left, features))


def average_to(features: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling: (n, h, w, c) -> (n, height, width, c)."""
    if features.shape[1:3] == (height, width):
        return features
    return _resample(features, _averaging(features.shape[1], height), _averaging(features.shape[2], width))


def resize_to(features: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation: (n, h, w, c) -> (n, height, width, c)."""
    if features.shape[1:3] == (height, width):
        return features
    return _resample(features, _interpolation(features.shape[1], height), _interpolation(features.shape[2], width))


def sincos_positions(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """Fixed 2-D sine and cosine position embeddings (h * w, dim): half of the channels for each axis.

    He et al. 2022 (MAE, arXiv 2111.06377) and Qwen-VL (arXiv 2308.12966). `dim` must be a multiple of 4.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def axis(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(device=like.device, dtype=like.dtype)

    return torch.cat([axis(width).repeat(height, 1), axis(height).repeat_interleave(width, 0)], dim=1)
