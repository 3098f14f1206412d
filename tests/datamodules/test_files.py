"""Hashes of files: in pieces, and once where they are asked for again and again."""

import hashlib
import os
import re
import time
from pathlib import Path

import pytest

import datamodules.files as files
from ablate.errors import UserError
from datamodules.files import file_sha256, known_sha256

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 20) + 7])
def test_a_hash_is_of_all_bytes(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_sha256(path) == file_sha256(str(path)) == known_sha256(path) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("sha256", [file_sha256, known_sha256])
@pytest.mark.parametrize("kind", ["missing", "folder", "broken link"])
def test_what_cannot_be_hashed_is_named(sha256, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    if kind == "broken link":
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"Cannot read .*(file|nowhere): "):
        sha256(path)


def test_a_file_that_has_not_changed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(files, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    path = tmp_path / "file"

    def written(data: bytes, ago: float) -> str:
        path.write_bytes(data)
        os.utime(path, ns=(0, time.time_ns() - int(ago * 1e9)))
        return hashlib.sha256(data).hexdigest()

    expected = written(b"one", ago=60)
    assert [known_sha256(path), known_sha256(path)] == [expected] * 2
    (tmp_path / "link").symlink_to(path)
    assert known_sha256(tmp_path / "link") == expected
    assert len(read) == 1
    for data, ago in ((b"two", 50), (b"three", 50)):  # another time, another size
        assert known_sha256(path) == hashlib.sha256(data).hexdigest() if written(data, ago) else False
    # Just written: the next write may bear the same time stamp, so nothing is kept.
    stamp = time.time_ns()
    for data in (b"four", b"five"):
        path.write_bytes(data)
        os.utime(path, ns=(stamp, stamp))
        assert known_sha256(path) == hashlib.sha256(data).hexdigest()


def test_nothing_hashes_a_file_that_it_has_read_whole() -> None:
    """`sha256(path.read_bytes())` and its like, anywhere in the product."""
    whole = re.compile(r"sha256\([^()]*(\.read_bytes\(\)|\.read\(\))")
    paths = [path for folder in ("ablate", "connectors", "datamodules") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in paths if whole.search(path.read_text())]
