"""YAML whose scalars wait for a type: nothing is lost, nothing becomes another number."""

import contextlib
from fractions import Fraction
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.core.fields import Mismatch, Range, convert
from ablate.core.scalars import Argument, Quoted, Scalar, natural, parse_yaml, to_argument

# Words that readers of YAML 1.1 take for something else, and characters that mean something in YAML or in a shell.
WORDS = ["12e4567", "007", "1:30", "on", "no", "True", "null", "~", "None", "1.10", "1_000", "0x10", ".inf", "nan", "="]
WORDS += [
    "2024-01-01",
    "<<",
    "-",
    "?",
    ".",
    "${A}",
    "a #b",
    "'",
    '"',
    "\\",
    "a: b",
    "[a]",
    "{a}",
    "- a",
    "&a",
    "*a",
    "!a",
]
TEXTS = st.sampled_from([*WORDS, "", "%", "`"])
TEXTS = TEXTS | st.text(st.sampled_from("01.e+-_:#'\"\\ [],{}nul~\n\t$é\U0001f600\x85\ufeff"), max_size=10) | st.text()
NUMBERS = st.text("0123456789+-._eExo:, ", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def read(text: str, hint: Any) -> Any:
    try:
        return convert(Argument(text), hint)
    except Mismatch:
        return Mismatch


@given(TEXTS)
def test_a_text_argument_is_the_text_that_was_given(text):
    if text.strip()[:1] not in ("'", '"'):
        assert read(text, str) == text
        assert type(read(text, str)) is str


@given(TEXTS)
def test_quotes_around_a_whole_text_come_off(text):
    quoted = yaml.safe_dump(text, default_style='"', width=10**9, allow_unicode=True).strip()
    assert read(quoted, str) == text
    assert read(quoted, str | None) == text
    assert read(quoted, int | str) == text


@pytest.mark.parametrize("text", ["'tis", "'", '"', "'a' b 'c", '"a" "b"', "rock 'n' roll", "a\\n", "C:\\new", "it's"])
def test_quotes_within_a_text_stay(text):
    assert read(text, str) == text


@pytest.mark.parametrize("word", ["null", "~", "None", "NULL", ""])
def test_null_is_for_optional_settings(word):
    assert read(word, str) == word
    assert read(word, str | None) is None
    assert read(word, int | None) is None
    assert read(word, int) is Mismatch
    assert read(word, list[str] | None) is None
    assert convert(Quoted(word), str | None) == word
    if word != "None":  # which is no null of YAML's
        with pytest.raises(Mismatch):
            convert(Scalar(word), str)  # in a file


@given(NUMBERS)
@example("010")
@example("1_000")
@example("1e400")
@example("1e-400")
@example("1:30")
def test_a_number_is_read_exactly_or_refused(text):
    whole, decimal = read(text, int), read(text, float)
    if whole is not Mismatch:
        assert whole == int(text)
        assert text.strip().lstrip("+-").lstrip("0") in (str(abs(whole)), "")
    if decimal is not Mismatch:
        exact = Fraction(text)
        assert decimal == float(text)
        assert decimal == exact or abs(decimal - exact) <= abs(exact) / 2**52 or abs(exact) < 1e-300
        assert (decimal == 0) == (exact == 0)


@pytest.mark.parametrize(
    ("text", "hint", "expected"),
    [
        ("1e-3", float, 0.001),
        ("3", float, 3.0),
        ("+5", int, 5),
        ("-0", int, 0),
        ("1.", float, 1.0),
        ("'3'", int, 3),
        ("true", bool, True),
        ("False", bool, False),
        ("on", Literal["on", "off"], "on"),
        ("2", Literal["a", 2], 2),
        ("null", Literal["null", "a"], "null"),
        ("-1", int | str, -1),
        ("final", int | str, "final"),
        ("010", int | str, "010"),
        ("[1, on, ~, 007]", list[str | None], ["1", "on", None, "007"]),
        ("[a #b, '#c', #d]", list[str], ["a #b", "#c", "#d"]),
        ("{a: 1e3, b: .5}", dict[str, float], {"a": 1000.0, "b": 0.5}),
    ],
)
def test_the_type_says_what_a_scalar_is(text, hint, expected):
    value = read(text, hint)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *[
            (text, int)
            for text in ("1.0", "1e3", "1_000", "010", "0x10", "1:30", "0b1", "one", "", " 1", "١", "9" * 5000)
        ],
        *[
            (text, float)
            for text in ("1_0.5", "01.5", "0x1p3", "1:30", "1e", ".", "inf", "nan", ".inf", "-.INF", "1e999")
        ],
        *[(text, bool) for text in ("yes", "no", "on", "off", "1", "0", "y", "tRuE", "")],
    ],
)
def test_what_is_no_value_of_the_type_is_refused(text, hint):
    assert read(text, hint) is Mismatch


@given(VALUES)
def test_arguments_read_back_to_equal_values(value):
    text = to_argument(value)
    text.encode("utf-8")
    assert "\0" not in text
    assert natural(Argument(text)) == value
    if isinstance(value, str):
        assert read(text, str) == value
        assert read(text, str | None) == value


@given(st.lists(TEXTS, max_size=4))
def test_a_list_as_python_and_wandbs_agents_print_it(texts):
    printable = [text for text in texts if text.isprintable()]
    assert read(str(printable), list[str]) == printable
    assert read(to_argument(texts), list[str]) == texts


@given(st.dictionaries(st.text("ab\\'\""), TEXTS | st.booleans() | st.none() | st.integers(), max_size=4))
def test_a_mapping_as_python_and_wandbs_agents_print_it(mapping):
    if all(not isinstance(value, str) or value.isprintable() for value in mapping.values()):
        assert natural(Argument(str(mapping))) == mapping


@given(TEXTS)
def test_a_text_that_another_writer_of_yaml_wrote(text):
    for style in (None, "'", '"', "|", ">"):
        written = yaml.safe_dump([text], default_style=style)
        assert convert(parse_yaml(written), list[str]) == [text]


@given(st.text(st.sampled_from("ab1:-?[]{},#&*!|>'\"%@` \n\t~<"), max_size=30))
def test_no_document_breaks_the_reader(text):
    with contextlib.suppress(yaml.YAMLError):
        natural(parse_yaml(text))
    with contextlib.suppress(UserError):
        natural(Argument(text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "stands twice"),
        ("&a [*a]", "refers to itself"),
        ("[" * 400 + "]" * 400, "nested too deeply"),
        ("a: !!python/object:os.system 1", "no meaning here"),
        ("a: !!timestamp 2020-01-01", "no meaning here"),
        ("? [1, 2]\n: 3", "a key must be a text"),
        ("<<: 3", "<< takes a mapping"),
        ("a: *none", "undefined alias"),
        ("a: 1\n---\nb: 2", "single document"),
        ("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]" for i in range(9)), "too deeply"),
    ],
)
def test_what_yaml_cannot_mean_here(text, problem):
    with pytest.raises(yaml.YAMLError, match=problem):
        parse_yaml(text)


def test_anchors_and_merge_keys():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nboth: {<<: [{a: 7}, *base]}\nsame: *base"
    assert natural(parse_yaml(text)) == {
        "base": {"a": 1, "b": 2},
        "other": {"a": 1, "b": 3},
        "both": {"a": 7, "b": 2},
        "same": {"a": 1, "b": 2},
    }


@given(st.floats() | st.integers(), st.floats(-10, 10), st.floats(-10, 10))
def test_ranges(number, low, high):
    assert (number in Range(low, high)) == (low <= number <= high)
    assert (number in Range(above=low, below=high)) == (low < number < high)
    assert float("inf") in Range(finite=False)
    assert float("nan") not in Range()


@pytest.mark.parametrize("text", ["[train-{000..009}.tar]", "[a, *.tar]", "[train-[0-9].tar]"])
def test_brackets_that_are_no_yaml_are_to_be_quoted(text):
    with pytest.raises(UserError, match="put texts with brackets, braces or a star in quotes"):
        convert(Argument(text), list[str])
