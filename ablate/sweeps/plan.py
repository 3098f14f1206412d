"""The runs of a sweep before they run: each one's complete config, its folder and the arguments that start it.

Everything is checked here, so that a misspelt key or an unknown connector ends a sweep before its first run.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablate.core.config import parse_override
from ablate.core.errors import UserError, unknown_name
from ablate.core.scalars import Argument, to_argument
from ablate.sweeps.expand import as_arguments, expand, with_values
from ablate.sweeps.parameters import as_written
from ablate.sweeps.schema import Sweep, resolve_command

CONNECTOR_KEY = "connector.name"
# key=a,b: several values. Texts with commas of their own stand in quotes, lists in brackets.
_SEVERAL = re.compile(r"[^,\[\]{}'\"\s]+(,[^,\[\]{}'\"\s]+)+")
EVERY_CONNECTOR = "all"


@dataclass(frozen=True)
class ResolvedRun:
    """What a complete config says about its run: its folder, its settings as flat dotted keys, and itself."""

    folder: Path
    settings: Mapping[str, Any]
    config: Any = None


# (config files, key=value overrides) -> the run.
Resolver = Callable[[Sequence[Path], Sequence[str]], ResolvedRun]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        label: what sets it apart from the sweep's other runs, for people: "msc_csm seed=1 blind".
        values: the swept parameters, dotted keys.
        arguments: of the command line, after the program: ["train", "--config", ..., "seed=1", ...].
        folder: where it writes; its name is the run id.
        settings: the complete config as flat dotted keys.
        config: the complete config.
        visual_tokens: of an image; None where only the run can say.
        trained_sizes: the connector's, `connectors.Connector.trained_sizes`.
    """

    label: str
    values: Mapping[str, Any]
    arguments: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    config: Any = None
    visual_tokens: int | None = None
    trained_sizes: str = "largest"

    @property
    def kind(self) -> str:
        """What determines its duration, as far as is known in advance."""
        return f"{self.settings.get(CONNECTOR_KEY, '')}{' blind' if self.settings.get('blind') else ''}"


def resolve_with_training(files: Sequence[Path], overrides: Sequence[str]) -> ResolvedRun:
    """The run that `ablate train` makes of these arguments."""
    # Imported here: it takes seconds, and reading a sweep file should not.
    from ablate.core.config import flatten, load
    from ablate.runs.config import RunConfig
    from ablate.runs.identity import run_folder

    config = load(RunConfig, files, overrides)
    return ResolvedRun(run_folder(config), flatten(config), config)


def plan(
    sweep: Sweep,
    *,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    resolve: Resolver = resolve_with_training,
) -> list[PlannedRun]:
    """All runs of the sweep, in order.

    Args:
        sweep: see `load_sweep`.
        only: connectors to run; those of the file if empty, every registered one for "all". A registered connector
            that the file does not list is welcome.
        overrides: `key=value` for every run, `key=a,b` for runs with each value. Those of a swept parameter, also as
            `key=[a, b]`, replace its values.
        root: the folder under which runs are written, the config's if None.
        resolve: how arguments become a run.

    Raises:
        UserError: for what would fail later: unknown names and keys, values of the wrong type, two runs that are one.
    """
    if sweep.only_wandb:
        raise UserError(
            f"{sweep.path}: {', '.join(sweep.only_wandb)}: only W&B's agents do this. Run `wandb sweep {sweep.path}` "
            "and the `wandb agent` command that it prints, or take it out for a sweep without a server."
        )
    sweep, others = adapted(sweep, only, overrides)
    if root is not None:
        others.append(f"root={root}")
    planned = []
    for values in expand(sweep):
        arguments = _train_arguments(sweep, values, others)
        resolved = resolve(_config_files(arguments), _key_values(arguments))
        planned.append(
            PlannedRun(
                label=_label(sweep, values),
                values=values,
                arguments=tuple(arguments),
                folder=resolved.folder,
                settings=resolved.settings,
                config=resolved.config,
            )
        )
        _check_texts(sweep, planned[-1])
    _check_distinct(sweep, planned)
    return _with_visual_tokens(sweep, planned)


def adapted(sweep: Sweep, only: Sequence[str], overrides: Sequence[str]) -> tuple[Sweep, list[str]]:
    """The sweep with these connectors and the overrides that have several values; and the others, for every run."""
    return _override_values(choose_connectors(sweep, only), overrides)


def choose_connectors(sweep: Sweep, only: Sequence[str]) -> Sweep:
    """The sweep with these connectors alone: of the file or of the registry.

    Raises:
        UserError: an unknown name, answered with the choices; or a sweep that has no connectors to choose from.
    """
    if not only:
        return sweep
    import connectors

    parameter = sweep.parameter(CONNECTOR_KEY)
    if parameter is None:
        swept = ", ".join(each.name for each in sweep.parameters)
        raise UserError(
            f"{sweep.path} does not sweep over {CONNECTOR_KEY} (but {swept}), so there is no connector to choose. "
            f"Set one with {CONNECTOR_KEY}=NAME."
        )
    choices = list(dict.fromkeys([*map(str, parameter.grid()), *connectors.names()]))
    chosen = list(connectors.names()) if list(only) == [EVERY_CONNECTOR] else list(dict.fromkeys(only))
    for name in chosen:
        if name not in choices:
            raise unknown_name("connector", name, choices)
    return with_values(sweep, CONNECTOR_KEY, chosen)


def _override_values(sweep: Sweep, overrides: Sequence[str]) -> tuple[Sweep, list[str]]:
    """Overrides of swept parameters, and those with several values, go into the sweep; the others are returned."""
    others = []
    for override in overrides:
        parse_override(override)  # or an error
        key, _, text = override.removeprefix("--").lstrip("+").partition("=")
        several = _SEVERAL.fullmatch(text)
        if sweep.parameter(key) is None and not several:
            others.append(f"{key}={text}")
            continue
        try:
            parts = text.split(",") if several else [text]
            values = [as_written(Argument(part).parsed()) for part in parts]
        except UserError as error:
            raise UserError(f'Override "{override}": {error}') from None
        if not several and isinstance(values[0], list) and values[0]:
            values = values[0]
        sweep = with_values(sweep, key, values)
    return sweep, others


def _train_arguments(sweep: Sweep, values: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    """What stands after `ablate` in the run's command line."""
    # However an agent is to write the parameters: here they are key=value, and a false one is not left out.
    plain = tuple("${args_no_hyphens}" if part.startswith("${args") else part for part in sweep.command)
    command = resolve_command(replace(sweep, command=plain), as_arguments(values))
    if command[:1] == ["/usr/bin/env"]:
        command = command[1:]
    if command[1:3] in (["-m", "ablate"], ["-m", "ablate.cli"]):
        command = ["ablate", *command[3:]]
    elif Path(command[0]).name.startswith("python") and Path(*command[1:2]).name == "ablate":
        command = ["ablate", *command[2:]]  # W&B's default command: python PROGRAM
    if "=" in "".join(command[1:2]):
        command.insert(1, "train")
    if command[:2] != ["ablate", "train"]:
        raise UserError(
            f"{sweep.path}: command: `ablate sweep` runs `ablate train`, got `{' '.join(command[:3])} ...`. For "
            "another program use `wandb sweep` and `wandb agent`."
        )
    arguments = command[1:]
    for i, argument in enumerate(arguments):
        if i and arguments[i - 1] == "--config":
            arguments[i] = str(_find_config(argument, sweep.path))
        elif argument.startswith("--config="):
            arguments[i] = f"--config={_find_config(argument.partition('=')[2], sweep.path)}"
    return [*arguments, *others]


def _find_config(name: str, sweep_path: Path) -> Path:
    """The file as seen from the working directory, as a W&B agent sees it, else from a folder above the sweep file.

    A bare name such as "demo" is that of a file in experiments/.
    """
    path = Path(name) if Path(name).suffix else Path("experiments", f"{name}.yaml")
    folders = [Path(), *sweep_path.resolve().parents]
    return next((folder / path for folder in folders if (folder / path).is_file()), path)


def _config_files(arguments: Sequence[str]) -> list[Path]:
    files = [Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--config=")]
    return files + [Path(value) for flag, value in itertools.pairwise(arguments) if flag == "--config"]


def _key_values(arguments: Sequence[str]) -> list[str]:
    settings = [each for each in arguments if "=" in each and not each.startswith("--config=")]
    return [each.removeprefix("--") for each in settings]


def _label(sweep: Sweep, values: Mapping[str, Any]) -> str:
    """The parameters that vary, the connector first."""
    parts = [str(values[CONNECTOR_KEY])] if CONNECTOR_KEY in values else []
    for parameter in sweep.parameters:
        choices = parameter.grid() if sweep.method == "grid" else []
        value, short = values[parameter.name], parameter.name.rpartition(".")[2]
        if parameter.name == CONNECTOR_KEY or len(choices) == 1:
            continue
        if isinstance(value, bool):
            parts += [short] if value else []
        elif isinstance(value, list | dict) and value in choices:
            parts.append(f"{short}#{choices.index(value) + 1}")  # too long to write out
        else:
            parts.append(f"{short}={_short(value, choices)}")
    return " ".join(parts) or sweep.name


def _short(value: Any, choices: Sequence[Any]) -> str:
    """Four digits, where they tell it from the other choices."""
    if not isinstance(value, float):
        return str(value)
    digits = f"{value:.4g}"
    return digits if [f"{each:.4g}" for each in choices if isinstance(each, float)].count(digits) < 2 else str(value)


def _check_texts(sweep: Sweep, run: PlannedRun) -> None:
    """null, true and false are no texts: W&B's agents would make "None", "True" and "False" of them."""
    for key, value in run.values.items():
        if (value is None or isinstance(value, bool)) and isinstance(run.settings.get(key), str):
            word = to_argument(value).lower()
            raise UserError(f"{sweep.path}: parameters.{key}: got {word}, expected a text: write it in quotes.")


def _with_visual_tokens(sweep: Sweep, planned: list[PlannedRun]) -> list[PlannedRun]:
    """Build each distinct model once, without weights, so that what does not fit is said before any run starts."""
    if any(run.config is None for run in planned):
        return planned
    from ablate.sweeps.models import ModelCheck  # here, as it brings torch

    check = ModelCheck()
    checked = []
    for run in planned:
        try:
            run.config.require_data()
            tokens = check(run.config.model)
        except UserError as error:
            raise UserError(f"{sweep.path}: {run.label}: {error}") from error
        if tokens is not None:
            run = replace(run, visual_tokens=tokens.number, trained_sizes=tokens.trained_sizes)
        checked.append(run)
    return checked


def _check_distinct(sweep: Sweep, planned: Sequence[PlannedRun]) -> None:
    seen: dict[Path, PlannedRun] = {}
    for run in planned:
        if run.folder in seen:
            raise UserError(
                f"{sweep.path}: {seen[run.folder].label} and {run.label} are the same run ({run.folder}): a swept "
                "parameter changes nothing about what is trained. Take it out, or sweep over seed."
            )
        seen[run.folder] = run
