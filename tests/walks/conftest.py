"""Walks: what a user does who adds a member. `packages/` holds small packages outside the project, of one file each.

A test installs one with pip into a folder of its own, and runs commands in fresh processes that find it by its entry
point alone. The demo that they train on is a small one, built once for all walks.
"""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ablate.core.files import read_json
from ablate.demo import build as demo
from ablate.demo import parts
from ablate.demo.config import TASKS, DemoConfig, DemoPaths
from ablate.runs.folder import RunFiles

PACKAGES = Path(__file__).parent / "packages"
PROJECT = Path(__file__).parents[2]
_DATA = runpy.run_path(str(PROJECT / "tests" / "datamodules" / "conftest.py"))
tokenizer_file = _DATA["tokenizer_file"]


class Walk:
    """An installed package: `run` starts Python beside it, in an empty folder."""

    def __init__(self, package: str, site: Path, folder: Path, demo: DemoPaths) -> None:
        self.package, self.site, self.folder, self.demo = package, site, folder, demo
        self.settings = demo_settings(demo)

    def run(self, *command: str) -> str:
        """What `python COMMAND` prints, stdout and stderr; its exit status has to be 0."""
        environment = os.environ | {
            "PYTHONPATH": f"{self.site}{os.pathsep}{PROJECT}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"python {' '.join(command)}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def check_and_train(self, *overrides: str) -> RunFiles:
        """`python -m ablate.testing PACKAGE`, then `ablate train` on the small demo for some steps; the run's files.

        In one process, to start Python once.
        """
        said = self.run("-c", _CHECK_AND_TRAIN, self.package, "train", *self._settings(overrides))
        assert "checks, none failed" in said
        return self._newest()

    def train(self, *overrides: str) -> RunFiles:
        """`ablate train` alone."""
        self.run("-m", "ablate.cli", "train", *self._settings(overrides))
        return self._newest()

    def _settings(self, overrides: tuple[str, ...]) -> list[str]:
        """The walk's over the demo's: a group that it sets replaces the demo's whole group."""
        replaced = {override.partition("=")[0] for override in overrides}
        return [each for each in self.settings if each.partition("=")[0] not in replaced] + list(overrides)

    def _newest(self) -> RunFiles:
        result = max(self.folder.glob("runs/**/result.json"), key=lambda path: path.stat().st_mtime_ns)
        assert read_json(result)["scores"], "the run was not evaluated"
        return RunFiles(result.parent)


_CHECK_AND_TRAIN = """
import sys
import ablate.cli
from ablate.testing.__main__ import main
sys.exit(main(sys.argv[1:2]) or ablate.cli.main(sys.argv[2:]))
"""


@pytest.fixture
def walk(tmp_path: Path, small_demo: DemoPaths) -> Callable[[str], Walk]:
    """walk("name"): the package `packages/name`, installed."""

    def install(name: str) -> Walk:
        source, site, folder = tmp_path / "source", tmp_path / "site", tmp_path / "work"
        shutil.copytree(PACKAGES / name, source)
        folder.mkdir()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", str(site), str(source)], check=True)
        return Walk(name, site, folder, small_demo)

    return install


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> DemoPaths:
    """The demo's data with drawn shapes: 24 training pictures, six tasks of 24 questions, a small tokenizer."""
    root = tmp_path_factory.mktemp("demo")

    def tokenizer(folder: Path, progress: object) -> Path:
        path = DemoPaths(root).tokenizer
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(tokenizer_file, path))

    config = DemoConfig(n_train_images=24, n_eval_questions=24, image_size=64, pictures="procedural", num_workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "fetch_tokenizer", tokenizer)
        patch.setattr(parts, "fetch_encoder", lambda folder, progress: folder / "encoder.pth")
        patch.setattr(demo, "contact_sheet", lambda plans, catalogue: Image.new("RGB", (8, 8)))
        return demo.build_demo(root, config, lambda line: None)


def demo_settings(paths: DemoPaths) -> list[str]:
    """A small model on that demo; the connector, encoder, language model, recipe and benchmarks are the walk's."""
    return [
        "encoder.names=[test_resnet]",
        "encoder.weights=[random]",
        "encoder.layer=[final]",
        "encoder.image_size=[64]",
        "encoder.precision=float32",
        "connector.name=linear",
        "language={d_model: 32, n_layer: 1, vocab_size: 400, ssm_cfg: {d_state: 8, headdim: 8}}",
        f"tokenizer={paths.tokenizer}",
        f"data.shards=[{paths.train}]",
        "data.batch_size=4",
        "train.learning_rate=1e-2",
        "features.runs=1",
        f"evaluation.root={paths.eval}",
        f"evaluation.benchmarks=[{TASKS[0]}]",
        "evaluation.prompt=bare",
        "evaluation.max_new_tokens=2",
        "logger.wandb=disabled",
        "root=runs",
    ]
