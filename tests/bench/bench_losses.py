"""Cross entropy of every answer token, beside torch's `linear_cross_entropy`: time and peak memory.

Forward and backward to hidden states and the output weight. Ours takes the logits again in the backward pass, and so
does torch's in chunks without a reduction; its sum takes the gradients in the forward pass. Runs are interleaved; the
peak is that of a process which does nothing else.
"""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

# Before the libraries load.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.model.vlm import token_losses
from ablate.training.memory import peak_bytes, reset_peak

RUNS = 3
CASES = [(200, 128, 50280), (4096, 128, 50280), (1024, 1024, 50280)]  # answer tokens, width, vocabulary
Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]


class Head(nn.Module):
    """Of a language model, what `token_losses` needs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.logits, self.padded_vocab_size = linear, linear.out_features


def ours(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return token_losses(Head(head), hidden, targets).sum()


def torchs(reduction: str, *, chunked: bool = True) -> Loss:
    def loss(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        losses = F.linear_cross_entropy(hidden, head.weight, targets, reduction=reduction, options=options)
        return losses.sum()

    return loss


WAYS: dict[str, Loss] = {
    "ours": ours,
    "torch, no reduction": torchs("none"),
    "torch, sum": torchs("sum"),
    "torch, not chunked": torchs("none", chunked=False),
}


def example(tokens: int, width: int, vocabulary: int, device: str) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False, device=device)
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    return head, hidden, torch.randint(vocabulary, (tokens,), device=device)


def seconds(way: str, head: nn.Linear, hidden: Tensor, targets: Tensor) -> float:
    begin = time.perf_counter()
    torch.autograd.grad(WAYS[way](head, hidden, targets), [hidden, head.weight])
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak(way: str, case: tuple[int, int, int], device: str) -> float:
    """MiB beyond weight, hidden states and targets."""
    given, where = example(*case, device), torch.device(device)
    reset_peak(where)
    before = peak_bytes(where)
    seconds(way, *given)
    return (peak_bytes(where) - before) / 2**20


def main() -> None:
    device = os.environ.get("BENCH_DEVICE", "cpu")
    for case in CASES:
        given = example(*case, device)
        runs = [[seconds(way, *given) for way in WAYS] for _ in range(RUNS + 1)]
        medians = [statistics.median(column) for column in zip(*runs[1:], strict=True)]
        print(f"{case[0]} tokens, width {case[1]}, {case[2]} words")
        for way, median in zip(WAYS, medians, strict=True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                memory = alone.submit(peak, way, case, device).result()
            print(f"  {way:20} {medians[0] / median:5.2f}x the speed of ours, {memory:6.0f} MiB")


if __name__ == "__main__":
    main()
