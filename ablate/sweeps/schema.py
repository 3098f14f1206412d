"""A sweep file: one YAML in W&B's own sweep schema.

The same file serves `ablate sweep FILE` (no server) and `wandb sweep FILE` with `wandb agent`. Keys are checked
exactly; a mistake is answered with the full key and the nearest ones.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core.config import load_yaml
from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import INT64
from ablate.core.scalars import Argument, natural
from ablate.sweeps.parameters import Parameter, as_written, parse_parameter

METHODS = ("grid", "random", "bayes", "custom")
# W&B's default when a file gives no command.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

_TOP_LEVEL = {
    "apiVersion": str,
    "kind": str,
    "name": str,
    "description": str,
    "program": str,
    "command": list,
    "method": str,
    "metric": dict,
    "metrics": list,
    "parameters": dict,
    "run_cap": int,
    "early_terminate": dict,
    "entity": str,
    "project": str,
    "controller": dict,
    "scheduler": dict,
    "job": str,
    "image_uri": str,
}
_METRIC = {"name": str, "goal": str, "target": (int, float), "impute": str, "impute_while_running": str}
_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_MACRO = re.compile(r"\$\{([a-z_]+)\}")
_ENVIRONMENT_MACRO = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
# How a W&B agent writes the parameters; `ablate train` reads each of them.
_ARGUMENT_MACROS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "args": lambda given: [f"--{each}" for each in given],
    "args_no_hyphens": list,
    "args_no_equals": lambda given: [part for each in given for part in f"--{each}".split("=", 1)],
    "args_no_boolean_flags": lambda given: [
        f"--{each.removesuffix('=True')}" for each in given if not each.endswith("=False")
    ],
    "args_append_hydra": lambda given: [f"+{each}" for each in given],
    "args_override_hydra": lambda given: [f"++{each}" for each in given],
    "args_json": lambda given: [
        json.dumps({key: natural(Argument(value)) for key, _, value in (each.partition("=") for each in given)})
    ],
}


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file.

    Attributes:
        name: the file's `name`, else its file name without the ending; names the group of runs.
        path: where it was read from.
        method: "grid", "random", or one that only W&B runs ("bayes", "custom").
        parameters: in W&B's order (sorted by name), nested ones with dotted names.
        command: the command's parts, macros not yet replaced.
        run_cap: at most this many runs (for "random" the number of runs), or None.
    """

    name: str
    path: Path
    method: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...] = DEFAULT_COMMAND
    program: str = ""
    metric: Mapping[str, Any] | None = None
    run_cap: int | None = None
    description: str = ""
    only_wandb: tuple[str, ...] = ()

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of exactly this dotted name, if the file has one."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def load_sweep(path: Path | str) -> Sweep:
    """Read and check a sweep file.

    Raises:
        UserError: no such file, not YAML, or not W&B's schema; the message names the key.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No sweep file at {path}.{_sweeps_nearby(path)}")
    content = as_written(load_yaml(path, "sweep"))
    try:
        return parse_sweep(content, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_sweep(content: Any, path: Path) -> Sweep:
    """Check the content of a sweep file; see `load_sweep`."""
    if not isinstance(content, Mapping):
        raise UserError(f"expected a mapping with `method` and `parameters`, got {content!r}.")
    _check_keys("", content, _TOP_LEVEL)
    method = content.get("method")
    if method not in METHODS:
        raise unknown_name("method", str(method), METHODS)
    if content.get("kind", "sweep") != "sweep":
        raise UserError(f"kind: got {content['kind']!r}, expected sweep.")
    run_cap = content.get("run_cap")
    if run_cap is not None and not 1 <= run_cap <= INT64:
        raise UserError(f"run_cap: got {run_cap}, expected 1 or more.")
    command = content.get("command", list(DEFAULT_COMMAND))
    for part in command:
        if not isinstance(part, str | int | float):
            raise UserError(f"command: got the part {part!r}, expected a text.")
    return Sweep(
        name=_text(content.get("name") or "") or path.stem,
        path=path,
        method=method,
        parameters=_parse_parameters(content),
        command=tuple(_text(part) for part in command),
        program=_text(content.get("program", "")),
        metric=_parse_metric(content.get("metric")),
        run_cap=run_cap,
        description=_text(content.get("description", "")),
        only_wandb=tuple(key for key in ("early_terminate", "scheduler", "job", "image_uri") if key in content),
    )


def resolve_command(sweep: Sweep, arguments: Sequence[str], interpreter: str = "python") -> list[str]:
    """The command with its macros replaced, as a W&B agent does.

    Args:
        arguments: the run's parameters as `key=value`; they take the place of `${args}` and its like.
        interpreter: the value of `${interpreter}`.

    Raises:
        UserError: for a macro that W&B does not have, or one that `ablate train` could not read.
    """
    replacements = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [interpreter],
        "${program}": [sweep.program],
    } | {f"${{{name}}}": write(arguments) for name, write in _ARGUMENT_MACROS.items()}
    parts: list[str] = []
    for part in sweep.command:
        # As W&B: an unset variable keeps its own name.
        part = _ENVIRONMENT_MACRO.sub(lambda found: os.environ.get(found[1], found[1]), part)
        if part == "${program}" and not sweep.program:
            raise UserError(f"{sweep.path}: command has ${{program}}, but there is no `program`.")
        if part in replacements:
            parts += replacements[part]
        elif macro := _MACRO.fullmatch(part):
            if macro[1] == "args_json_file":
                raise UserError(f"{sweep.path}: command: ablate train reads no file of arguments; write ${{args}}.")
            known = [name.strip("${}") for name in replacements] + ["envvar:NAME"]
            raise unknown_name("macro in command", macro[1], known)
        else:
            parts.append(part)
    return parts


def _text(value: Any) -> str:
    """A text exactly as the file has it: `name: 1.10` is no number."""
    return str(getattr(value, "text", value))


def _check_keys(where: str, content: Mapping[Any, Any], known: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if key not in known:
            raise unknown_name(f"key{f' in {where}' if where else ''}", str(key), known)
        kind = known[key]
        if not isinstance(value, (str, int, float) if kind is str else kind) or isinstance(value, bool):
            names = [each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))]
            raise UserError(f"{f'{where}.' if where else ''}{key}: got {value!r}, expected {' or '.join(names)}.")


def _parse_metric(metric: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if metric is None:
        return None
    _check_keys("metric", metric, _METRIC)
    if "name" not in metric:
        raise UserError("metric: `name` is missing.")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise UserError(f"metric.goal: got {metric['goal']!r}, expected minimize or maximize.")
    return {key: _text(value) if _METRIC[key] is str else value for key, value in metric.items()}


def _parse_parameters(content: Mapping[str, Any]) -> tuple[Parameter, ...]:
    if not content.get("parameters"):
        raise UserError("`parameters` is missing or empty: nothing to sweep over.")
    parsed: dict[str, Parameter] = {}
    for name, spec in _unnest(content["parameters"], ""):
        if name in parsed:
            raise UserError(f"parameters.{name}: given twice, once nested and once as a dotted name.")
        parsed[name] = parse_parameter(name, spec)
    return tuple(parsed[name] for name in sorted(parsed))


def _unnest(parameters: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, what the file says about it) for each parameter that holds no others."""
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"parameters.{prefix}parameters: got {parameters!r}, expected a mapping that is not empty.")
    for key, spec in parameters.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or not _PARAMETER_NAME.fullmatch(key):
            raise UserError(
                f"parameters.{name}: a parameter's name has letters, digits, _ . - and starts with a letter or _."
            )
        if isinstance(spec, Mapping) and "parameters" in spec:
            if len(spec) > 1:
                others = ", ".join(str(other) for other in spec if other != "parameters")
                raise UserError(f"parameters.{name}: has nested `parameters` and also {others}; expected one or other.")
            yield from _unnest(spec["parameters"], f"{name}.")
        else:
            yield name, spec


def _sweeps_nearby(path: Path) -> str:
    folder = path.parent
    found = sorted(str(other) for other in folder.glob("*.yaml")) if folder.is_dir() else []
    return f" There: {', '.join(found)}." if found else ""
