"""Make data.

ablate data demo                      real photos, a real encoder, a real tokenizer, six tasks: data/demo
ablate data demo --root DIR n_train_images=500 pictures=procedural
"""

import argparse
from pathlib import Path

from ablate.cli.configs import add_overrides

HELP = "make the demo's data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    demo = kinds.add_parser("demo", help="the demo dataset, from package registries' real parts")
    demo.add_argument("--root", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    add_overrides(demo)


def run(arguments: argparse.Namespace) -> int:
    from ablate.cli.demo import build, describe
    from ablate.config import load
    from datamodules.demo.config import DemoConfig

    paths = build(arguments.root, load(DemoConfig, (), arguments.overrides))
    describe(paths)
    return 0
