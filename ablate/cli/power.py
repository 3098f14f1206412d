"""How many seeds and questions a difference needs, from runs that are there (a pilot).

ablate power runs/demo --difference 1.0               points, on the mean of the tasks
ablate power runs/demo --difference 2 --task gqa --rows 4 --out plan/

The variance of seeds, of images and of both together is estimated from the pilot's runs. The table says how likely an
ablation table with so many seeds and questions is to find the difference, and which reaches 80% at the least time.
"""

import argparse
from pathlib import Path

HELP = "how many seeds and questions a difference needs, from a pilot's runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUNS", help="runs, or groups of runs")
    parser.add_argument("--difference", type=float, required=True, metavar="POINTS", help="the difference to be found")
    parser.add_argument("--task", default="", metavar="TASK", help="on this task (default: on the mean of all)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the planned table (default: the pilot's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where power.png goes (default: the first group)")


def run(arguments: argparse.Namespace) -> int:
    from ablate.tables import default_console
    from ablate.tables.power import power_report, print_report

    report = power_report(arguments.folders, arguments.difference, arguments.task, arguments.rows)
    print_report(report, arguments.out, default_console())
    return 0
