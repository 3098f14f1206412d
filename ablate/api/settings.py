"""A run's settings from the names of experiments, files, mappings and `key=value`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import ablate
from ablate.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ablate.runs.config import RunConfig

    # An experiment's name, a YAML file, a mapping as in such a file, or a whole config.
    Settings: TypeAlias = str | Path | Mapping[str, Any] | RunConfig

# Beside this package both in a clone and where pip installs.
EXPERIMENTS = Path(ablate.__file__).parent.parent / "experiments"


def run_config(given: "Settings | Sequence[Settings]", overrides: Sequence[str] = ()) -> "RunConfig":
    """The config of a run.

    Args:
        given: the name of an experiment (a file in experiments/), a YAML file, a mapping with the keys of such a file,
            or a whole config; or several of these, of which later ones win.
        overrides: `key=value` with dotted keys, which win over all of these.

    Raises:
        UserError: an unknown experiment, and as `ablate.core.config.load`.
    """
    from ablate.core.config import load, to_data
    from ablate.runs.config import RunConfig

    layers: list[Path | Mapping[str, Any]] = []
    for each in [given] if isinstance(given, str | Path | Mapping | RunConfig) else given:
        if isinstance(each, str | Path):
            layers.append(find_experiment(str(each)))
        elif isinstance(each, Mapping | RunConfig):
            layers.append(each if isinstance(each, Mapping) else to_data(each))
        else:
            raise UserError(
                f"{each!r} is of type {type(each).__name__}: expected an experiment's name, a YAML file, a mapping or "
                "a RunConfig."
            )
    return load(RunConfig, layers, overrides)


def find_experiment(name: str, folder: str = "") -> Path:
    """The YAML file `name`: a path, or the name of a file in experiments/<folder>.

    Raises:
        UserError: neither; the message lists the names there.
    """
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        # As sweep files name it, from any working directory.
        packaged = EXPERIMENTS.joinpath(*path.parts[1:])
        if path.parts[0] == "experiments" and packaged.is_file():
            return packaged
        raise UserError(f"There is no file {path}.")
    configs = EXPERIMENTS / folder
    if (file := configs / f"{name}.yaml").is_file():
        return file
    raise unknown_name("sweep" if folder else "config", name, [path.stem for path in configs.glob("*.yaml")])
