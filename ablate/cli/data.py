"""Make data, and check it.

ablate data demo                      real photos, a real encoder, a real tokenizer, six tasks: data/demo
ablate data demo --root DIR n_train_images=500 pictures=procedural
ablate data check vqav2 /data/vqav2   a benchmark's folder: files, schema, ids, counts, every image
ablate data check shards/             a folder of training shards
"""

import argparse
from pathlib import Path

from ablate.cli.configs import add_overrides
from ablate.errors import UserError

HELP = "make the demo's data; check benchmarks and shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    demo = kinds.add_parser("demo", help="the demo dataset, from package registries' real parts")
    demo.add_argument("--root", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    add_overrides(demo)
    check = kinds.add_parser("check", help="is a benchmark's folder, or a folder of shards, complete and sound?")
    check.add_argument(
        "what", nargs="+", metavar="[BENCHMARK] PATH", help="a benchmark's name and its folder, or a folder of shards"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object (benchmarks)")


def run(arguments: argparse.Namespace) -> int:
    return {"demo": _demo, "check": _check}[arguments.kind](arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from ablate.cli.demo import build, describe
    from ablate.config import load
    from datamodules.demo.config import DemoConfig

    paths = build(arguments.root, load(DemoConfig, (), arguments.overrides))
    describe(paths)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if len(arguments.what) == 2:
        from ablate.cli.data_benchmarks import check

        return check(*arguments.what, as_json=arguments.json)
    if len(arguments.what) == 1:
        return _check_shards(*arguments.what)
    raise UserError(
        f"Got {' '.join(arguments.what)}: expected a benchmark's name and its folder, or a folder of shards."
    )


def _check_shards(path: str) -> int:
    from ablate.evaluation.benchmarks import names
    from datamodules.shards import ShardSet

    if path in names() and not Path(path).exists():
        raise UserError(f"{path} is a benchmark: give its folder too, as in ablate data check {path} /data/{path}.")
    shards = ShardSet.open([path])
    shards.verify()
    print(f"{path}: {len(shards.shards)} shards, as their index describes them.")
    return 0
