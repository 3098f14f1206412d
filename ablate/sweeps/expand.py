"""From a sweep to the list of its runs: exact, deterministic, and the same on every machine.

A grid comes in W&B's order: parameters sorted by name, the last one fastest.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ablate.core.errors import UserError, unknown_name
from ablate.core.scalars import to_argument
from ablate.sweeps.parameters import Parameter, unique
from ablate.sweeps.schema import Sweep

T = TypeVar("T")

LARGEST_GRID = 100_000


def expand(sweep: Sweep, only: Mapping[str, Sequence[Any]] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The runs of a sweep, each a mapping of dotted config keys to values.

    Args:
        sweep: with method "grid" (all combinations) or "random" (`run_cap` draws).
        only: dotted parameter name -> the values to keep; unknown ones are errors that list the choices.
        seed: another seed gives other random draws. Draw i depends on (seed, i, parameter) alone, so a larger
            `run_cap` or one more parameter leaves the earlier draws as they are.

    Raises:
        UserError: for a method that needs W&B's server, a grid without end, or an unknown name in `only`.
    """
    parameters = [_restrict(parameter, only or {}) for parameter in sweep.parameters]
    for name in only or {}:
        if sweep.parameter(name) is None:
            raise unknown_name("parameter of the sweep", name, [parameter.name for parameter in parameters])
    if sweep.method == "grid":
        return _grid(sweep, parameters)
    if sweep.method == "random":
        return _random(sweep, parameters, seed)
    raise UserError(
        f"{sweep.path}: method {sweep.method} needs a W&B server: run `wandb sweep {sweep.path}` and the `wandb agent` "
        "command that it prints. Without a server, use `method: grid` or `method: random`."
    )


def with_values(sweep: Sweep, name: str, values: Sequence[Any]) -> Sweep:
    """The sweep with other values for one of its parameters, or with one more."""
    replaced = Parameter(name, "categorical", {"values": list(values)})
    others = [old for old in sweep.parameters if old.name != name]
    return replace(sweep, parameters=tuple(sorted([*others, replaced], key=lambda parameter: parameter.name)))


def grid_size(sweep: Sweep) -> int:
    """All combinations of a grid, `run_cap` aside."""
    return math.prod(len(parameter.grid()) for parameter in sweep.parameters)


def as_arguments(run: Mapping[str, Any]) -> list[str]:
    """A run's parameters as `key=value`, as `${args_no_hyphens}` of a W&B agent gives them.

    Every value reads back to an equal one. For that, a text that could be taken for something else is quoted here,
    which W&B's agents do not do.
    """
    return [f"{key}={to_argument(value)}" for key, value in run.items()]


def shard(runs: Sequence[T], spec: str) -> list[T]:
    """Every N-th run from the i-th on: the part of one of N machines.

    Args:
        spec: "i/N" with 0 <= i < N, as job arrays count; "" keeps all. The N shards partition the runs and differ in
            size by one at most.

    Raises:
        UserError: for anything else.
    """
    if not spec:
        return list(runs)
    number, slash, count = spec.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f'Shard "{spec}": expected i/N with i from 0 to N - 1, for example 0/4 for the first of four.')
    return list(runs[int(number) :: int(count)])


def _restrict(parameter: Parameter, only: Mapping[str, Sequence[Any]]) -> Parameter:
    if parameter.name not in only:
        return parameter
    choices = parameter.grid()
    by_text = {_as_text(choice): choice for choice in choices}
    kept = []
    for value in only[parameter.name]:
        if _as_text(value) not in by_text:
            raise unknown_name(parameter.name, _as_text(value), by_text)
        kept.append(by_text[_as_text(value)])
    if not kept:
        raise UserError(f"{parameter.name}: no value left; choose from {', '.join(by_text)}.")
    return Parameter(parameter.name, "categorical", {"values": kept})


def _grid(sweep: Sweep, parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    values = [parameter.grid() for parameter in parameters]
    size = 1
    for each in values:
        size *= len(each)
    if min(size, sweep.run_cap or size) > LARGEST_GRID:
        raise UserError(f"{sweep.path}: the grid has {size:,} runs; set `run_cap` or shorten a list.")
    names = [parameter.name for parameter in parameters]
    combinations = itertools.islice(itertools.product(*values), sweep.run_cap)
    return [dict(zip(names, combination, strict=True)) for combination in combinations]


def _random(sweep: Sweep, parameters: Sequence[Parameter], seed: int) -> list[dict[str, Any]]:
    if sweep.run_cap is None:
        raise UserError(f"{sweep.path}: method random has no end; set the number of runs with `run_cap: N`.")
    drawn = [{parameter.name: parameter.draw(seed, i) for parameter in parameters} for i in range(sweep.run_cap)]
    return unique(drawn)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else to_argument(value)
