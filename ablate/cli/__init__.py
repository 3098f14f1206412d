"""The command line: `ablate train | eval | generate | sweep | table | power | failures | data | connectors`.

Each command is a module of this package with `HELP`, `add_arguments(parser)` and `run(arguments) -> exit status`. They
are the top floor: here the rooms below are put together, and nowhere else. A command's heavy imports stay inside its
`run`, so that `ablate --help` answers at once.
"""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from ablate import __version__
from ablate.errors import UserError

COMMANDS = {
    "train": "ablate.cli.train",
    "eval": "ablate.cli.evaluate",
    "score": "ablate.cli.score",
    "generate": "ablate.cli.generate",
    "sweep": "ablate.cli.sweep",
    "table": "ablate.cli.table",
    "power": "ablate.cli.power",
    "failures": "ablate.cli.failures",
    "data": "ablate.cli.data",
    "connectors": "ablate.cli.connectors",
}

# As a shell reports them: 128 + SIGINT, and the usual 1 for a failure that is not the user's.
INTERRUPTED = 130
FAILED = 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse tree."""
    parser = argparse.ArgumentParser(
        prog="ablate",
        description="Which connector between a vision encoder and a Mamba-2 language model is better, by how much, "
        "at what cost, and is the difference real?",
    )
    parser.add_argument("--version", action="version", version=f"ablate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; `key=value` settings may stand anywhere in it, before options and after."""
    parser = build_parser()
    # argparse gives up on positional arguments that come in two groups.
    arguments, rest = parser.parse_known_args(argv)
    if strangers := [each for each in rest if each.startswith("-") or "=" not in each or "overrides" not in arguments]:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; the user's mistakes become one message, not a traceback."""
    arguments = parse(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. What was finished is kept; the same command continues.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`ablate table | head`): nothing is left to say, and nobody to say it to.
        sys.stderr.close()
        return FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print(
            f"error: the disk is full{where}. What was finished is kept; free some space and repeat.", file=sys.stderr
        )
        return FAILED
