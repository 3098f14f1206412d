"""Print the ablation table of finished runs and save it as Markdown, CSV and PNG.

ablate table                              the newest group of runs
ablate table runs/demo --baseline mlp --margin 3
ablate table runs/a runs/b/mlp-s0-1f2e3d4c --out comparison/
"""

import argparse
from pathlib import Path

HELP = "print and save the ablation table of finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="runs, or groups of runs")
    parser.add_argument(
        "--baseline",
        default="",
        metavar="NAME",
        help="the row to compare with (default: mlp, linear or the first)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="call rows equal that differ by less (default: the margin that the runs were started with, `margin=3`)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to save it (default: the group's folder)")
    parser.add_argument(
        "--root", type=Path, default=Path("runs"), metavar="DIR", help="where to look for the newest group"
    )


def run(arguments: argparse.Namespace) -> int:
    from ablate.tables import make_tables

    make_tables(arguments.folders, arguments.baseline, arguments.out, margin=arguments.margin, root=arguments.root)
    return 0
