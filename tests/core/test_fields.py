"""Fields: strict types, refused at registration where no value could be checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.fields import Signature, check, type_text
from ablate.errors import UserError


@dataclass
class Sizes:
    width: int = 4
    rates: Sequence[float] = field(default_factory=tuple)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 5, 5),
        (float, 5, 5.0),
        (str, "5", "5"),
        (bool, False, False),
        (int | None, None, None),
        (Literal["a", 2], 2, 2),
        (float | int, 1, 1),
        (Sequence[int], [1, 2], (1, 2)),
        (tuple[int, ...], (1,), (1,)),
        (tuple[float, float], [1, 2.5], (1.0, 2.5)),
        (Sequence[Sequence[str]], [["a"], []], (("a",), ())),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (Sizes, {"width": 2, "rates": [1]}, Sizes(2, (1.0,))),
        (Sizes | None, {"width": 2}, Sizes(2)),
    ],
)
def test_values_of_the_declared_type(hint, value, expected):
    converted = check("it", value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (bool, "no"),
        (bool, 0),
        (str, 5),
        (int, True),
        (int, 2.0),
        (int, "2"),
        (float, "1e-3"),
        (float, float("nan")),
        (float, float("inf")),
        (float, True),
        (int, None),
        (Literal["a", 1], True),
        (Sequence[str], "abc"),
        (Sequence[str], b"abc"),
        (Sequence[int], [1, "2"]),
        (tuple[float, float], [1.0]),
        (Mapping[str, int], [("a", 1)]),
        (Mapping[str, int], {1: 1}),
        (Sizes, {"widht": 2}),
        (Sizes, {"width": "2"}),
    ],
)
def test_values_of_another_type_are_refused(hint, value):
    with pytest.raises(UserError, match=r"^it: got .* expected ") as error:
        check("it", value, hint)
    assert type_text(hint) in str(error.value)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()), st.sampled_from([int, str, bool]))
def test_no_scalar_becomes_another(value, hint):
    if type(value) is hint:
        assert check("it", value, hint) is value
    else:
        with pytest.raises(UserError):
            check("it", value, hint)


@pytest.mark.parametrize("hint", [Any, object, bytes, set[int], list[Any], dict[str, object], int | bytes, type])
def test_types_that_cannot_be_checked_are_the_authors_to_correct(hint):
    def member(*, setting): ...

    member.__annotations__ = {"setting": hint}
    with pytest.raises(TypeError, match='"setting"'):
        Signature.of(member, ())


def test_a_field_without_a_type_is_refused():
    def member(*, setting=1): ...

    with pytest.raises(TypeError, match='"setting" has no type annotation'):
        Signature.of(member, ())


def test_fields_are_keyword_only():
    def member(width: int, depth: int = 1): ...

    with pytest.raises(TypeError, match=r"after a \*"):
        Signature.of(member, ("width",))
