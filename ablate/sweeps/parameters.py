"""One parameter of a sweep: what W&B's schema allows to say about it, and the values that it takes.

The distributions, their fields and their defaults are those of W&B's sweep schema
(https://docs.wandb.ai/models/sweeps/sweep-config-keys), so that a file means the same here and on a W&B server.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import yaml

from ablate.core.errors import UserError, unknown_name
from ablate.core.scalars import Scalar, map_scalars, natural

# distribution -> {field: default}; REQUIRED marks a field that has none.
REQUIRED = object()
_RANGE = {"min": REQUIRED, "max": REQUIRED}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1, "b": 1}
_QUANTUM = {"q": 1.0}
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "constant": {"value": REQUIRED},
    "categorical": {"values": REQUIRED},
    "categorical_w_probabilities": {"values": REQUIRED, "probabilities": REQUIRED},
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "q_uniform": _RANGE | _QUANTUM,
    "log_uniform": _RANGE,  # min and max are natural logarithms of the values' bounds
    "log_uniform_values": _RANGE,  # min and max are the values' bounds themselves
    "q_log_uniform": _RANGE | _QUANTUM,
    "q_log_uniform_values": _RANGE | _QUANTUM,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _NORMAL,
    "q_normal": _NORMAL | _QUANTUM,
    "log_normal": _NORMAL,
    "q_log_normal": _NORMAL | _QUANTUM,
    "beta": _BETA,
    "q_beta": _BETA | _QUANTUM,
}


@dataclass(frozen=True)
class Parameter:
    """A parameter with its dotted `name`, its `distribution` and that distribution's fields, defaults filled in."""

    name: str
    distribution: str
    fields: Mapping[str, Any]

    def grid(self) -> list[Any]:
        """All values, each once, in the order of the file.

        Raises:
            UserError: if the distribution has no finite list of values.
        """
        if self.distribution == "constant":
            return [self.fields["value"]]
        if self.distribution == "categorical":
            return unique(self.fields["values"])
        if self.distribution == "int_uniform":
            return list(range(self.fields["min"], self.fields["max"] + 1))
        if self.distribution == "q_uniform":
            # W&B leaves out `max`, as numpy.arange does.
            low, high, q = (self.fields[name] for name in ("min", "max", "q"))
            return [tidy(low + i * q, q) for i in range(math.ceil((high - low) / q))]
        raise UserError(
            f"parameters.{self.name}: a grid needs a finite list, and {self.distribution} has none. "
            "Give `values: [...]`, or use `method: random`."
        )

    def draw(self, *key: object) -> Any:
        """One value at random. The same `key` gives the same value on every machine and in every version of Python."""
        spec = json.dumps([self.name, self.distribution, dict(self.fields)], sort_keys=True, default=str)
        return self.quantile(random.Random(f"{key} {spec}").random())

    def quantile(self, u: float) -> Any:
        """The value below which a share `u` in [0, 1) of the distribution lies (for values in a list: by position)."""
        if self.distribution == "constant":
            return self.fields["value"]
        if self.distribution == "categorical":
            return self.fields["values"][int(u * len(self.fields["values"]))]
        if self.distribution == "categorical_w_probabilities":
            return self._by_probability(u)
        if self.distribution == "int_uniform":
            low, high = self.fields["min"], self.fields["max"]
            return low + int(u * (high - low + 1))
        value = _QUANTILES[self.distribution.removeprefix("q_")](u, self.fields)
        if self.distribution.startswith("q_"):
            q = self.fields["q"]
            return tidy(round(value / q) * q, q)
        return value

    def _by_probability(self, u: float) -> Any:
        total = 0.0
        chosen = None
        for value, probability in zip(self.fields["values"], self.fields["probabilities"], strict=True):
            if probability > 0:
                total, chosen = total + probability, value
            if u < total:
                break
        return chosen


def _uniform(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _standard_normal(u: float) -> float:
    # inv_cdf is defined on the open interval.
    return NormalDist().inv_cdf(min(max(u, 1e-300), 1 - 2**-53))


def _beta(u: float, fields: Mapping[str, Any]) -> float:
    from scipy.stats import beta

    return float(beta.ppf(u, fields["a"], fields["b"]))


_QUANTILES: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "uniform": lambda u, f: _uniform(u, f["min"], f["max"]),
    "log_uniform": lambda u, f: math.exp(_uniform(u, f["min"], f["max"])),
    "log_uniform_values": lambda u, f: math.exp(_uniform(u, math.log(f["min"]), math.log(f["max"]))),
    "inv_log_uniform": lambda u, f: math.exp(-_uniform(1 - u, f["min"], f["max"])),
    "inv_log_uniform_values": lambda u, f: math.exp(-_uniform(1 - u, -math.log(f["max"]), -math.log(f["min"]))),
    "normal": lambda u, f: f["mu"] + f["sigma"] * _standard_normal(u),
    "log_normal": lambda u, f: math.exp(f["mu"] + f["sigma"] * _standard_normal(u)),
    "beta": _beta,
}


class WrittenInt(int):
    """A whole number of a sweep file that is not written as Python writes it: `text` is what the file has."""

    text: str


class WrittenFloat(float):
    """A decimal number of a sweep file that is not written as Python writes it: `text` is what the file has."""

    text: str


def as_written(tree: Any) -> Any:
    """YAML from `core.scalars.parse_yaml` as W&B reads it, with the text of numbers kept for settings that are texts.

    Where YAML 1.1, and so W&B, would make another number or a truth value of a word (`007`, `1:30`, `on`), the value is
    the text.
    """
    return map_scalars(tree, _scalar_as_written)


def _scalar_as_written(scalar: Scalar) -> Any:
    value = natural(scalar)
    if isinstance(value, bool) or not isinstance(value, int | float) or str(value) == scalar:
        return value
    if isinstance(value, float) and not isinstance(yaml.safe_load(scalar), float):
        return str(scalar)  # 1e-3 is a text for W&B
    written = (WrittenInt if isinstance(value, int) else WrittenFloat)(value)
    written.text = str(scalar)
    return written


def unique(values: list[Any]) -> list[Any]:
    """The values without repetitions, in order. 1, 1.0 and true differ only where they would in a config."""
    seen: dict[str, Any] = {}
    for value in values:
        whole = isinstance(value, float) and value.is_integer()
        key = json.dumps(int(value) if whole else value, sort_keys=True, default=str)
        # 1.10 and 1.1 differ where the setting is a text.
        seen.setdefault(f"{key} {getattr(value, 'text', '')}", value)
    return list(seen.values())


def tidy(value: float, q: float) -> float | int:
    """A multiple of `q` without the dust of binary fractions; an int if `q` is one."""
    return round(value) if isinstance(q, int) else float(f"{value:.12g}")


def parse_parameter(name: str, spec: Any) -> Parameter:
    """Check what a file says about one parameter (not a nested group) and fill in the defaults.

    Raises:
        UserError: naming the exact key, what was got and what was expected.
    """
    where = f"parameters.{name}"
    if not isinstance(spec, Mapping):
        raise UserError(
            f"{where}: got {spec!r}, expected a mapping, for example `{name}: {{value: {spec!r}}}` "
            f"or `{name}: {{values: [...]}}`."
        )
    distribution = spec["distribution"] if "distribution" in spec else _implied_distribution(where, spec)
    if not isinstance(distribution, str) or distribution not in DISTRIBUTIONS:
        raise unknown_name(f"{where}.distribution", str(distribution), DISTRIBUTIONS)
    known = DISTRIBUTIONS[distribution]
    for key in spec:
        if key not in known and key != "distribution":
            raise unknown_name(f"key {where}.{key} of a {distribution} parameter:", str(key), [*known, "distribution"])
    fields = {key: spec.get(key, default) for key, default in known.items()}
    if missing := [key for key, value in fields.items() if value is REQUIRED]:
        raise UserError(f"{where}: distribution {distribution} needs {' and '.join(missing)}.")
    _check_fields(where, distribution, fields)
    return Parameter(name, distribution, fields)


def _implied_distribution(where: str, spec: Mapping[str, Any]) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        kinds = {type(spec["min"]), type(spec["max"])}
        if kinds == {int}:
            return "int_uniform"
        if kinds == {int, float}:
            # W&B's client refuses this too.
            raise UserError(
                f"{where}: min {spec['min']!r} and max {spec['max']!r} are one whole and one decimal number. Write "
                "both alike, or give a `distribution`."
            )
        return "uniform"
    raise UserError(
        f"{where}: got {dict(spec)!r}; expected `value`, `values`, `min` and `max`, a `distribution`, or nested "
        "`parameters`."
    )


def _check_fields(where: str, distribution: str, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if key in ("values", "probabilities"):
            if not isinstance(value, list) or not value:
                raise UserError(f"{where}.{key}: got {value!r}, expected a list that is not empty.")
        elif key != "value":
            _check_number(f"{where}.{key}", value, whole=distribution == "int_uniform")
    if "probabilities" in fields:
        _check_probabilities(where, fields)
    if "min" in fields:
        if fields["min"] > fields["max"]:
            raise UserError(f"{where}: min {fields['min']} is above max {fields['max']}.")
        if distribution.endswith("log_uniform_values") and fields["min"] <= 0:
            raise UserError(f"{where}.min: got {fields['min']}, expected a number above 0 ({distribution}).")
    if fields.get("q", 1) <= 0:
        raise UserError(f"{where}.q: got {fields['q']}, expected a number above 0.")
    for key in ("sigma", "a", "b"):
        if fields.get(key, 0) < 0:
            raise UserError(f"{where}.{key}: got {fields[key]}, expected 0 or more.")


def _check_probabilities(where: str, fields: Mapping[str, Any]) -> None:
    probabilities = fields["probabilities"]
    for i, probability in enumerate(probabilities):
        _check_number(f"{where}.probabilities[{i}]", probability)
    if len(probabilities) != len(fields["values"]):
        raise UserError(
            f"{where}.probabilities: got {len(probabilities)} for {len(fields['values'])} values; expected one each."
        )
    if min(probabilities) < 0 or not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
        raise UserError(
            f"{where}.probabilities: got {probabilities}, sum {sum(probabilities):g}; expected 0 or more, sum 1."
        )


def _check_number(where: str, value: Any, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value):
        return
    hint = ""
    if isinstance(value, str) and _is_number(value):
        # YAML 1.1, which W&B reads: 1e-3 without a dot is a text.
        hint = f" YAML reads {value} as a text: write {float(value):.1e}."
    raise UserError(f"{where}: got {value!r}, expected a {'whole ' if whole else ''}number.{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
