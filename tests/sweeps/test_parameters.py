import math
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.sweeps.parameters import DISTRIBUTIONS, REQUIRED, parse_parameter, unique

EXAMPLES = {
    "constant": {"value": 3},
    "categorical": {"values": ["a", "b"]},
    "categorical_w_probabilities": {"values": ["a", "b"], "probabilities": [0.25, 0.75]},
    "int_uniform": {"min": 2, "max": 5},
    "uniform": {"min": 0.5, "max": 1.5},
    "q_uniform": {"min": 0.0, "max": 1.0, "q": 0.25},
    "log_uniform": {"min": -3.0, "max": 0.0},
    "log_uniform_values": {"min": 1e-4, "max": 1e-1},
    "q_log_uniform": {"min": 0.0, "max": 5.0, "q": 2},
    "q_log_uniform_values": {"min": 1.0, "max": 100.0, "q": 5},
    "inv_log_uniform": {"min": 1.0, "max": 3.0},
    "inv_log_uniform_values": {"min": 1e-4, "max": 1e-1},
    "normal": {"mu": 1.0, "sigma": 0.5},
    "q_normal": {"mu": 10.0, "sigma": 3.0, "q": 2.0},
    "log_normal": {"mu": 0.0, "sigma": 0.5},
    "q_log_normal": {"mu": 2.0, "sigma": 0.5, "q": 1},
    "beta": {"a": 2, "b": 5},
    "q_beta": {"a": 2, "b": 5, "q": 0.1},
}


# What random() can give.
UNIT = st.integers(0, 2**53 - 1).map(lambda i: i / 2**53)


def example(distribution):
    return parse_parameter("x", {"distribution": distribution, **EXAMPLES[distribution]})


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_every_distribution_draws_the_same_value_for_the_same_key(distribution):
    parameter = example(distribution)
    assert parameter.draw(0, 7) == parameter.draw(0, 7)
    if distribution != "constant":
        assert len({parameter.draw(0, i) for i in range(50)}) > 1


@pytest.mark.parametrize("distribution", sorted(set(DISTRIBUTIONS) - {"constant", "categorical"} - {"inv_log_uniform"}))
@given(u=UNIT, v=UNIT)
def test_quantiles_rise(distribution, u, v):
    parameter = example(distribution)
    low, high = parameter.quantile(min(u, v)), parameter.quantile(max(u, v))
    assert low <= high


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        ("int_uniform", 2, 5),
        ("uniform", 0.5, 1.5),
        ("q_uniform", 0.0, 1.0),
        ("log_uniform", math.exp(-3), 1.0),
        ("log_uniform_values", 1e-4, 1e-1),
        ("inv_log_uniform", math.exp(-3), math.exp(-1)),
        ("inv_log_uniform_values", 1e-4, 1e-1),
        ("beta", 0.0, 1.0),
    ],
)
@given(u=UNIT)
def test_values_stay_in_their_range(distribution, low, high, u):
    value = example(distribution).quantile(u)
    assert low - 1e-12 <= value <= high + 1e-12


def test_draws_follow_the_distribution():
    """5,000 draws: the tolerances are four standard errors."""
    draws = [example("normal").draw(0, i) for i in range(5000)]
    assert mean(draws) == pytest.approx(1.0, abs=4 * 0.5 / math.sqrt(5000))
    assert stdev(draws) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(10000))
    logs = [math.log10(example("log_uniform_values").draw(0, i)) for i in range(5000)]
    assert mean(logs) == pytest.approx(-2.5, abs=4 * 3 / math.sqrt(12 * 5000))
    share = mean(example("categorical_w_probabilities").draw(0, i) == "b" for i in range(5000))
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 5000))


def test_a_value_of_probability_zero_never_comes():
    parameter = parse_parameter("x", {"values": ["a", "b", "c"], "probabilities": [0.0, 1.0, 0.0]})
    assert {parameter.quantile(u) for u in (0.0, 0.5, 1 - 2**-53)} == {"b"}


def test_quantised_values_are_clean_multiples_and_whole_for_a_whole_q():
    tenths = parse_parameter("x", {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1})
    assert {tenths.draw(0, i) for i in range(200)} <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    fives = parse_parameter("x", EXAMPLES["q_log_uniform_values"] | {"distribution": "q_log_uniform_values"})
    assert all(isinstance(fives.draw(0, i), int) for i in range(20))


def test_grid_values():
    assert parse_parameter("x", {"values": [1, 2, 1, 2.0]}).grid() == [1, 2]
    assert parse_parameter("x", {"min": 2, "max": 4}).grid() == [2, 3, 4]
    assert example("q_uniform").grid() == [0.0, 0.25, 0.5, 0.75]  # W&B leaves the maximum out
    with pytest.raises(UserError, match=r"parameters.x: a grid needs a finite list, and normal has none"):
        example("normal").grid()


def test_true_and_one_are_different_values():
    assert unique([1, True, "1", 1.0]) == [1, True, "1"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, r"parameters.lr: got 3, expected a mapping"),
        ({}, r"parameters.lr: got {}; expected `value`, `values`"),
        ({"values": []}, r"parameters.lr.values: got \[\], expected a list that is not empty"),
        ({"values": "abc"}, r"parameters.lr.values: got 'abc', expected a list"),
        ({"distribution": "unifrom", "min": 0.0, "max": 1.0}, r'"unifrom".*uniform'),
        ({"distribution": "uniform", "min": 0.0}, r"parameters.lr: distribution uniform needs max"),
        ({"min": 0.0, "max": 1.0, "sigma": 2}, r"parameters.lr.sigma of a uniform parameter"),
        ({"min": 0, "max": 0.5}, r"one whole and one decimal number"),
        ({"min": 2.0, "max": 1.0}, r"min 2.0 is above max 1.0"),
        ({"min": "1e-5", "max": 1.0}, r"parameters.lr.min: got '1e-5', expected a number. .* write 1.0e-05"),
        ({"min": True, "max": True}, r"expected a number|whole"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, r"expected a number above 0"),
        ({"distribution": "q_normal", "q": 0}, r"parameters.lr.q: got 0"),
        ({"distribution": "normal", "sigma": -1}, r"parameters.lr.sigma: got -1"),
        ({"values": [1, 2], "probabilities": [1.0]}, r"got 1 for 2 values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, r"sum 1.1"),
        ({"values": [1, 2], "probabilities": ["a", 0.6]}, r"parameters.lr.probabilities\[0\]: got 'a'"),
    ],
)
def test_a_mistake_names_its_key(spec, message):
    with pytest.raises(UserError, match=message):
        parse_parameter("lr", spec)


def test_every_distribution_has_an_example_here():
    assert set(EXAMPLES) == set(DISTRIBUTIONS)
    for distribution, fields in DISTRIBUTIONS.items():
        assert {name for name, default in fields.items() if default is REQUIRED} <= set(EXAMPLES[distribution])
