"""Print the ablation table of finished runs and save it as Markdown, CSV and PNG.

ablate table                              the newest group of runs
ablate table runs/demo --baseline mlp --margin 3
ablate table runs/a runs/b/mlp-s0-1f2e3d4c --out comparison/
ablate table runs/a --vary evaluation.prompt     rows are meant to differ in their prompt

Rows that were asked other questions, trained on other data or started from other weights are shown and not compared.
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
        help="the row to compare with (default: that whose settings most rows share)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="call rows equal that differ by less (default: the margin that the runs were started with, `margin=3`)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to save it (default: the group's folder)")
    parser.add_argument(
        "--vary",
        default="",
        metavar="A,B",
        help="settings in which rows are meant to differ (default: those that their sweep varies)",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare rows although they are not alike; they are marked as such"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("runs"), metavar="DIR", help="where to look for the newest group"
    )


def run(arguments: argparse.Namespace) -> int:
    from ablate.tables import show, table

    found = table(
        arguments.folders,
        arguments.baseline,
        margin=arguments.margin,
        root=arguments.root,
        force=arguments.force,
        vary=[key.strip() for key in arguments.vary.split(",") if key.strip()],
    )
    show(found, arguments.out)
    return 0
