"""AdamW's parameter groups, the learning-rate schedule and the norm of the gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Never decayed, in any module; also where a connector stacks those of several scans along another axis.
_NEVER_DECAYED = ("bias", "A_log", "D", "dt_bias")


def parameter_groups(
    module: nn.Module, weight_decay: float, learning_rate: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The learning parameters as AdamW groups: those with `weight_decay`, and those with none, of each learning rate.

    Args:
        rates: child of the module -> factor of `learning_rate`; 1 for those that it does not name.

    Without: norms, biases, the scan's A_log, dt_bias and D, vectors and scalars of any kind, and parameters that carry
    mamba-ssm's mark `_no_weight_decay`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    factors = [1.0, *(rates or {}).values()]
    for factor in sorted(set(factors), key=factors.index):
        groups |= {(factor, weight_decay): [], (factor, 0.0): []} if weight_decay else {(factor, 0.0): []}
    seen: set[nn.Parameter] = set()  # tied weights appear once for each owner
    for path, owner in module.named_modules():
        factor = (rates or {}).get(path.partition(".")[0], 1.0)
        is_norm = "Norm" in type(owner).__name__
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            never = name.endswith("_bias") or name in _NEVER_DECAYED or getattr(parameter, "_no_weight_decay", False)
            decay = 0.0 if is_norm or parameter.ndim < 2 or never else weight_decay
            groups[factor, decay].append(parameter)
    return [
        {"params": found, "weight_decay": decay, "lr": learning_rate * factor}
        for (factor, decay), found in groups.items()
        if found
    ]


def learning_rate_factor(step: int, steps: int, warmup_ratio: float, min_ratio: float = 0.0) -> float:
    """Linear warm-up, then cosine down to `min_ratio`, as a factor of the peak rate.

    `step` counts from 0. The first step already learns, and so does the last: `min_ratio` is reached at `steps`.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def total_norm(gradients: list[Tensor]) -> float:
    """The norm of all gradients together. The sum is exact, so gradients of zero do not change its last bit: blind runs
    of connectors with as many visual tokens stay equal.
    """
    norms = torch.stack(torch._foreach_norm(gradients)).tolist() if gradients else []
    return math.sqrt(math.fsum(norm * norm for norm in norms))
