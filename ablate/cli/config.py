"""Every setting of a run with its type, default and meaning; one group or one setting of them.

ablate config
ablate config train
ablate config train.learning_rate
"""

import argparse

HELP = "explain the settings of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a setting or a group (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from ablate.core.settings import settings
    from ablate.runs.config import RunConfig

    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    for setting in settings(RunConfig, arguments.key):
        line = Text.assemble((setting.key, "bold"), f" = {setting.default}", (f"  ({setting.type})", "dim"))
        console.print(line, soft_wrap=True)
        if setting.doc:
            console.print(Padding(Text(setting.doc), (0, 0, 0, 4)))
    return 0
