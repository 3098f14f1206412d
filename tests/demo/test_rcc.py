"""Qt resource files: every version is read, and whatever else is in a file, the reader does no more than say so."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.demo import rcc
from ablate.demo.rcc import RccError, RccReader

DIRECTORY, ZLIB, ZSTD = 2, 1, 4


class Writer:
    """Writes a collection the way Qt's `rcc --binary` does."""

    def __init__(self, version: int):
        self.version = version
        self.names, self.data = b"", b""
        self.nodes: list[bytes] = []

    def name(self, text: str) -> int:
        offset = len(self.names)
        encoded = text.encode("utf-16-be")
        self.names += struct.pack(">HI", len(encoded) // 2, 0) + encoded
        return offset

    def payload(self, data: bytes, flags: int) -> int:
        offset = len(self.data)
        if flags & ZLIB:
            data = struct.pack(">I", len(data)) + zlib.compress(data)
        self.data += struct.pack(">I", len(data)) + data
        return offset

    def node(self, name: int, flags: int, rest: bytes) -> None:
        time = struct.pack(">Q", 1_700_000_000_000) if self.version >= 2 else b""
        self.nodes.append(struct.pack(">IH", name, flags) + rest + time)

    def folder(self, name: int, count: int, first: int) -> None:
        self.node(name, DIRECTORY, struct.pack(">II", count, first))

    def file(self, name: int, offset: int, flags: int) -> None:
        self.node(name, flags, struct.pack(">HHI", 0, 1, offset))

    def finish(self) -> bytes:
        head = 24 if self.version >= 3 else 20
        tree = b"".join(self.nodes)
        data, names = head + len(tree), head + len(tree) + len(self.data)
        header = b"qres" + struct.pack(">4I", self.version, head, data, names)
        return header + (struct.pack(">I", 0) if self.version >= 3 else b"") + tree + self.data + self.names


def collection(version: int, files: dict[str, bytes], flags: int = 0) -> bytes:
    """One folder "pictures" with the files."""
    writer = Writer(version)
    writer.folder(0, 1, 1)
    writer.folder(writer.name("pictures"), len(files), 2)
    for name, data in files.items():
        writer.file(writer.name(name), writer.payload(data, flags), flags)
    return writer.finish()


@given(
    version=st.sampled_from([1, 2, 3]),
    flags=st.sampled_from([0, ZLIB]),
    files=st.dictionaries(
        st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.binary(max_size=200),
        min_size=1,
        max_size=5,
    ),
)
def test_reads_what_was_written(version: int, flags: int, files: dict[str, bytes]) -> None:
    reader = RccReader(collection(version, files, flags))
    assert reader.version == version
    assert {path: reader.read(path) for path in reader.paths()} == {f"pictures/{n}": d for n, d in files.items()}


@given(data=st.binary(max_size=300), magic=st.booleans())
def test_arbitrary_bytes_raise_nothing_else(data: bytes, magic: bool) -> None:
    _read_all(b"qres" + data if magic else data)


@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_damaged_files_raise_nothing_else(position: int, value: int, cut: int) -> None:
    good = collection(3, {"a": b"some bytes" * 9, "b": b""}, ZLIB)
    damaged = bytearray(good)
    damaged[position % len(good)] = value
    _read_all(bytes(damaged))
    _read_all(good[: cut % len(good)])


def _read_all(data: bytes) -> None:
    try:
        reader = RccReader(data)
    except RccError:
        return
    for path in reader.paths():
        try:
            reader.read(path)
        except RccError:
            continue


def test_every_truncation_is_noticed() -> None:
    good = collection(2, {"a": b"some bytes" * 9})
    for length in range(len(good)):
        with pytest.raises(RccError):
            RccReader(good[:length]).read("pictures/a")


def test_not_a_resource_file() -> None:
    with pytest.raises(RccError, match="not a Qt resource file"):
        RccReader(b"PK\x03\x04" + b"\0" * 40)


def test_unknown_version() -> None:
    with pytest.raises(RccError, match="version 4"):
        RccReader(b"qres" + struct.pack(">4I", 4, 20, 20, 20))


def test_a_tree_that_contains_itself_is_refused() -> None:
    writer = Writer(1)
    writer.folder(0, 1, 1)
    writer.folder(writer.name("again"), 1, 1)
    with pytest.raises(RccError, match="listed twice"):
        RccReader(writer.finish())


def test_zstd_is_named() -> None:
    reader = RccReader(collection(3, {"a": b"x"}, ZSTD))
    with pytest.raises(RccError, match="zstd"):
        reader.read("pictures/a")


def test_a_bomb_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = collection(1, {"a": b"\0" * 100_000}, ZLIB)
    monkeypatch.setattr(rcc, "MAX_FILE_BYTES", 1000)
    with pytest.raises(RccError, match="announces 100000 bytes"):
        RccReader(data).read("pictures/a")
    # One that announces less than it expands to.
    start = data.index(struct.pack(">I", 100_000))
    liar = data[:start] + struct.pack(">I", 10) + data[start + 4 :]
    with pytest.raises(RccError, match="expands to more bytes, 10 expected"):
        RccReader(liar).read("pictures/a")


def test_missing_member() -> None:
    with pytest.raises(KeyError):
        RccReader(collection(1, {"a": b""})).read("pictures/b")
