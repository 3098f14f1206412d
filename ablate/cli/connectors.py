"""List the connectors with their parameters and cost, one connector's fields, measure them, or draw scan orders.

ablate connectors
ablate connectors msc_csm
ablate connectors --compare --sort milliseconds --png costs.png
ablate connectors --scan snake_rows --grid 5x8 --png scan.png
"""

import argparse
import re
from pathlib import Path

from ablate.core.errors import UserError

HELP = "list connectors, their fields and cost; draw scan orders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="connectors to describe with all their fields")
    parser.add_argument("--compare", action="store_true", help="count and measure them (or NAMEs), sorted")
    keys = "name, parameters, flops, tokens, memory or milliseconds"
    parser.add_argument("--sort", default="flops", metavar="KEY", help=f"order of --compare: {keys}")
    parser.add_argument("--at", choices=["demo", "paper"], default="demo", help="the sizes to compare at")
    parser.add_argument("--scan", default="", metavar="A,B", help="draw these scan orders instead (default: none)")
    parser.add_argument("--grid", default="5x8", metavar="HxW", help="the grid to draw them on")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw into this picture too (default: none)")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    if arguments.scan:
        _draw_scans(arguments, console)
    elif arguments.compare:
        _compare(arguments, console)
    elif arguments.names:
        for name in arguments.names:
            _describe(name, console)
    else:
        _list(console)
    return 0


def _list(console) -> None:
    from ablate.model.connector_report import connectors_table
    from connectors.scan_orders import scan_order_names

    console.print(connectors_table())
    console.print(f"Scan orders (ablate connectors --scan NAME): {', '.join(scan_order_names())}", style="dim")
    console.print("Fields of one connector: ablate connectors NAME", style="dim")


def _compare(arguments: argparse.Namespace, console) -> None:
    from ablate.model.connector_comparison import compare, comparison_table, draw_comparison_png
    from ablate.model.connector_report import DEMO, PAPER

    size = {"demo": DEMO, "paper": PAPER}[arguments.at]
    measured, left_out = compare(arguments.names or None, size, sort=arguments.sort)
    console.print(comparison_table(measured, left_out, size, arguments.sort))
    if arguments.png:
        console.print(f"Drawn in {draw_comparison_png(measured, size, arguments.png)}")


def _describe(name: str, console) -> None:
    from ablate.core.registry import fields_table
    from ablate.model.connector_report import connectors_table
    from connectors import describe

    console.print(connectors_table([name]))
    if describe(name).fields:
        console.print(fields_table(describe(name), "connector.fields."))
    else:
        console.print(f"{name} has no fields.", style="dim")


def _draw_scans(arguments: argparse.Namespace, console) -> None:
    from ablate.model.connector_report import draw_scan_png, scan_text

    height, width = _grid(arguments.grid)
    names = [name.strip() for name in arguments.scan.split(",") if name.strip()]
    if not names:
        raise UserError("--scan names no scan order: see the last lines of `ablate connectors`.")
    for name in names:
        console.print(scan_text(name, height, width))
    if arguments.png:
        console.print(f"Drawn in {draw_scan_png(names, height, width, arguments.png)}")


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", text)
    if not match:
        raise UserError(f'--grid is "{text}": expected height x width, such as 7x7 or 27x27.')
    return int(match[1]), int(match[2])
