"""What four scans cost beside two: time of msc_csm over time of msc_bsm, forward and backward.

Goal: at most 1.7. Both connectors take turns, so that what else the machine does meets them alike; medians.
"""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch import nn

import connectors
from ablate.model.connector_report import DEMO, PAPER, Size

GOAL = 1.7


def seconds(connector: nn.Module, features: torch.Tensor) -> float:
    """One training step's share: forward and backward, gradients of the weights only, as the encoder is frozen."""
    connector.zero_grad()
    start = time.perf_counter()
    connector(features).float().square().mean().backward()
    if features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(size: Size, arrangement: str, *, batch: int, rounds: int, device: str) -> tuple[float, float]:
    """Median seconds of (msc_bsm, msc_csm) over interleaved rounds, the first of each left out."""
    torch.manual_seed(0)
    features = torch.randn(batch, size.height, size.width, size.in_dim, device=device)
    pair = [
        connectors.create(name, size.in_dim, size.out_dim, arrangement=arrangement).to(device)
        for name in ("msc_bsm", "msc_csm")
    ]
    times = [[seconds(connector, features) for connector in pair] for _ in range(rounds + 1)]
    two, four = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return two, four


def main() -> None:
    device = os.environ.get("BENCH_DEVICE", "cpu")
    torch.set_num_threads(2)
    print(f"{'size':32} {'arrangement':12} {'msc_bsm':>10} {'msc_csm':>10} {'ratio':>6}   goal <= {GOAL}")
    for size, batch, rounds in ((DEMO, 8, 40), (PAPER, 1, 2)):
        for arrangement in ("paper", "released"):
            two, four = compare(size, arrangement, batch=batch, rounds=rounds, device=device)
            verdict = "met" if four <= GOAL * two else "MISSED"
            label = f"{size.label}: {size}, batch {batch}"
            print(f"{label:32} {arrangement:12} {two:9.3f}s {four:9.3f}s {four / two:6.2f}   {verdict}", flush=True)


if __name__ == "__main__":
    main()
