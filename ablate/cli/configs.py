"""How commands take settings: `--config FILE` (any number) and `key=value`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import ablate
from ablate.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ablate.training import RunConfig

# Beside this package both in a clone and where pip installs.
EXPERIMENTS = Path(ablate.__file__).parent.parent / "experiments"


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


def find_experiment(name: str, folder: str = "") -> Path:
    """The YAML file `name`: a path, or the name of a file in experiments/<folder>.

    Raises:
        UserError: neither; the message lists the names there.
    """
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        # As sweep files name it, wherever the command runs.
        packaged = EXPERIMENTS.joinpath(*path.parts[1:])
        if path.parts[0] == "experiments" and packaged.is_file():
            return packaged
        raise UserError(f"There is no file {path}.")
    shelf = EXPERIMENTS / folder
    if (file := shelf / f"{name}.yaml").is_file():
        return file
    raise unknown_name("sweep" if folder else "config", name, [path.stem for path in shelf.glob("*.yaml")])


def load_run_config(arguments: argparse.Namespace) -> "RunConfig":
    from ablate.config import load
    from ablate.training import RunConfig

    return load(RunConfig, [find_experiment(name) for name in arguments.config], arguments.overrides)
