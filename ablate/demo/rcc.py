"""Reader of Qt's binary resource collections (`.rcc` files, as `rcc --binary` writes them), versions 1 to 3.

Layout, all integers big-endian:

    header   "qres", u32 version, u32 tree offset, u32 data offset, u32 names offset [, u32 flags if version >= 3]
    tree     nodes of 14 bytes (22 from version 2 on, which add a time stamp):
             u32 name offset, u16 flags, then  u32 child count, u32 first child           (a folder)
                                           or  u16 territory, u16 language, u32 data offset (a file)
    names    u16 length, u32 hash, UTF-16 code units
    data     u32 size, bytes; if zlib-compressed (`qCompress`) the bytes are a u32, the length to expect, and a stream

Source: Qt's qtbase/src/corelib/io/qresource.cpp and src/tools/rcc/rcc.cpp. Every offset is checked against the file
before it is used, so that a truncated download is recognized without a crash.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"qres"
_COMPRESSED_ZLIB, _DIRECTORY, _COMPRESSED_ZSTD = 0x01, 0x02, 0x04
MAX_FILE_BYTES = 256 * 2**20
"""The most that one member may expand to: a small file cannot fill the memory."""


class RccError(ValueError):
    """The bytes are no readable Qt resource collection: truncated, corrupt, or of an unsupported kind."""


@dataclass(frozen=True)
class RccFile:
    """One member of a resource collection; read its bytes with `RccReader.read`."""

    path: str
    flags: int
    offset: int
    """Of the member's length field, counted from the start of the collection."""


class RccReader:
    """The members of one resource collection held in memory.

    Args:
        data: the bytes of the whole `.rcc` file.

    Raises:
        RccError: the header or the tree does not fit the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        if data[:4] != _MAGIC:
            raise RccError(f"not a Qt resource file: it starts with {data[:4]!r}, expected {_MAGIC!r}")
        self.version, self._tree, self._payload, self._names = self._unpack(">4I", 4)
        if self.version not in (1, 2, 3):
            raise RccError(f"Qt resource format version {self.version} is unknown; versions 1 to 3 can be read")
        self._node_bytes = 14 if self.version == 1 else 22
        self._files = {file.path: file for file in self._walk()}

    def paths(self) -> list[str]:
        """The members' paths, in the file's order."""
        return list(self._files)

    def read(self, path: str) -> bytes:
        """The bytes of one member, expanded.

        Raises:
            KeyError: there is no member of that name.
            RccError: the member is truncated, does not expand, or is compressed with zstd.
        """
        file = self._files[path]
        (size,) = self._unpack(">I", file.offset)
        start = file.offset + 4
        if start + size > len(self._data):
            raise RccError(f"{path}: {size} bytes expected at offset {start}, the file ends at {len(self._data)}")
        raw = self._data[start : start + size]
        if file.flags & _COMPRESSED_ZSTD:
            raise RccError(f"{path}: compressed with zstd, which is not supported")
        return _uncompress(raw, path) if file.flags & _COMPRESSED_ZLIB else raw

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize(form) > len(self._data):
            raise RccError(f"truncated: offset {offset} lies beyond the end of the file ({len(self._data)} bytes)")
        return struct.unpack_from(form, self._data, offset)

    def _name(self, offset: int) -> str:
        (length,) = self._unpack(">H", self._names + offset)
        start = self._names + offset + 6
        if start + 2 * length > len(self._data):
            raise RccError(f"truncated: a name of {length} characters at offset {start}")
        try:
            return self._data[start : start + 2 * length].decode("utf-16-be")
        except UnicodeDecodeError as error:
            raise RccError(f"a name at offset {start} is not UTF-16: {error}") from None

    def _walk(self) -> Iterator[RccFile]:
        """Every file below the root. A node is visited once, so a tree that points back at itself is refused."""
        pending, seen = [(0, "")], {0}
        while pending:
            node, parent = pending.pop()
            at = self._tree + node * self._node_bytes
            name_offset, flags = self._unpack(">IH", at)
            # The root has no name of its own.
            path = f"{parent}/{self._name(name_offset)}".lstrip("/") if node else ""
            if not flags & _DIRECTORY:
                (data_offset,) = self._unpack(">I", at + 10)
                yield RccFile(path, flags, self._payload + data_offset)
                continue
            count, first = self._unpack(">2I", at + 6)
            if self._tree + (first + count) * self._node_bytes > len(self._data):
                raise RccError(f"truncated: the folder {path or '/'!r} has {count} entries from node {first} on")
            for child in reversed(range(first, first + count)):
                if child in seen:
                    raise RccError(f"node {child} is listed twice: the tree is corrupt")
                seen.add(child)
                pending.append((child, path))


def _uncompress(raw: bytes, path: str) -> bytes:
    """Qt's `qUncompress`, with a bound on what comes out."""
    if len(raw) < 4:
        raise RccError(f"{path}: truncated in the length of its compressed data")
    (expected,) = struct.unpack_from(">I", raw)
    if expected > MAX_FILE_BYTES:
        raise RccError(f"{path}: announces {expected} bytes, more than the {MAX_FILE_BYTES} that are read")
    stream = zlib.decompressobj()
    try:
        # One byte more than announced, so that a longer stream is seen as such without expanding all of it.
        data = stream.decompress(raw[4:], expected + 1)
    except zlib.error as error:
        raise RccError(f"{path}: corrupt compressed data ({error})") from None
    if len(data) != expected:
        got = "more" if len(data) > expected else str(len(data))
        raise RccError(f"{path}: expands to {got} bytes, {expected} expected")
    return data
