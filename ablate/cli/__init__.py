"""The command line: `ablate train | eval | generate | sweep | table | power | ... | list | config`.

Each command is a module of this package with `HELP`, `add_arguments(parser)` and `run(arguments) -> exit status`. They
are the top layer: here those below are put together, and nowhere else. A command's heavy imports stay inside its
`run`, so that `ablate --help` answers at once.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ablate import __version__
from ablate.cli.configs import plain_settings
from ablate.core.errors import UserError, file_problem

COMMANDS = {
    "train": "ablate.cli.train",
    "eval": "ablate.cli.evaluate",
    "score": "ablate.cli.score",
    "generate": "ablate.cli.generate",
    "distill": "ablate.cli.distill",
    "sweep": "ablate.cli.sweep",
    "table": "ablate.cli.table",
    "power": "ablate.cli.power",
    "failures": "ablate.cli.failures",
    "data": "ablate.cli.data",
    "connectors": "ablate.cli.connectors",
    "list": "ablate.cli.members",
    "config": "ablate.cli.config",
}

# As a shell reports them: 128 + SIGINT, and the usual 1 for a failure that is not the user's.
INTERRUPTED = 130
FAILED = 1


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines, and names every default that the option's own help does not."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        number = isinstance(action.default, (int, float)) and not isinstance(action.default, bool)
        if not (number or action.default) or action.default is argparse.SUPPRESS or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose help names the defaults; the subcommands made from it are such parsers too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help} | options)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse tree."""
    parser = Parser(
        prog="ablate",
        description="Which connector between a vision encoder and a Mamba-2 language model is better, by how much, "
        "at what cost, and is the difference real?",
    )
    parser.add_argument("--version", action="version", version=f"ablate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; `key=value` settings may stand anywhere in it, before options and after.

    `train` takes settings as W&B's agents write them, too: `--seed=1`, `--seed 1`, `--blind` (true), `+seed=1` and one
    JSON object. Where the command is missing, as in W&B's default command, it is `train`.
    """
    parser = build_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and re.match(r"(--|\+)[\w.]+=|\{", argv[0]):
        argv.insert(0, "train")
    if argv[:1] == ["train"]:
        try:
            argv = ["train", *plain_settings(argv[1:], _options(parser, "train"))]
        except UserError as error:
            parser.error(str(error))
    # argparse gives up on positional arguments that come in two groups.
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [each for each in rest if each.startswith("-") or "=" not in each or "overrides" not in arguments]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _options(parser: argparse.ArgumentParser, command: str) -> dict[str, bool]:
    """The options of a command, and whether a value follows each."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    actions = commands.choices[command]._actions
    return {option: action.nargs != 0 for action in actions for option in action.option_strings}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; the user's mistakes become one message, not a traceback."""
    arguments = parse(argv)
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()  # so that an error is raised here, where it can be reported
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. What was finished is kept; the same command continues.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`ablate table | head`): there is nobody left to report to.
        _give_up_output()
        sys.stderr.close()
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        print(f"error: not enough memory ({reason}): use a smaller batch, or a smaller model.", file=sys.stderr)
        return FAILED
    except OSError as error:
        problem = file_problem(error)
        if not problem:
            raise
        print(f"error: {problem}", file=sys.stderr)
        if error.filename is None:
            _give_up_output()
        return FAILED


def _is_memory(error: Exception) -> bool:
    """Whether there was too little memory. PyTorch has no type of error for it on the CPU."""
    messages = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in messages)


def _give_up_output() -> None:
    """What standard output still holds is dropped: Python would try again to write it at the end, and complain."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
