"""Annotation files, read entry by entry."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.errors import UserError
from datamodules import annotations
from datamodules.annotations import read_entries

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=[1, 7, 1 << 20])
def read_bytes(request, monkeypatch):
    """Windows so small that every entry is cut, and the usual one."""
    monkeypatch.setattr(annotations, "READ_BYTES", request.param)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=30
)
@given(
    values=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), bom=st.booleans()
)
def test_entries_of_an_array_are_those_of_json(read_bytes, tmp_path, values, indent, ascii_only, bom):
    path = tmp_path / "a.json"
    path.write_bytes(
        b"\xef\xbb\xbf" * bom + json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode() + b"\n"
    )
    data = path.read_bytes()
    found = list(read_entries(path))
    assert [each.value for each in found] == values
    for each in found:
        assert data[each.offset : each.offset + len(each.raw)] == each.raw
        assert json.loads(each.raw) == each.value


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=20
)
@given(values=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=6))
def test_json_lines(tmp_path, values):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"  {json.dumps(value)}\r\n\n" for value in values))
    data = path.read_bytes()
    found = list(read_entries(path))
    assert [each.value for each in found] == values
    assert all(data[each.offset : each.offset + len(each.raw)] == each.raw for each in found)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
@given(data=st.binary(max_size=60) | st.binary(max_size=40).map(lambda each: b"[" + each))
def test_bytes_of_any_kind_are_read_or_refused(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        for each in read_entries(path):
            assert json.loads(each.raw) == each.value or each.value != each.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "byte 1: the entry that starts there"),
        ('[{"a": 1}', "byte 9: expected ',', the file ends"),
        ('[{"a": 1} {"b": 2}]', "byte 10: expected ',', found '{'"),
        ('[{"a": 1},\n {"b": }]', "byte 12: the entry that starts there is not JSON"),
        ("[1] x", "byte 4: expected the end"),
        ("{}\nx\n", "byte 3: the line that starts there"),
        ("[" * 100_000, "not JSON: maximum recursion"),
    ],
)
def test_what_is_wrong_and_where(read_bytes, tmp_path, text, message):
    if len(text) > 1000 and annotations.READ_BYTES == 1:
        pytest.skip("slow")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="is damaged") as error:
        list(read_entries(tmp_path / "a.json"))
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match="byte 8: the text is not UTF-8"):
        list(read_entries(tmp_path / "a.json"))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read the annotations"):
        list(read_entries(tmp_path / "none.json"))


def test_an_empty_file_has_no_entries(tmp_path):
    for text in ("", " \n", "[]", " [ ] "):
        (tmp_path / "a.json").write_text(text)
        assert list(read_entries(tmp_path / "a.json")) == []
