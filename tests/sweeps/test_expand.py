import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.fields import convert
from ablate.core.scalars import Argument, natural
from ablate.errors import UserError
from ablate.sweeps import expand, shard
from ablate.sweeps.expand import as_arguments
from ablate.sweeps.schema import parse_sweep


def parse(parameters, method="grid", **others):
    return parse_sweep({"method": method, "parameters": parameters, **others}, Path("x.yaml"))


def test_a_grid_is_every_combination_once_in_wandbs_order():
    runs = expand(parse({"seed": {"values": [0, 1]}, "blind": {"values": [False, True]}, "epochs": {"value": 3}}))
    assert runs == [
        {"blind": blind, "epochs": 3, "seed": seed} for blind, seed in itertools.product([False, True], [0, 1])
    ]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=4, unique=True), min_size=1)
)
def test_a_grid_has_the_size_of_the_product(values):
    runs = expand(parse({name: {"values": listed} for name, listed in values.items()}))
    assert {tuple(sorted(run.items())) for run in runs} == {
        tuple(zip(sorted(values), combination, strict=True))
        for combination in itertools.product(*(values[name] for name in sorted(values)))
    }
    assert len(runs) == len({tuple(run.items()) for run in runs})


def test_run_cap_cuts_a_grid():
    assert len(expand(parse({"seed": {"min": 0, "max": 99}}, run_cap=7))) == 7
    with pytest.raises(UserError, match=r"the grid has 1,000,000 runs"):
        expand(parse({"seed": {"min": 1, "max": 10**6}}))


def test_random_is_the_same_every_time_and_grows_without_change():
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "seed": {"min": 0, "max": 999},
    }
    ten = expand(parse(parameters, "random", run_cap=10))
    assert ten == expand(parse(parameters, "random", run_cap=10))
    assert expand(parse(parameters, "random", run_cap=20))[:10] == ten
    assert expand(parse(parameters, "random", run_cap=10), seed=1) != ten
    more = expand(parse(parameters | {"epochs": {"values": [1, 2, 3]}}, "random", run_cap=10))
    assert [run["lr"] for run in more] == [run["lr"] for run in ten]


def test_two_parameters_with_one_description_are_independent():
    spec = {"distribution": "uniform", "min": 0.0, "max": 1.0}
    assert all(run["a"] != run["b"] for run in expand(parse({"a": spec, "b": spec}, "random", run_cap=20)))


def test_random_needs_an_end():
    with pytest.raises(UserError, match=r"run_cap: N"):
        expand(parse({"seed": {"values": [0]}}, "random"))


@pytest.mark.parametrize("method", ["bayes", "custom"])
def test_what_needs_a_server_says_how_to_use_one(method):
    with pytest.raises(UserError, match=rf"method {method} needs a W&B server: run `wandb sweep x.yaml`"):
        expand(parse({"seed": {"values": [0]}}, method))


def test_only_keeps_the_named_values_in_the_order_asked():
    sweep = parse({"connector.name": {"values": ["linear", "mlp", "msc_csm"]}, "seed": {"values": [0, 1]}})
    runs = expand(sweep, only={"connector.name": ["msc_csm", "mlp"], "seed": ["1"]})
    assert runs == [{"connector.name": "msc_csm", "seed": 1}, {"connector.name": "mlp", "seed": 1}]
    with pytest.raises(
        UserError, match=r'Unknown connector.name "mof_mlp". Did you mean mlp\? Choices: linear, mlp, msc_csm'
    ):
        expand(sweep, only={"connector.name": ["mof_mlp"]})
    with pytest.raises(UserError, match=r'"conector.name". Did you mean connector.name'):
        expand(sweep, only={"conector.name": ["mlp"]})


@given(st.lists(st.integers(), max_size=60), st.integers(1, 20))
def test_shards_partition_exactly(runs, count):
    shards = [shard(list(enumerate(runs)), f"{i}/{count}") for i in range(count)]
    assert sorted(itertools.chain(*shards)) == list(enumerate(runs))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("spec", ["2/2", "3/2", "1", "a/b", "0/0", "-1/2", "1/2/3", "²/4"])
def test_a_shard_that_is_none(spec):
    with pytest.raises(UserError, match=r"expected i/N"):
        shard([1, 2], spec)


def test_no_shard_is_everything():
    assert shard([1, 2], "") == [1, 2]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS |= st.text() | st.sampled_from(
    ["12e4567", "007", "on", "null", "None", "~", "1:30", "", "#", "'", "a: b", "[a]"]
)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


@given(st.dictionaries(st.sampled_from(["a", "b.c"]), NESTED))
def test_arguments_keep_their_values(run):
    for (key, value), argument in zip(run.items(), as_arguments(run), strict=True):
        got_key, _, text = argument.partition("=")
        assert (got_key, natural(Argument(text))) == (key, value)
        if isinstance(value, str):
            assert convert(Argument(text), str) == value


@given(st.lists(st.text("0123456789.e+-_:xnul~", max_size=6), min_size=1, max_size=5, unique=True))
def test_distinct_texts_are_distinct_runs(texts):
    runs = expand(parse({"group": {"values": texts}}))
    assert [convert(Argument(as_arguments(run)[0].partition("=")[2]), str) for run in runs] == texts
