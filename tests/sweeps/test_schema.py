import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ablate.config import load
from ablate.core.scalars import Argument, natural
from ablate.errors import UserError
from ablate.sweeps import expand, load_sweep
from ablate.sweeps.expand import as_arguments
from ablate.sweeps.plan import CONNECTOR_KEY
from ablate.sweeps.schema import _ARGUMENT_MACROS, parse_sweep, resolve_command

SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))
MINIMAL = {"method": "grid", "parameters": {"seed": {"values": [0, 1]}}}


def parse(**changes):
    return parse_sweep(MINIMAL | changes, Path("x.yaml"))


def test_there_are_sweeps():
    assert {path.stem for path in SWEEPS} >= {"demo", "paper_table4", "paper_table5", "paper_table6", "paper_table7"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_our_sweeps_expand_and_say_what_they_are(path):
    runs = expand(load_sweep(path))
    assert len(runs) > 1
    assert len({tuple(map(str, run.values())) for run in runs}) == len(runs)
    header = path.read_text()
    for word in ("Question:", "Command:", "Hardware:"):
        assert f"# {word}" in header
    assert "# Expected:" in header or "# Result:" in header


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_our_sweeps_name_connectors_that_exist(path):
    connectors = pytest.importorskip("connectors")
    parameter = load_sweep(path).parameter(CONNECTOR_KEY)
    assert set(parameter.grid()) <= set(connectors.names())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_our_sweeps_are_what_wandb_sends_to_its_server(path):
    """`wandb sweep FILE` reads the file and fills in distributions with these functions before it uploads it, and the
    agent makes the command line with the others. Both must give what the local runner does."""
    sweeps = pytest.importorskip("wandb.apis.public.sweeps")
    from wandb.sdk.launch.sweeps import utils

    sent = sweeps._validate_config_and_fill_distribution(utils.load_sweep_config(str(path)))
    sweep = load_sweep(path)
    assert parse_sweep(sent, path) == sweep

    values = expand(sweep)[-1]
    macros = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    macros["program"] = [sent["program"]]
    agent: list[str] = []
    for part in utils.create_sweep_command(list(sent["command"])):
        agent += macros[part[2:-1]] if part.startswith("${") else [part]
    local = resolve_command(sweep, as_arguments(values))
    assert [_parsed(argument) for argument in agent] == [_parsed(argument) for argument in local]


def _parsed(argument: str):
    """Arguments may be written differently and mean the same: {'a': 1} and {"a": 1}."""
    key, equals, value = argument.partition("=")
    return (key, yaml.safe_load(value)) if equals else argument


def test_nested_parameters_become_dotted_names():
    nested = {
        "connector": {"parameters": {"name": {"values": ["mlp"]}, "fields": {"parameters": {"depth": {"value": 2}}}}}
    }
    sweep = parse(parameters=nested)
    assert [parameter.name for parameter in sweep.parameters] == ["connector.fields.depth", "connector.name"]
    assert expand(sweep) == [{"connector.fields.depth": 2, "connector.name": "mlp"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paramters": {}}, r'Unknown key "paramters". Did you mean parameters'),
        ({"method": "gird"}, r'Unknown method "gird". Did you mean grid'),
        ({"parameters": {}}, r"`parameters` is missing or empty"),
        ({"parameters": [1]}, r"parameters: got \[1\], expected dict"),
        ({"run_cap": 0}, r"run_cap: got 0, expected 1 or more"),
        ({"run_cap": True}, r"run_cap: got True, expected int"),
        ({"metric": {"goal": "maximize"}}, r"metric: `name` is missing"),
        ({"metric": {"name": "x", "goal": "max"}}, r"metric.goal: got 'max'"),
        ({"metric": {"name": "x", "gaol": "maximize"}}, r'in metric "gaol"'),
        ({"command": ["a", ["b"]]}, r"command: got the part \['b'\]"),
        ({"parameters": {"0x": {"value": 1}}}, r"parameters.0x: a parameter's name"),
        ({"parameters": {"a": {"parameters": {}, "value": 1}}}, r"nested `parameters` and also value"),
        ({"parameters": {"a": {"parameters": {}}}}, r"expected a mapping that is not empty"),
        ({"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 1}}}}}, r"a.b: given twice"),
    ],
)
def test_a_mistake_names_its_key(changes, message):
    with pytest.raises(UserError, match=message):
        parse(**changes)


def test_load_sweep_names_the_file_and_what_is_wrong(tmp_path):
    file = tmp_path / "a.yaml"
    with pytest.raises(UserError, match=r"No sweep file at .*a.yaml"):
        load_sweep(file)
    file.write_text("method: grid\nparameters: {seed: {values: [0]}, seed: {values: [1]}}")
    with pytest.raises(UserError, match=r'the key "seed" stands twice'):
        load_sweep(file)
    file.write_text("method: [")
    with pytest.raises(UserError, match=r"a.yaml cannot be read as YAML"):
        load_sweep(file)
    file.write_text("method: grid\nparamters: {}")
    with pytest.raises(UserError, match=r"a.yaml: Unknown key"):
        load_sweep(file)
    with pytest.raises(UserError, match=r"No sweep file at .*b.yaml. There: .*a.yaml"):
        load_sweep(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"method: grid\n\tparameters: {}",
        b"",
        b"[1, 2]",
        b"a: &a [*a]",
        b"method: grid\nrun_cap: " + b"9" * 30 + b"\nparameters: {seed: {value: 1}}",
        b"method: grid\nparameters: {seed: {min: 010, max: 020}}",
        b"method: grid\nparameters: {seed: {min: 0, max: .inf}}",
        b"method: grid\nparameters: {lr: {min: 1e-5, max: 1.0}}",
        b"method: !!set {a}",
        b"method: [grid\n",
        b"method: grid\nparameters: {<<: 1}",
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name(tmp_path, content):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        expand(load_sweep(file))
    with pytest.raises(UserError, match="cannot be read"):
        load_sweep(tmp_path)


def test_values_keep_the_text_of_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    values = "['12e4567', '34e5678', 12e4567, 007, on, 1:30, 1.10, 1.1, 1e-3, 5.0e-4, true, 'true', null, 'null', ~]"
    file.write_text(f"method: grid\nname: 1.10\nparameters: {{group: {{values: {values}}}}}")
    sweep = load_sweep(file)
    assert sweep.name == "1.10"
    runs = expand(sweep)
    texts = ["12e4567", "34e5678", "007", "on", "1:30", "1.10", "1.1", "1e-3", "5.0e-4", "True", "true", "null", "null"]
    config = [load(Anything, overrides=as_arguments(run)).group for run in runs]
    assert config == texts
    assert [as_arguments(run)[0] for run in runs if run["group"] in ("null", None)] == ["group=null", 'group="null"']


@dataclass
class Anything:
    group: str = ""


def test_the_name_is_the_files_without_one(tmp_path):
    (tmp_path / "night.yaml").write_text("method: grid\nparameters: {seed: {values: [0]}}")
    assert load_sweep(tmp_path / "night.yaml").name == "night"


def test_a_command_resolves_as_an_agent_does(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    command = [
        "${env}",
        "${interpreter}",
        "-m",
        "${program}",
        "--root=${envvar:DATA}",
        "${envvar:UNSET_HERE}",
        "${args_no_hyphens}",
    ]
    sweep = parse(command=command, program="ablate")
    expected = ["/usr/bin/env", "python", "-m", "ablate", "--root=/data", "UNSET_HERE", "seed=1"]
    assert resolve_command(sweep, ["seed=1"]) == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ablate", "${args_json_file}"], r"reads no file of arguments; write \${args}"),
        (["ablate", "${arg_no_hyphens}"], r'Unknown macro in command "arg_no_hyphens". Did you mean args_no_hyphens'),
        (["${program}"], r"there is no `program`"),
    ],
)
def test_a_command_that_cannot_work(command, message):
    with pytest.raises(UserError, match=message):
        resolve_command(parse(command=command), [])


@given(
    values=st.dictionaries(
        st.sampled_from(["group", "seed", "encoder.names", "blind"]),
        st.booleans() | st.integers() | st.text("ab01.", max_size=5) | st.lists(st.text("ab'"), max_size=2),
        min_size=1,
    )
)
@pytest.mark.parametrize("macro", sorted(_ARGUMENT_MACROS))
def test_macros_are_what_wandbs_agents_make_of_them(macro, values):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    theirs = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})[macro]
    given = [f"{key}={value}" for key, value in values.items()]  # as W&B writes them
    ours = resolve_command(parse(command=[f"${{{macro}}}"]), given)
    if macro == "args_json":
        ours, theirs = ([json.loads(each) for each in part] for part in (ours, theirs))
        theirs = [{key: natural(Argument(str(value))) for key, value in theirs[0].items()}]
    assert ours == theirs


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
        max_leaves=10,
    )
)
def test_no_content_breaks_the_parser(content):
    for tried in (content, MINIMAL | {"parameters": content}, MINIMAL | {"parameters": {"x": content}}):
        try:
            parse_sweep(tried, Path("x.yaml"))
        except UserError:
            continue
