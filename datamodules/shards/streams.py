"""Shards that cannot be read by offset: compressed ones, here or far away, and what a command prints (`pipe:`).

Each is unpacked once, into a plain shard of its own folder in the cache, and indexed there as any other: the order of
samples, resuming and several ranks stay exact. WebDataset opens commands.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from webdataset import gopen

from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from ablate.core.locks import exclusive
from datamodules.errors import ShardError
from datamodules.shards.paths import TAR_GZ, is_remote, shown

log = logging.getLogger(__name__)

COMMAND = "pipe:"
READ_BYTES = 1 << 20


def is_stream(place: str) -> bool:
    """Whether this is a compressed shard, or a command that prints one."""
    return place.startswith(COMMAND) or bool(TAR_GZ.search(place.partition("?")[0]))


def unpacked(place: str, cache: Path, limit_bytes: int = 0) -> Path:
    """The folder of the plain shard that a compressed file, URL or command holds; unpacked at the first call.

    Args:
        place: the path or URL of a .tar.gz or .tgz, or a `pipe:` command, whose output may be compressed.
        cache: the folder for all of them. A local file that has changed is unpacked again; for the others, delete the
            folder that this returns.
        limit_bytes: most bytes that one may unpack to; 0 = no limit.

    Raises:
        ShardError: it cannot be read, is damaged, or holds more than the limit.
    """
    folder = cache / hashlib.sha256(_identity(place).encode()).hexdigest()[:16]
    shard = folder / "shard.tar"
    with exclusive(folder / ".lock"):
        if not shard.exists():
            log.info("%s is unpacked once, to %s", _told(place), shard)
            with atomic_file(shard) as file:
                _copy(place, file, limit_bytes)
    return folder


def _identity(place: str) -> str:
    if place.startswith(COMMAND) or is_remote(place):
        return place
    status = Path(place).stat()
    return f"{Path(place).resolve()} {status.st_size} {status.st_mtime_ns}"


def _copy(place: str, target: IO[bytes], limit_bytes: int) -> None:
    written = 0
    try:
        with _opened(place) as source:
            while chunk := source.read(READ_BYTES):
                written += len(chunk)
                if limit_bytes and written > limit_bytes:
                    most = f"data.cache_bytes, {limit_bytes:,}"
                    raise ShardError(f"{_told(place)} unpacks to more than {most}: raise it.")
                target.write(chunk)
    except (ShardError, UserError):
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ShardError(f"{_told(place)} cannot be read ({error}).") from None
    if not written:
        raise ShardError(f"{_told(place)} holds nothing.")


@contextmanager
def _opened(place: str) -> Iterator[IO[bytes]]:
    """The bytes of the tar file."""
    if place.startswith(COMMAND):
        with gopen(place, "rb") as source:
            # A command says by its exit status, at the end, whether it has printed everything.
            yield _plain(source)
    elif is_remote(place):
        with fsspec.open(place, "rb") as source:
            yield _plain(source)
    else:
        with Path(place).open("rb") as source:
            yield _plain(source)


class _Peeked:
    """A stream whose first bytes have been read."""

    def __init__(self, first: bytes, rest: IO[bytes]):
        self._first, self._rest = first, rest

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._rest.read(size)
        taken = len(self._first) if size < 0 else size
        first, self._first = self._first[:taken], self._first[taken:]
        return first


def _plain(source: IO[bytes]) -> Any:
    peeked: Any = _Peeked(first := source.read(2), source)
    return gzip.GzipFile(fileobj=peeked, mode="rb") if first == b"\x1f\x8b" else peeked


def _told(place: str) -> str:
    return f"The output of {place}" if place.startswith(COMMAND) else shown(place)
