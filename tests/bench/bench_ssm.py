"""Forward and backward pass of one Mamba-2 mixer: ours beside transformers' PyTorch fallback, on the same weights.

Time: interleaved runs in one process, median of the pairwise ratios. Memory: one process each, the peak of one pass
above what the process held before it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Before the libraries load. A thread that waits for one which is not running must not spin: on a shared machine that
# would measure the neighbours.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TransformersMixer
from transformers.utils import logging

from ablate.ssm import Mamba2Mixer

BATCH, LENGTH, WIDTH, RUNS = 2, 1024, 512, 9
SPEED_GOAL, MEMORY_GOAL = 3.0, 0.5
# The chunk of transformers' default configuration (and of the released checkpoints), and the one that is fastest here.
CHUNKS = {"ours": None, "transformers, chunk 256": 256, "transformers, chunk 64": 64}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    ours = Mamba2Mixer(WIDTH)
    if CHUNKS[name] is None:
        return ours
    config = Mamba2Config(
        hidden_size=WIDTH,
        num_heads=ours.nheads,
        head_dim=ours.headdim,
        state_size=ours.d_state,
        n_groups=ours.ngroups,
        chunk_size=CHUNKS[name],
        num_hidden_layers=1,
    )
    theirs = TransformersMixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def run(mixer: nn.Module, hidden: Tensor) -> Tensor:
    mixer.zero_grad()
    leaf = hidden.detach().requires_grad_()
    mixer(leaf).square().mean().backward()
    return leaf.grad


def seconds(mixer: nn.Module, hidden: Tensor) -> float:
    begin = time.perf_counter()
    run(mixer, hidden)
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_memory(name: str, device: str) -> int:
    """Bytes that one pass needs at its peak beyond the weights and the input."""
    mixer, hidden = make(name).to(device), torch.randn(BATCH, LENGTH, WIDTH, device=device)
    run(mixer, hidden[:, :64])  # what the libraries allocate once
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(mixer, hidden)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak (VmHWM) starts again at what is held now
    before = resident("VmRSS")
    run(mixer, hidden)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def peak_memory_in_own_process(name: str) -> int:
    done = subprocess.run([sys.executable, __file__, "--memory", name], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    logging.set_verbosity_error()  # its advice on kernels that are not installed
    device = os.environ.get("BENCH_DEVICE", "cpu")
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(peak_memory(sys.argv[2], device)))
        return
    hidden = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
    mixers = {name: make(name).to(device) for name in CHUNKS}
    gradients = {name: run(mixer, hidden) for name, mixer in mixers.items()}  # and all are warm
    for name, gradient in gradients.items():
        error = (gradient - gradients["ours"]).abs().max() / gradient.abs().max()
        assert error < (1e-4 if device == "cpu" else 1e-2), f"ours and {name} differ by {error:.1e}"
    times = [{name: seconds(mixer, hidden) for name, mixer in mixers.items()} for _ in range(RUNS)]
    memory = {name: peak_memory_in_own_process(name) for name in CHUNKS}

    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(
        f"Mamba-2 mixer, forward and backward; batch {BATCH}, length {LENGTH}, d_model {WIDTH}, float32, {device}"
        f"{threads}; medians of {RUNS} interleaved runs"
    )
    print(f"{'':24} {'time':>10} {'ours is':>12} {'peak memory':>12} {'ours takes':>11}")
    for name in CHUNKS:
        speed = statistics.median(row[name] / row["ours"] for row in times)
        milliseconds = 1000 * statistics.median(row[name] for row in times)
        print(
            f"{name:24} {milliseconds:7.1f} ms {speed:6.2f}x fast {memory[name] / 2**20:8.1f} MiB "
            f"{memory['ours'] / memory[name]:10.2f}x"
        )
    print(f"(goals against transformers' default, chunk 256: at least {SPEED_GOAL:g}x, at most {MEMORY_GOAL:g}x)")


if __name__ == "__main__":
    main()
