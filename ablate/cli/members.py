"""The members of one kind, or one member with its fields, their types, defaults and meaning.

ablate list recipes
ablate list connectors msc_csm
"""

import argparse
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.core.registry import Registry

HELP = "list connectors, encoders, language models, recipes, benchmarks, scan orders or engines"

# Kind, as in the names of the entry-point groups -> the module that has the registry, where a field is set.
KINDS = {
    "connectors": ("connectors.contract", "connector.fields."),
    "encoders": ("ablate.model.encoders", "encoder.fields=[...]: "),
    "languages": ("ablate.model.languages", "language.fields."),
    "recipes": ("ablate.model.recipe", "train.fields."),
    "benchmarks": ("ablate.evaluation.benchmarks", ""),
    "scan_orders": ("connectors.scan_orders", ""),
    "engines": ("ablate.sweeps.engines", "engine."),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("names", nargs="*", metavar="NAME", help="members to describe with all their fields")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    module, prefix = KINDS[arguments.kind]
    registry = importlib.import_module(module).registry
    for name in arguments.names:
        _describe(registry, name, prefix, console)
    if not arguments.names:
        _list(registry, console)
        console.print(f"One of them with its fields: ablate list {arguments.kind} NAME", style="dim")
    return 0


def _list(registry: "Registry", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    table.add_column(registry.kind, style="bold", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name in registry.names():
        table.add_row(name, Text(registry.describe(name).summary))
    console.print(table)


def _describe(registry: "Registry", name: str, prefix: str, console: "Console") -> None:
    from ablate.core.registry import fields_table

    found = registry.describe(name)
    own = registry.get(name).__doc__ or ""
    console.print(f"[bold]{name}[/bold]  ({found.module})", highlight=False)
    console.print(_without_arguments(own), markup=False, highlight=False)
    if found.fields:
        console.print(fields_table(found, prefix))
    else:
        console.print("It has no fields.", style="dim")


def _without_arguments(doc: str) -> str:
    """The docstring up to its sections: the fields come as a table."""
    import inspect

    text = inspect.cleandoc(doc)
    for section in ("\nArgs:", "\nRaises:", "\nAttributes:"):
        text = text.split(section)[0]
    return text.strip() + "\n"
