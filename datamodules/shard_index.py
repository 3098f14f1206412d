"""What a shard holds and where, kept in `index.json`; made by reading the tar file once from start to end.

{"schema": 1, "samples": int, "made": {how, where `ablate data shard` did it},
 "shards": [{"name", "samples", "bytes", "sha256", <COLUMNS>: [one value per sample]}]}
"""

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from webdataset.tariterators import base_plus_ext

from datamodules.conversation import text_size
from datamodules.errors import ShardError
from datamodules.files import atomic_file, file_sha256
from datamodules.images import FORMATS, sha256

INDEX_NAME = "index.json"
SCHEMA = 1
TAR_BLOCK = 512
READ_BYTES = 1 << 20
# A record or an image beyond this is not one: no sample may ask for gigabytes of memory.
MAX_MEMBER_BYTES = 256 << 20
# Extended headers hold names.
MAX_HEADER_BYTES = 1 << 20
# What WebDataset, torch, joblib and others read by unpickling, which runs it. Nothing here ever does.
PICKLES = {".pyd", ".pickle", ".pkl", ".pth", ".pt", ".ckpt", ".joblib", ".dill"}

# What the index keeps of each sample. Sizes in bytes, offsets from the start of the shard; size 0 = has none.
COLUMNS: dict[str, type] = {
    "key": str,
    "record_offset": int,
    "record_size": int,
    "image_offset": int,
    "image_size": int,
    "image_sha256": str,  # "" = no image
    "chars": int,  # characters of all turns
    "turns": int,
}


@dataclass(frozen=True)
class Shard:
    """One tar file as the index describes it. `columns` holds one array per name in `COLUMNS`."""

    path: Path
    bytes: int
    sha256: str
    columns: dict[str, np.ndarray]

    remote = False  # no field: what is far away says otherwise (remote.py)

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.path.as_posix()

    def __len__(self) -> int:
        return len(self.columns["key"])

    def open(self) -> IO[bytes]:
        """The tar file, for reading."""
        return self.path.open("rb")

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.path.name, "samples": len(self), "bytes": self.bytes, "sha256": self.sha256}
        return head | {name: values.tolist() for name, values in self.columns.items()}

    @classmethod
    def from_json(cls, folder: Path, entry: Mapping[str, Any]) -> "Shard":
        name = entry["name"]
        if name != PurePosixPath(name).name or name in ("", ".", ".."):
            raise ValueError(f"shard name {name!r} leaves the folder")
        columns = as_arrays({column: entry[column] for column in COLUMNS})
        if any(len(values) != entry["samples"] for values in columns.values()):
            raise ValueError(f"{name}: its columns do not have {entry['samples']} entries each")
        for member in ("record", "image"):
            offset, size = columns[f"{member}_offset"], columns[f"{member}_size"]
            if ((offset < 0) | (size < 0) | (size > MAX_MEMBER_BYTES) | (offset > entry["bytes"] - size)).any():
                raise ValueError(f"{name}: a {member} outside the shard, or of more than {MAX_MEMBER_BYTES} bytes")
        return cls(folder / name, int(entry["bytes"]), str(entry["sha256"]), columns)


def read_index(folder: Path) -> list[Shard]:
    """The shards that `index.json` lists. Whether the files are there is not looked at.

    Raises:
        ShardError: it is not such an index.
    """
    path = folder / INDEX_NAME
    try:
        return parse_index(folder, json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} cannot be used ({error!r}). Delete it, and it is made again from the shards."
        ) from None


def parse_index(folder: Path, index: Mapping[str, Any]) -> list[Shard]:
    """The shards of a parsed `index.json`.

    Raises:
        ValueError, KeyError, TypeError: it is not such an index.
    """
    if index["schema"] != SCHEMA:
        raise ValueError(f"schema {index['schema']!r}, expected {SCHEMA}")
    return [Shard.from_json(folder, entry) for entry in index["shards"]]


def write_index(folder: Path, shards: list[Shard], made: Mapping[str, Any] | None = None) -> None:
    """Write `index.json`, all at once or not at all. `made` says how the shards were made, where that is known."""
    head: dict[str, Any] = {"schema": SCHEMA, "samples": sum(map(len, shards))}
    if made is not None:
        head["made"] = made
    with atomic_file(folder / INDEX_NAME) as file:
        file.write(_compact(head)[:-1] + b',"shards":[')
        for number, shard in enumerate(shards):  # one at a time: a million samples are a gigabyte of JSON values
            file.write(b"," * bool(number) + _compact(shard.to_json()))
        file.write(b"]}")


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def scan_shard(path: Path) -> Shard:
    """Describe a shard by reading it from start to end.

    Raises:
        ShardError: it is truncated, damaged or compressed, or holds a member that is not a plain file inside it; the
            message names the entry.
    """
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    try:
        with path.open("rb") as file:
            for key, members in _grouped(_members(path, file)):
                for name, value in _describe(path, file, key, members).items():
                    columns[name].append(value)
    except OSError as error:
        raise ShardError(f"Cannot read the shard {path}: {error.strerror or error}.") from None
    return Shard(path, path.stat().st_size, file_sha256(path), as_arrays(columns))


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar file, in order.

    A shard with a member that is refused is refused as a whole, at its end, when all of them are counted: whoever put
    one in meant harm or made a mistake, and neither speaks for the rest.

    `tarfile` takes a damaged header in the middle for the end of the archive, so the end is checked here: only zeros,
    at least one block of them, may follow the last member. Its header reader was not written for files that mean harm;
    what those make it run into is damage to us, and members must follow one another, or it could read in circles.
    """
    last, end = "its start", 0
    refused: list[tuple[str, str]] = []
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for member in tar:
                if member.offset < end or member.size < 0:
                    raise tarfile.ReadError(f"entry {member.name!r} overlaps the one before it")
                last = f'entry "{member.name}"'
                end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                if reason := refusal(member):
                    refused.append((member.name, reason))
                elif not member.isdir():
                    yield member
                tar.members = []  # do not keep a million of them
    except ShardError:
        raise
    except Exception as error:
        hint = " (a compressed shard? Decompress it: samples are read by offset)" if end == 0 else ""
        raise ShardError(f"Shard {path} is truncated or corrupt after {last}: {error}{hint}.") from None
    if refused:
        raise ShardError(f"Shard {path} is refused, {_told(refused)}.", refused)
    file.seek(end)
    rest = file.read(TAR_BLOCK)
    if len(rest) < TAR_BLOCK or any(rest):
        raise ShardError(f"Shard {path} is truncated or corrupt after {last}: no end marker, but {len(rest)} bytes.")


class _Headers:
    """The file as `tarfile` sees it. It reads headers only, but as many bytes of one as the header itself asks for."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header that asks for {size} bytes")
        return self._file.read(size)


def refusal(member: tarfile.TarInfo) -> str:
    """Why a shard cannot have this member, "" if it can. Members are judged by their headers and never opened."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or not member.name.isprintable():
        return "is not a plain relative name"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is a link, device or other special file"
    if name.suffix.lower() in PICKLES:
        return "may be a pickle, which is a program and not data"
    if member.size > MAX_MEMBER_BYTES:
        return f"has {member.size:,} bytes, more than a record or an image may have ({MAX_MEMBER_BYTES:,})"
    return ""


def _told(refused: list[tuple[str, str]], limit: int = 3) -> str:
    count = "1 member is" if len(refused) == 1 else f"{len(refused):,} members are"
    named = "; ".join(f"entry {name!r} {reason}" for name, reason in refused[:limit])
    return f"{count} no data: {named}{f'; and {len(refused) - limit:,} more' if len(refused) > limit else ''}"


def _grouped(members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members with one key, as {suffix: member} (WebDataset's grouping)."""
    key, group = None, {}
    for member in members:
        prefix, suffix = base_plus_ext(member.name)
        if prefix is None or PurePosixPath(prefix).name.startswith("__"):  # no suffix, or WebDataset's metadata
            continue
        suffix = suffix.lower()
        if prefix != key or suffix in group:
            if group:
                yield key, group
            key, group = prefix, {}
        group[suffix] = member
    if group:
        yield key, group


def _describe(path: Path, file: IO[bytes], key: str, members: Mapping[str, tarfile.TarInfo]) -> dict[str, Any]:
    """One row of the index. A sample that lacks its record is kept: reading it is what reports it."""
    record = members.get("json")
    images = [member for suffix, member in members.items() if suffix in FORMATS]
    if len(images) > 1:
        raise ShardError(f'Shard {path}, entry "{key}": {len(images)} images in one sample, expected one at most.')
    image = images[0] if images else None
    chars, turns = text_size(json_or_none(_member_data(file, record))) if record else (0, 0)
    return {
        "key": key,
        "record_offset": record.offset_data if record else 0,
        "record_size": record.size if record else 0,
        "image_offset": image.offset_data if image else 0,
        "image_size": image.size if image else 0,
        "image_sha256": sha256(_member_data(file, image)) if image else "",
        "chars": chars,
        "turns": turns,
    }


def _member_data(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def json_or_none(data: bytes) -> Any:
    """Parsed JSON, None for what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def as_arrays(columns: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Arrays, not lists of objects: worker processes would copy those page by page as their counts are touched."""
    return {name: np.array(columns[name], dtype=np.int64 if kind is int else np.str_) for name, kind in COLUMNS.items()}
