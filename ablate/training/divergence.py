"""Stop a run that can no longer come right, and say what to do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from ablate.core.errors import UserError


class Diverged(UserError):
    """The loss or the gradient is not finite, or the loss stays far above where it was."""

    exit_code = 3


class DivergenceMonitor:
    """Watches the loss of each step.

    A loss counts as high when it exceeds both `factor` times the median of the last `window` losses that were not high,
    and one nat per token: below that, a small batch of hard answers is enough to multiply the loss. One high loss is a
    hard batch; `patience` of them in a row are divergence.

    Args:
        factor: how many times the running median is too much; 0 looks for non-finite values alone.
        window: how many losses the median is taken over.
        patience: how many high losses in a row are divergence.
        warmup: how many losses to see before judging.
    """

    def __init__(self, factor: float, *, window: int = 100, patience: int = 5, warmup: int = 20) -> None:
        self.factor, self.patience, self.warmup = factor, patience, min(warmup, window)
        self._losses: deque[float] = deque(maxlen=window)
        self._high_in_a_row = 0

    def check(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with this step (None: nothing). `loss` in nats per answer token."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the loss is {loss:.4g} but the gradient's norm is {grad_norm}"
        if self.factor > 0 and len(self._losses) >= self.warmup:
            normal = median(self._losses)
            if loss > max(self.factor * normal, 1.0):
                self._high_in_a_row += 1
                if self._high_in_a_row < self.patience:
                    return None
                return (
                    f"the loss is {loss:.4g}, for {self.patience} steps now over {self.factor:g} times its running "
                    f"median ({normal:.4g})"
                )
        self._high_in_a_row = 0
        self._losses.append(loss)
        return None


def diverged(step: int, reason: str, keys: Sequence[str], learning_rate: float, checkpoint_step: int) -> Diverged:
    """The error to raise. `keys` are those of the step's batch; `checkpoint_step` is the last one saved (0: none)."""
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    kept = f"the checkpoint of step {checkpoint_step} is kept" if checkpoint_step else "no checkpoint was written yet"
    return Diverged(
        f"Training diverged at step {step}: {reason}.\n"
        f"  batch: {shown or 'no keys'}\n"
        f"  Weights of this step were not updated; {kept}.\n"
        f"  Try a lower train.learning_rate (it was {learning_rate:.3g}), a longer train.warmup_ratio or a smaller "
        "train.clip_norm; with train.precision=bfloat16, try float32. If it always stops at the same samples, look at "
        "those. A higher train.divergence_factor tolerates more."
    )
