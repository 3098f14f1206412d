"""Seconds until a command answers, as a ratio to `python -c "import torch"`; all take turns in the same run.

`generate` answers one question without an image from a tiny run, so what it takes is imports and start-up.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_tables import write_run

import ablate
from ablate.core import config as config_io
from ablate.model import build_vlm
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.weights import save_weights

ROUNDS = 5
AIMS = {"--help": 0.3, "list connectors": 1.3, "train --config demo --print-config": 1.3, "connectors": 1.3}
AIMS |= {"table runs": 1.3, "generate": 3.0}


def write_model(folder: Path) -> None:
    """A run that counts as trained, with its initial weights."""
    from tokenizers import Tokenizer, models

    vocabulary = {"<|endoftext|>": 0, "what": 1, "it": 2}
    Tokenizer(models.WordLevel(vocabulary, "what")).save(str(folder / "tokenizer.json"))
    settings = [
        "encoder.names=[test_resnet]",
        "encoder.weights=[random]",
        "encoder.layer=[final]",
        "encoder.image_size=[32]",
        "language={d_model: 16, n_layer: 1, vocab_size: 64, ssm_cfg: {d_state: 8, headdim: 8}}",
        f"tokenizer={folder / 'tokenizer.json'}",
    ]
    config = config_io.load(RunConfig, overrides=settings)
    (folder / "config.yaml").write_text(config_io.to_yaml(config))
    save_weights(build_vlm(config.model, seed=0), RunFiles(folder).weights, {"connector", "language"})


def seconds(command: Sequence[str], folder: Path) -> float:
    # -P: `python -m` puts the working directory first, where another ablate may lie.
    environment = os.environ | {"PYTHONPATH": str(Path(ablate.__file__).parents[1])}
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-P", *command], cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_model(folder / "model")
        plain = config_io.flatten(config_io.load(RunConfig, [folder / "model" / "config.yaml"]))
        for number in range(4):
            write_run(folder / "runs", number, 2, plain)
        commands = {name: ["-m", "ablate", *name.split()] for name in AIMS}
        commands["generate"] += ["--run", "model", "--prompt", "what"]
        commands["import torch"] = ["-c", "import torch"]
        for command in commands.values():
            seconds(command, folder)  # compiled, and in the file cache
        times = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
        reference = statistics.median(times["import torch"])
        print(f"import torch: {reference:.2f} s, median of {ROUNDS}")
        for name, aim in AIMS.items():
            print(f"  {'ablate ' + name:46} {statistics.median(times[name]) / reference:5.2f}x (aim {aim:g}x)")


if __name__ == "__main__":
    main()
