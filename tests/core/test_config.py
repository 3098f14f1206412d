import contextlib
import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.config import LATER, MISSING, digest, flatten, load, read_yaml, to_yaml
from ablate.core.errors import UserError
from ablate.core.scalars import to_argument


@dataclass
class Train:
    stage: Literal["align", "finetune"] = "align"
    learning_rate: float = 1e-3
    max_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass
class Connector:
    name: str = "mlp"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class Extra:
    size: int = 1


@dataclass
class Run:
    train: Train = field(default_factory=Train)
    connector: Connector = field(default_factory=Connector)
    names: list[str] = field(default_factory=list)
    extra: Extra | None = None
    extras: list[Extra] = field(default_factory=list)
    seed: int = 0
    blind: bool = False
    root: str = "runs"


@dataclass
class Checked:
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed: got {self.seed}, expected 0 or more")


@dataclass
class Incomplete:
    data: str = MISSING


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def test_defaults_then_files_then_overrides(write):
    first = write("a.yaml", "seed: 1\ntrain: {learning_rate: 2e-3, max_steps: 5}\n")
    second = write("b.yaml", "train: {learning_rate: 3e-3}\n")
    config = load(Run, [first, second], ["train.max_steps=7"])
    assert config == Run(seed=1, train=Train(learning_rate=3e-3, max_steps=7))
    assert isinstance(config.train, Train)


def test_defaults_list_is_merged_first_and_relative_to_its_file(write):
    write("base/a.yaml", "seed: 1\nroot: base\n")
    write("base/b.yaml", "defaults: [a.yaml]\nseed: 2\n")
    top = write("top.yaml", "defaults: [base/b.yaml]\nroot: top\n")
    assert load(Run, [top]) == Run(seed=2, root="top")


def test_defaults_that_lead_back_to_themselves_are_refused(write):
    write("a.yaml", "defaults: [b.yaml]\n")
    with pytest.raises(UserError, match="lead back to itself"):
        load(Run, [write("b.yaml", "defaults: [a.yaml]\n")])


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("train.max_steps=null", "train.max_steps", None),
        ("train.betas=[0.8,0.9]", "train.betas", (0.8, 0.9)),
        ("names=[a,b]", "names", ["a", "b"]),
        ("connector.fields.depth=2", "connector.fields.depth", 2),
        ("connector.fields={path: snake}", "connector.fields.path", "snake"),
        ("--seed=3", "seed", 3),
        ("root=", "root", ""),
        ("root=a=b", "root", "a=b"),
        ("blind=true", "blind", True),
        ("extra.size=2", "extra.size", 2),
        ("extra=null", "extra", None),
        ("extras=[{size: 2}]", "extras", [{"size": 2}]),
    ],
)
def test_overrides(override, key, expected):
    assert flatten(load(Run, overrides=[override]))[key] == expected


def test_free_form_fields_merge_over_sources(write):
    config = load(Run, [write("a.yaml", "connector: {fields: {depth: 1, path: snake}}")], ["connector.fields.depth=2"])
    assert config.connector.fields == {"depth": 2, "path": "snake"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", 'unknown key "train.lerning_rate": did you mean train.learning_rate?'),
        ("learning_rate=1", 'unknown key "learning_rate": did you mean train.learning_rate?'),
        ("trian.learning_rate=1", 'unknown key "trian.learning_rate": did you mean train.learning_rate?'),
        ("train.zzz=1", "the keys there are train.stage, train.learning_rate, train.max_steps, train.betas"),
        ("train.learning_rate=fast", "train.learning_rate: got 'fast' (str), expected float"),
        ("train.max_steps=1.5", "train.max_steps: got 1.5 (float), expected int or null"),
        ("train.stage=both", "train.stage: got 'both' (str), expected one of align, finetune"),
        ("train.betas=[1,x]", "train.betas: got [1, 'x'] (list), expected tuple of float, float"),
        ("train.betas=[1,2,3]", "expected tuple of float, float"),
        ("names=a", "names: got 'a' (str), expected list of str"),
        ("connector.fields=3", "connector.fields: got 3 (int), expected dict of str, Any"),
        ("train=3", "train: got 3, expected a group with the keys stage, learning_rate"),
        ("extra.sise=1", 'unknown key "extra.sise": did you mean extra.size?'),
        ("extra=3", "extra: got 3, expected a group with the keys size"),
        ("extras=[{sise: 1}]", "extras: got [{'sise': 1}] (list), expected list of {size}"),
        ("train.learning_rate.x=1", "train.learning_rate: got {'x': 1} (dict), expected float"),
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..stage=align", "expected key=value"),
        ("names=[a", "not valid YAML"),
    ],
)
def test_bad_overrides_name_the_key_and_what_was_expected(override, message):
    with pytest.raises(UserError) as error:
        load(Run, overrides=[override])
    assert message in str(error.value)
    assert override in str(error.value)


def test_all_problems_of_a_file_are_reported_at_once(write):
    path = write("a.yaml", "sed: 1\ntrain: {learning_rate: fast}\n")
    with pytest.raises(UserError) as error:
        load(Run, [path])
    assert str(path) in str(error.value)
    assert "did you mean seed?" in str(error.value)
    assert "train.learning_rate: got 'fast'" in str(error.value)


def test_a_dotted_key_in_a_file_is_explained(write):
    with pytest.raises(UserError, match='nest it under "train:"'):
        load(Run, [write("a.yaml", "train.learning_rate: 1\n")])


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "train: {stage: align, stage: finetune}\n"])
def test_duplicate_keys_are_refused(write, text):
    with pytest.raises(UserError, match="duplicate key"):
        load(Run, [write("a.yaml", text)])


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "3\n", "\x00"])
def test_files_that_are_no_yaml_mapping(write, text):
    path = write("a.yaml", text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No config file"):
        load(Run, [tmp_path / "none.yaml"])


def test_a_mandatory_key():
    with pytest.raises(UserError, match="no value yet: data"):
        load(Incomplete)


def test_errors_of_post_init_reach_the_user():
    with pytest.raises(UserError, match="expected 0 or more"):
        load(Checked, overrides=["seed=-1"])


def test_yaml_round_trip(write):
    config = load(Run, overrides=["connector.fields={depth: 2, path: snake}", "names=[a]", "train.max_steps=3"])
    assert load(Run, [write("a.yaml", to_yaml(config))]) == config


TEXTS = st.sampled_from(["on", "1:30", "007", "null", "~", "", "12e4567", "1.10", "${USER}", "a #b", "x\n y\n", "\x85"])
TEXTS = TEXTS | st.text() | st.text("abc-_.1e0:#'\"\\{}[] \n\t", max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.builds(
        Run,
        seed=st.integers(0, 2**40),
        root=TEXTS,
        names=st.lists(TEXTS, max_size=3),
        connector=st.builds(Connector, name=TEXTS, fields=st.dictionaries(TEXTS, ANYTHING, max_size=3)),
        train=st.builds(Train, learning_rate=st.floats(1e-300, 1e9), max_steps=st.none() | st.integers(0, 10**9)),
    )
)
def test_any_config_survives_yaml(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load(Run, [path]) == config
    assert yaml.safe_load(to_yaml(config))["names"] == config.names  # another reader, another YAML


@given(TEXTS)
def test_a_text_setting_keeps_the_text_of_the_command_line(text):
    if text.strip()[:1] not in ("'", '"'):
        assert load(Run, overrides=[f"root={text}"]).root == text
    assert load(Run, overrides=[f"names={to_argument([text])}"]).names == [text]


@given(st.text("0123456789abcdefonyes:._-+~", min_size=1, max_size=10))
def test_a_text_setting_keeps_the_text_of_a_file(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    for written in (text, f"'{text}'", f'"{text}"'):
        path.write_text(f"root: {written}\nnames: [{written}]\n")
        if written == text and (text[0] in "-:~" or text.endswith(":")):
            continue  # what YAML itself takes for something else than a scalar, and null
        assert load(Run, [path]) == Run(root=text, names=[text])


def test_null_is_for_optional_settings(write):
    for word in ("null", "~", ""):
        with pytest.raises(UserError, match=r'root: got None .*"null" in quotes the word'):
            load(Run, [write("a.yaml", f"root: {word}\n")])
        assert load(Run, [write("a.yaml", f"train: {{max_steps: {word}}}\n")]).train.max_steps is None
    assert load(Run, [write("a.yaml", "root: 'null'\n")]).root == "null"
    assert load(Run, overrides=["train.max_steps=None"]).train.max_steps is None
    assert load(Run, overrides=["root=None"]).root == "None"


@pytest.mark.parametrize("key", ["seed", "train.learning_rate", "train.max_steps", "train.betas", "blind"])
@given(text=st.text("0123456789.eE+-_:xo,[]~ truefalsnN", max_size=10))
def test_a_number_is_the_one_that_was_given_or_an_error(key, text):
    try:
        value = flatten(load(Run, overrides=[f"{key}={text}"]))[key]
    except UserError:
        return
    numbers = value if isinstance(value, tuple) else [value]
    given = text.strip().strip("[]").split(",")
    for number, part in zip(numbers, given, strict=True):
        if number is None:
            assert part.strip() in ("", "~", "null", "Null", "NULL", "None")
        elif isinstance(number, bool):
            assert part.strip().lower() == str(number).lower()
        else:
            assert number == float(part)
            assert "_" not in part


@pytest.mark.parametrize(
    "text",
    [
        b"root: \xe9\n",
        b"\xff\xfea",
        b"train:\n\tstage: align\n",
        b"a: &a [*a]\n",
        b"root: *none\n",
        b"seed: " + b"9" * 10000 + b"\n",
        b"<<: 3\n",
        b"- a\n- b\n",
        b"just words\n",
        b"seed: !!python/name:os.system\n",
        b"[" * 2000,
        b"root: 'a\n",
        b"a: b: c\n",
        b"? {a: b}\n: c\n",
        b"---\na: 1\n---\nb: 1\n",
        b"\x00\x01",
        b"1: 2\n",
        b"defaults: {a: b}\n",
        b"defaults: [1, [2]]\n",
        b"connector: {fields: [1]}\n",
        b'root: "\\UFFFFFFFF"\n',
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"bad\.yaml|No config file"):
        load(Run, [path])


@given(st.binary(max_size=30))
def test_no_bytes_break_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        load(Run, [path])


def test_a_folder_is_no_file_and_an_empty_file_changes_nothing(tmp_path, write):
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load(Run, [tmp_path])
    assert load(Run, [write("a.yaml", "")]) == load(Run, [write("b.yaml", "# nothing\n")]) == Run()
    with pytest.raises(UserError, match="not by tabs"):
        load(Run, [write("c.yaml", "train:\n\tstage: align\n")])


def test_a_number_that_is_not_finite_is_text_in_flat_settings():
    """Where a setting takes infinity: the settings of a result must be writable as JSON."""
    flat = flatten(Run(connector=Connector(fields={"a": [math.inf], "b": math.nan})))
    assert json.loads(json.dumps(flat, allow_nan=False))["connector.fields.a"] == ["inf"]
    assert flat["connector.fields.b"] == "nan"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.stages", "did you mean train.stage?"),
        ("trian.max_step", "did you mean train.max_steps?"),
        ("connectors.name", "did you mean connector.name?"),
        ("extra.learning_rate", "did you mean train.learning_rate?"),
        ("extra.name", "the keys there are extra.size"),
        ("train.name", "the keys there are train.stage"),
        ("train.seed", "the keys there are train.stage"),
        ("stage", "did you mean train.stage?"),
    ],
)
def test_the_group_counts_in_what_was_meant(key, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load(Run, overrides=[f"{key}=1"])


def test_digest_depends_on_values_only():
    assert digest(Run()) == digest(load(Run))
    assert digest(Run(seed=1)) != digest(Run())
    assert digest(Run(connector=Connector(fields={"a": 1, "b": 2}))) == digest(
        Run(connector=Connector(fields={"b": 2, "a": 1}))
    )
    assert len(digest(Run())) == 64


def test_a_later_field_takes_part_in_the_digest_where_it_is_not_at_its_default():
    @dataclasses.dataclass
    class Group:
        old: int = 1

    @dataclasses.dataclass
    class Before:
        group: Group = dataclasses.field(default_factory=Group)

    @dataclasses.dataclass
    class NewGroup(Group):
        new: dict[str, Any] = dataclasses.field(default_factory=dict, metadata=LATER)
        name: str = dataclasses.field(default="a", metadata=LATER)

    @dataclasses.dataclass
    class After:
        group: NewGroup = dataclasses.field(default_factory=NewGroup)

    assert digest(After()) == digest(Before())
    assert len({digest(After(NewGroup(**given))) for given in ({}, {"old": 2}, {"new": {"b": 1}}, {"name": "b"})}) == 4


def test_digest_ignores_leaves_and_groups():
    changed = dataclasses.replace(Run(), root="elsewhere", train=Train(learning_rate=1.0))
    assert digest(changed, ignore=["root", "train"]) == digest(Run(), ignore=["root", "train"])
    assert digest(changed, ignore=["root"]) != digest(Run(), ignore=["root"])
    assert digest(Run(extra=Extra(2)), ignore=["extra.size"]) == digest(Run(extra=Extra(3)), ignore=["extra.size"])
    assert digest(Run(), ignore=["extra.size"]) == digest(Run())  # there is no extra
    with pytest.raises(KeyError):
        digest(Run(), ignore=["train.lr"])


def test_flatten():
    flat = flatten(Run(connector=Connector(fields={"depth": 2})))
    assert flat["connector.fields.depth"] == 2
    assert flat["train.learning_rate"] == 1e-3
    assert flatten(Run())["connector.fields"] == {}
