"""A training step of the demo's model, one thread: beside its matrix products, and beside one with the encoder in it.

The model is that of experiments/demo.yaml with random weights, the batch eight rows of the demo's mean length.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ablate.core.config import load
from ablate.model import VLM, build_vlm
from ablate.runs.config import RunConfig
from ablate.training.optimization import parameter_groups, total_norm
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID

DEMO = Path(__file__).parents[2] / "experiments" / "demo.yaml"
CONNECTORS = ("linear", "adaptive_avg", "mlp", "msc_csm")
ROWS, TEXT, ANSWER = 8, 50, 16
STEPS, SAMPLES = 12, 3
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::baddbmm_")
STEP_GOAL, CACHE_GOAL = 2.0, 5.0


def build(name: str) -> VLM:
    config = load(RunConfig, [DEMO], [f"connector.name={name}"])
    vlm = build_vlm(replace(config.model, encoder=replace(config.encoder, weights=["random"])), seed=0)
    vlm.encoder.requires_grad_(False)
    return vlm.train()


def batch_for(vlm: VLM) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(1, 500, (ROWS, TEXT), generator=generator)
    ids = torch.cat([torch.full((ROWS, vlm.num_visual_tokens), IMAGE_TOKEN_ID), text], dim=1)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    features = torch.randn(ROWS, *vlm.encoder.grid, vlm.encoder.dim, generator=generator)
    return {"input_ids": ids, "labels": labels, "mask": torch.ones_like(ids, dtype=torch.bool), "features": features}


def stepper(vlm: VLM, batch: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameter_groups(vlm, 0.1, 5e-4), lr=5e-4, fused=True)

    def step() -> None:
        vlm.loss(batch).total.backward()
        total_norm([parameter.grad for parameter in vlm.parameters() if parameter.grad is not None])
        optimizer.step()
        optimizer.zero_grad()

    return step


def median_seconds(run: Callable[[], object]) -> float:
    for _ in range(3):
        run()
    samples = []
    for _ in range(STEPS * SAMPLES):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def products_seconds(run: Callable[[], object]) -> float:
    """Time in matrix products, a step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            run()
    return sum(each.self_cpu_time_total for each in found.key_averages() if each.key in PRODUCTS) / 1e6 / STEPS


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def product_speed() -> float:
    """FLOPs a second of a product of 512 x 512 matrices."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return 2 * 512**3 / median_seconds(lambda: a @ b)


def main() -> None:
    torch.set_num_threads(1)
    speed = product_speed()
    print(
        f"Matrix product of 512 x 512: {speed / 1e9:.0f} GFLOP/s. Aims: a step within {STEP_GOAL:g}x of its products,"
    )
    print(f"a step from cached features {CACHE_GOAL:g}x as fast as one through the encoder.\n")
    print(f"{'connector':<14}{'step ms':>9}{'GFLOP':>8}{'x products':>12}{'x FLOPs':>9}{'encoder in it':>15}")
    for name in CONNECTORS:
        vlm = build(name)
        batch = batch_for(vlm)
        step = stepper(vlm, batch)
        seconds, products, count = median_seconds(step), products_seconds(step), flops(step)
        side = vlm.encoder.towers[0].image_size
        images = {**batch, "features": None, "images": [torch.randn(ROWS, 3, side, side)]}
        with_encoder = median_seconds(stepper(vlm, images))
        print(
            f"{name:<14}{1e3 * seconds:>9.1f}{count / 1e9:>8.2f}{seconds / products:>11.2f}x"
            f"{seconds / (count / speed):>8.2f}x{with_encoder / seconds:>14.2f}x"
        )
    print("\nx products: against the time that the same steps spend in matrix products.")
    print("x FLOPs: against the time of their FLOPs at the speed above.")
    print("encoder in it: the time of a step that encodes its images, against one from features.")


if __name__ == "__main__":
    main()
