"""Annotation files, read entry by entry."""

import bz2
import codecs
import contextlib
import gzip
import json
import lzma

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.core.errors import UserError
from datamodules.shards import annotations
from datamodules.shards.annotations import read_entries

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


RECORDS = [{"id": number, "conversations": [{"from": "human", "value": "é?"}]} for number in range(3)]
LINES = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ARRAY.encode("utf-16"), "UTF-16, expected UTF-8.*iconv -f UTF-16 -t UTF-8"),
        (LINES.encode("utf-16"), "UTF-16, expected UTF-8"),
        (codecs.BOM_UTF16_BE + ARRAY.encode("utf-16-be"), "UTF-16, expected UTF-8"),
        (ARRAY.encode("utf-16-le"), "iconv -f UTF-16LE"),
        (LINES.encode("utf-16-be"), "iconv -f UTF-16BE"),
        (ARRAY.encode("utf-32"), "iconv -f UTF-32"),
        (ARRAY.encode("utf-32-be"), "iconv -f UTF-32"),
        (gzip.compress(ARRAY.encode(), mtime=0), "a gzip archive.*gunzip -k"),
        (bz2.compress(LINES.encode()), "a bzip2 archive.*bunzip2 -k"),
        (lzma.compress(LINES.encode()), "an xz archive"),
        (b"PAR1" + bytes(90), "a Parquet table"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (json.dumps({"data": RECORDS}).encode(), 'its records under "data".*jq'),
        (json.dumps({"annotations": RECORDS}, indent=2).encode(), 'its records under "annotations"'),
        (json.dumps({"info": {"a": [1]}, "licenses": [], "data": RECORDS}).encode(), 'its records under "data"'),
        (json.dumps({"info": {"a": [1]}, "data": RECORDS}, indent=1).encode(), 'its records under "data"'),
        (b'\xef\xbb\xbf{"data": ' + ARRAY.encode() + b"}", 'under "data"'),
        (json.dumps(RECORDS[0], indent=2).encode(), r"objects of several lines.*jq -s"),
        ("\n".join(json.dumps(each, indent=4) for each in RECORDS).encode(), r"objects of several lines.*jq -s"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, data, said):
    path = tmp_path / "mix.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        list(read_entries(path))


def test_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        list(read_entries(tmp_path))


@pytest.mark.parametrize("data", [LINES, "\ufeff" + LINES, ARRAY, "\ufeff" + ARRAY, "\n \n" + LINES, LINES.strip()])
def test_arrays_and_lines_are_taken_with_and_without_a_mark(tmp_path, data):
    path = tmp_path / "mix.txt"
    path.write_text(data, encoding="utf-8")
    assert [each.value for each in read_entries(path)] == RECORDS


def test_lines_that_start_with_the_turns_are_no_wrapped_array(tmp_path):
    lines = [{"conversations": [{"from": "human", "value": "a"}]}, {"conversations": [{"value": "b", "from": "gpt"}]}]
    chat = [{"messages": [{"role": "user", "content": "a"}]}]
    for records in (lines, lines[::-1], chat, [{"id": 1, "objects": []}]):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        assert [each.value for each in read_entries(tmp_path / "a.jsonl")] == records


@pytest.mark.parametrize(
    ("record", "image"),
    [
        ({"image": "a.jpg"}, "a.jpg"),
        ({"image": ["a.jpg"]}, "a.jpg"),
        ({"images": ["a.jpg"]}, "a.jpg"),
        ({"images": "a.jpg"}, "a.jpg"),
        ({"image": "a.jpg", "images": ["a.jpg"]}, "a.jpg"),
        ({"image": None, "images": ["a.jpg", None]}, "a.jpg"),
        ({"images": []}, None),
        ({"images": None}, None),
        ({"image": []}, None),
        ({}, None),
        ({"images": ["a.jpg", "b.jpg"]}, ["a.jpg", "b.jpg"]),
        ({"image": "a.jpg", "images": ["b.jpg"]}, ["a.jpg", "b.jpg"]),
        ({"images": [{"path": "a.jpg"}]}, {"path": "a.jpg"}),
    ],
)
def test_one_image_by_whatever_key(record, image):
    found = annotations.one_image(record | {"id": 1})
    assert found.get("image") == image
    assert "images" not in found
    assert found["id"] == 1
