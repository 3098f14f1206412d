"""One shard, written once from start to end: what the index says of it is noted on the way, nothing is read again."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ablate.core.files import atomic_file
from datamodules.images.decode import sha256
from datamodules.shards.index import COLUMNS, Shard, as_arrays
from datamodules.text.conversation import text_size


class ShardWriter:
    """Adds samples to a shard; made by `new_shard`.

    Attributes:
        size: bytes so far.
        shard: what the index says of it, once it is complete.
    """

    shard: Shard

    def __init__(self, file: IO[bytes]):
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._columns: dict[str, list] = {name: [] for name in COLUMNS}

    def __len__(self) -> int:
        return len(self._columns["key"])

    def add(self, key: str, record: Mapping[str, Any], image: bytes | None, suffix: str = "") -> None:
        """Write one sample. `suffix`: the image's, one of `images.FORMATS`."""
        image_offset = self._add(f"{key}.{suffix}", image) if image is not None else 0
        data = _record_bytes(record)
        record_offset = self._add(f"{key}.json", data)
        chars, turns = text_size(record)
        row = {
            "key": key,
            "record_offset": record_offset,
            "record_size": len(data),
            "image_offset": image_offset,
            "image_size": len(image or b""),
            "image_sha256": sha256(image) if image is not None else "",
            "chars": chars,
            "turns": turns,
        }
        for name, value in row.items():
            self._columns[name].append(value)

    def finish(self, path: Path) -> None:
        """The end marker: two empty blocks, and more up to a whole record, as every tar writer does it."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self.size))
        self.shard = Shard(path, self.size, self._digest.hexdigest(), as_arrays(self._columns))

    def _add(self, name: str, data: bytes) -> int:
        """Write a member; returns where its data starts. (`TarFile.addfile` would copy it in pieces of 16 kB.)"""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        start = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return start

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)


@contextmanager
def new_shard(path: Path) -> Iterator[ShardWriter]:
    """A shard that is there in full when the block ends, or not at all. The same samples give the same bytes.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_file(path) as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish(path)


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but an escape in JSON
        return json.dumps(record).encode()
