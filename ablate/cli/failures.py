"""Write one HTML page of what runs got wrong, side by side: image, question, answers, predictions, scores.

  ablate failures runs/demo/msc_csm-s0-1f2e3d4c --out failures.html
  ablate failures runs/demo --out failures.html             all finished runs of a group
  ablate failures A/eval B/eval --out failures.html         what `ablate eval` wrote

The page needs no server and no network. It filters by task, type, connector and text.
"""

import argparse
from pathlib import Path

HELP = "write a page of the wrong answers of runs, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="runs, groups of runs, or folders of `ablate eval`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, such as failures.html")


def run(arguments: argparse.Namespace) -> int:
    from ablate.tables.failures import write_failures

    written = write_failures(arguments.folders, arguments.out)
    shown = "all of them" if written.shown == written.failures else f"{written.shown:,} of them, evenly spaced"
    print(f"{written.failures:,} questions with a wrong answer; the page shows {shown}: {arguments.out}")
    if written.without_image:
        print(f"{written.without_image:,} of them have no image: its file is not where the evaluation found it.")
    return 0
