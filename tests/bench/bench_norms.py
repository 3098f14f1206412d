"""RMS norms that keep only their inputs for the backward pass, beside autograd through the same operations.

Forward and backward, in interleaved runs; memory is what the forward pass keeps beyond inputs and output.
"""

import os
import statistics
import time
from collections.abc import Callable

# Before the libraries load.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from ablate.ssm.norms import GatedRMSNorm, RMSNorm, plain_rms_norm

RUNS = 15
CASES = [(2048, 512), (4096, 1024), (1024, 5120)]  # tokens, width


def kept(forward: Callable[[], Tensor], known: set[int]) -> int:
    """Bytes that `forward` saves for its backward pass, other than those of `known` storages."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()
    return sum(size for place, size in saved.items() if place not in known | {out.untyped_storage().data_ptr()})


def seconds(forward: Callable[[], Tensor], inputs: list[Tensor], gradient: Tensor) -> float:
    begin = time.perf_counter()
    torch.autograd.grad(forward(), inputs, gradient)
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    device = os.environ.get("BENCH_DEVICE", "cpu")
    torch.manual_seed(0)
    for rows, dim in CASES:
        for gated in (False, True):
            norm = (GatedRMSNorm(dim) if gated else RMSNorm(dim)).to(device)
            given = [torch.randn(rows, dim, device=device, requires_grad=True) for _ in range(1 + gated)]
            z, inputs = given[1] if gated else None, [*given, norm.weight]

            def ours(norm: torch.nn.Module = norm, given: list[Tensor] = given) -> Tensor:
                return norm(*given)

            def plain(norm=norm, x: Tensor = given[0], z: Tensor | None = z, dim: int = dim) -> Tensor:
                return plain_rms_norm(x, z, norm.weight, norm.eps, dim, False)

            gradient = torch.randn(rows, dim, device=device)
            pairs = [[seconds(way, inputs, gradient) for way in (ours, plain)] for _ in range(RUNS + 1)]
            mine, other = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
            known = {each.untyped_storage().data_ptr() for each in inputs}
            memory = [kept(way, known) / 2**20 for way in (ours, plain)]
            print(
                f"{rows} x {dim}{', gated' if gated else '':7}: {other / mine:.2f}x the speed of autograd, "
                f"keeps {memory[0]:.1f} instead of {memory[1]:.1f} MiB"
            )


if __name__ == "__main__":
    main()
