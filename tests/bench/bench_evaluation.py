"""The demo's six tasks asked in batches beside one by one, by the same run; and the page of failures at 10,000 rows.

Asking and scoring are timed: the encoder's features are in the cache, the model is loaded, files go to a temporary
folder. Needs a finished run in runs/demo (`make sweep CONNECTOR=msc_csm`).
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from PIL import Image

from ablate.core.console import Reporter
from ablate.evaluation.failures import Answered, write_page
from ablate.pipeline.evaluate import create_benchmarks, score_run
from ablate.runs.folder import RunFiles
from ablate.runs.weights import load_run

RUNS, GOAL = 3, 3.0
ROWS, IMAGES, SECONDS = 10_000, 300, 1.0


def asking() -> None:
    finished = sorted(Path("runs/demo").glob("*/result.json"))
    if not finished:
        print("no finished run in runs/demo: `make sweep CONNECTOR=msc_csm` makes one; nothing was measured")
        return
    device = os.environ.get("BENCH_DEVICE", "cpu")
    run = finished[-1].parent
    config, vlm = load_run(run)
    vlm.to(device)
    benchmarks = create_benchmarks(config)
    questions = sum(len(benchmark.questions) for benchmark in benchmarks)

    def seconds(batch_size: int) -> float:
        config.evaluation.batch_size = batch_size
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            score_run(
                config, vlm, Path(folder), Reporter(None, None), benchmarks=benchmarks, weights=RunFiles(run).weights
            )
            return time.perf_counter() - began

    size = config.evaluation.batch_size
    seconds(size)  # fills the cache
    times = [(seconds(size), seconds(1)) for _ in range(RUNS)]
    batched, single = (statistics.median(column) for column in zip(*times, strict=True))
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(
        f"{run.name}, {questions:,} questions of {len(benchmarks)} tasks, float32, {device}{threads}; medians of "
        f"{RUNS} interleaved runs, scoring included: batch {size} {batched:.2f} s ({questions / batched:.0f} "
        f"questions/s), batch 1 {single:.2f} s: {single / batched:.2f}x (goal: at least {GOAL:g}x)"
    )


def page() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "failures.html"
        images = []
        for number in range(IMAGES):
            images.append(Path(folder) / f"{number}.jpg")
            Image.effect_noise((480, 360), 60 + number % 60).convert("RGB").save(images[-1])
        records = [
            {
                "id": str(number),
                "question": f"What is number {number}?",
                "prediction": f"answer {number % 97}",
                "answer": ["dog"] * 7 + ["puppy"] * 3,
                "score": 0.0,
                "weight": 1.0,
                "type": ("other", "yes/no", "number")[number % 3],
            }
            for number in range(ROWS)
        ]
        where = {("vqav2", str(number)): images[number % IMAGES] for number in range(ROWS)}
        began = time.perf_counter()
        write_page(path, [Answered(name, name, {"vqav2": records}) for name in ("mlp", "msc_csm")], where)
        print(
            f"page of {ROWS:,} rows of two runs, {IMAGES} different images of noise: written in "
            f"{time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e6:.1f} MB"
        )
        use(path)


def use(path: Path) -> None:
    """Milliseconds from an action to the painted result, in a real browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        print("no playwright, or no Chromium: the page was not opened")
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        opened = browser.new_page()

        def timed(act: Callable[[], object]) -> float:
            began = time.perf_counter()
            act()
            opened.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
            return time.perf_counter() - began

        actions = {
            "open": lambda: opened.goto(path.as_uri()),
            "choose a type": lambda: opened.select_option("#type", label="number"),
            "choose a connector": lambda: opened.select_option("#connector", label="msc_csm"),
            "search": lambda: opened.get_by_label("Text").fill("number 99"),
            "reset": lambda: opened.get_by_role("button", name="Reset").click(),
            "next page": lambda: opened.get_by_role("button", name="Next").click(),
            "last page": lambda: opened.select_option("#page", index=ROWS // 50 - 1),
        }
        shown = ", ".join(f"{name} {timed(act):.2f} s" for name, act in actions.items())
        nodes = opened.evaluate("document.querySelectorAll('*').length")
        print(f"in Chromium {browser.version}: {shown} (goal: under {SECONDS:g} s each); {nodes:,} elements")
        browser.close()


if __name__ == "__main__":
    asking()
    page()
