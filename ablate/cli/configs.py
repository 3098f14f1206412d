"""How commands take settings: `--config FILE` (any number) and `key=value`."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablate.api.settings import run_config
from ablate.core.errors import UserError
from ablate.core.scalars import Scalar, to_argument

if TYPE_CHECKING:
    from ablate.runs.config import RunConfig


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of settings, or the name of one in experiments/ (such as demo); later ones win (default: none)",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings by their dotted key, such as connector.name=msc_csm seed=1 train.learning_rate=1e-3",
    )


def plain_settings(argv: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """The settings among the arguments as `key=value`, however a W&B agent writes them; other arguments as they are.

    Args:
        options: the command's own options, and whether a value follows each.

    Raises:
        UserError: an invalid JSON object.
    """
    plain: list[str] = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        name, equals, _ = argument.partition("=")
        if argument.startswith("{"):
            plain += _from_json(argument)
        elif name in options:
            plain.append(argument)
            if options[name] and not equals and waiting:
                plain.append(waiting.pop(0))
        elif not re.fullmatch(r"--\w[\w.]*", name):
            plain.append(argument)
        elif equals:
            plain.append(argument.removeprefix("--"))
        elif waiting and _is_value(waiting[0], name[2:]):
            plain.append(f"{name[2:]}={waiting.pop(0)}")
        else:
            plain.append(f"{name[2:]}=true")
    return plain


def _is_value(argument: str, key: str) -> bool:
    """Whether the argument after `--key` is its value. A setting that is true or false takes no `a=b` for one."""
    if argument.startswith("--"):
        return False
    if not re.match(r"[\w.+]+=", argument):
        return True
    from ablate.core.settings import settings
    from ablate.runs.config import RunConfig

    try:
        return [each.type for each in settings(RunConfig, key)] != ["bool"]
    except UserError:  # a field of a connector or another member, or no setting at all
        return False


def _from_json(text: str) -> list[str]:
    """Numbers, true and false keep the text that they have there: they may be meant for a setting that is a text."""
    try:
        settings = json.loads(text, parse_float=Scalar, parse_int=Scalar, parse_constant=Scalar)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{text}: expected settings as a JSON object: {error}") from None
    return [f"{key}={to_argument(_json_scalar(value))}" for key, value in settings.items()]


def _json_scalar(value: Any) -> Any:
    return Scalar(json.dumps(value)) if isinstance(value, bool) else value


def load_run_config(arguments: argparse.Namespace) -> "RunConfig":
    return run_config(arguments.config, arguments.overrides)
