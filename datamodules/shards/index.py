"""What a shard holds and where, kept in `index.json`; made by reading the tar file once from start to end.

{"schema": 1, "samples": int, "made": {how, where `ablate data shard` did it},
 "shards": [{"name", "samples", "bytes", "sha256", "unread": {suffix: members}, <COLUMNS>: [one value per sample]}]}

`unread` is left out where every member is read.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np
from webdataset.tariterators import base_plus_ext

from ablate.core.files import atomic_file, file_sha256
from ablate.core.filetypes import type_of
from datamodules.errors import ShardError
from datamodules.images.decode import FORMATS, sha256
from datamodules.shards.annotations import captioned, is_caption
from datamodules.text.conversation import text_size

INDEX_NAME = "index.json"
SCHEMA = 1
TAR_BLOCK = 512
READ_BYTES = 1 << 20
# A record or an image beyond this is not one: no sample may ask for gigabytes of memory.
MAX_MEMBER_BYTES = 256 << 20
# Extended headers hold names.
MAX_HEADER_BYTES = 1 << 20
# Keys are kept in arrays of fixed width: one long name would cost its length for every sample.
MAX_NAME = 1024
# The members that are read.
READ_SUFFIXES = ("json", *FORMATS)
# Members that are not read are counted by suffix, but for hidden files (.DS_Store, macOS's ._x.jpg), and for suffixes
# beyond the first so many: file names with dates or numbers behind a dot are all different.
MAX_SUFFIXES = 50
HIDDEN, OTHERS = "(hidden)", "(others)"
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
    """One tar file as the index describes it. `columns` holds one array per name in `COLUMNS`.

    `unread`: members that are not read, by suffix ("" = none), `HIDDEN` or `OTHERS`.
    """

    path: Path
    bytes: int
    sha256: str
    columns: dict[str, np.ndarray]
    unread: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    remote = False  # no field: what is far away says otherwise (remote.py)

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.path.as_posix()

    def __len__(self) -> int:
        return len(self.columns["key"])

    def open(self) -> BinaryIO:
        """The tar file, for reading."""
        return self.path.open("rb")

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.path.name, "samples": len(self), "bytes": self.bytes, "sha256": self.sha256}
        if self.unread:
            head["unread"] = dict(self.unread)
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
        unread = entry.get("unread", {})
        if not isinstance(unread, dict) or not all(type(count) is int and count > 0 for count in unread.values()):
            raise ValueError(f"{name}: unread is {unread!r}, expected members by suffix")
        return cls(folder / name, int(entry["bytes"]), str(entry["sha256"]), columns, unread=unread)


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
    unread: Counter[str] = Counter()
    try:
        with path.open("rb") as file:
            for key, members in _grouped(_members(path, file), unread):
                for name, value in _describe(path, file, key, members, unread).items():
                    columns[name].append(value)
    except OSError as error:
        raise ShardError(f"Cannot read the shard {path}: {error.strerror or error}.") from None
    unread = +unread  # without those of which none is left
    return Shard(path, path.stat().st_size, file_sha256(path), as_arrays(columns), unread=dict(sorted(unread.items())))


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo | None]:
    """The plain files of a tar file, in order; None between two archives in one file (`cat a.tar b.tar`).

    A shard with a member that is refused is refused as a whole, at its end, when all of them are counted: whoever put
    one in meant harm or made a mistake, and neither speaks for the rest.

    `tarfile` ends at an end marker and takes a damaged header in the middle for one; its `ignore_zeros` reads on behind
    both. So the end is checked here: at least one block of zeros must follow the last member, and behind the zeros
    comes the end of the file, or another archive. Its header reader was not written for files that mean harm; what
    those make it run into is damage to us, and members must follow one another, or it could read in circles.
    """
    last, end = "its start", 0
    refused: list[tuple[str, str]] = []
    global_headers: dict[str, str] = {}  # of pax: they hold for all that follows, in `tarfile` too
    try:
        while True:
            file.seek(end)
            source: Any = _Headers(file)
            with tarfile.open(fileobj=source, mode="r:", encoding="utf-8", pax_headers=global_headers) as tar:
                for member in tar:
                    _check_extent(member, end, tar.offset)
                    last, end = f"entry {_quoted(member.name)}", tar.offset
                    if reason := refusal(member):
                        refused.append((member.name, reason))
                    elif not member.isdir():
                        yield member
                    tar.members = []  # type: ignore[attr-defined]  # do not keep a million of them
                global_headers = dict(tar.pax_headers)
            file.seek(end)
            block = file.read(TAR_BLOCK)
            if len(block) < TAR_BLOCK or any(block):
                raise tarfile.ReadError(f"no end marker and no header at byte {end:,}, but {len(block)} bytes")
            following = _behind_zeros(file, end)
            if following is None:
                break
            end = following
            yield None
    except ShardError:
        raise
    except Exception as error:
        found = type_of(path) if end == 0 else None
        if found and found.kind != "tar":
            raise ShardError(f"Shard {path} is {found.describe(path, 'give a .tar file.')}") from None
        raise ShardError(f"Shard {path} is truncated or corrupt after {last}: {error}.") from None
    if refused:
        raise ShardError(f"Shard {path} is refused, {_told(refused)}.", refused)


def _check_extent(member: tarfile.TarInfo, start: int, end: int) -> None:
    """A member occupies the bytes from `start`, where the previous one ends, to `end`, where the next one begins."""
    if member.offset < start or member.size < 0:
        raise tarfile.ReadError(f"entry {_quoted(member.name)} overlaps the one before it")
    # A global header may give a size that the header does not have.
    blocks = -(-member.size // TAR_BLOCK)
    if member.isreg() and not member.issparse() and member.offset_data + blocks * TAR_BLOCK != end:
        raise tarfile.ReadError(f"entry {_quoted(member.name)} has two sizes")


def _behind_zeros(file: IO[bytes], start: int) -> int | None:
    """The offset of the next block that is not all zeros; None if there is none up to the end of the file."""
    file.seek(start)
    while chunk := file.read(READ_BYTES):
        if rest := len(chunk.lstrip(b"\0")):
            return (start + len(chunk) - rest) // TAR_BLOCK * TAR_BLOCK
        start += len(chunk)
    return None


def _quoted(name: str) -> str:
    """For messages: names may hold bytes that are no text."""
    return f'"{name.encode(errors="backslashreplace").decode()}"'


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
    if len(member.name) > MAX_NAME:
        return f"has a name of {len(member.name):,} characters, more than {MAX_NAME:,}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is a link, device or other special file"
    if name.suffix.lower() in PICKLES:
        return "may be a pickle, which is a program and not data"
    if member.size > MAX_MEMBER_BYTES:
        return f"has {member.size:,} bytes, more than a record or an image may have ({MAX_MEMBER_BYTES:,})"
    return ""


def _told(refused: list[tuple[str, str]], limit: int = 3) -> str:
    count = "1 member is" if len(refused) == 1 else f"{len(refused):,} members are"
    named = "; ".join(f"entry {name[:200]!r} {reason}" for name, reason in refused[:limit])
    return f"{count} no data: {named}{f'; and {len(refused) - limit:,} more' if len(refused) > limit else ''}"


def _grouped(
    members: Iterable[tarfile.TarInfo | None], unread: Counter[str]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members with one key, as {suffix: member} (WebDataset's grouping); counts those that are not read.

    A sample never reaches from one archive into the next (None).
    """
    key: str | None = None
    group: dict[str, tarfile.TarInfo] = {}
    prefix: str | None
    for member in members:
        if member is None:
            prefix, suffix = None, ""
        else:
            name = PurePosixPath(member.name).name
            if name.startswith("__"):  # WebDataset's metadata
                continue
            prefix, extension = base_plus_ext(member.name)
            suffix = (extension or "").lower()
            if name.startswith("."):
                _count(unread, HIDDEN)
                continue
            if suffix not in READ_SUFFIXES:
                _count(unread, suffix)
            if prefix is None:
                continue
        if prefix != key or suffix in group:
            if key is not None and group:
                yield key, group
            key, group = prefix, {}
        if member is not None:
            group[suffix] = member
    if key is not None and group:
        yield key, group


def _count(unread: Counter[str], suffix: str) -> None:
    unread[suffix if suffix in unread or len(unread) < MAX_SUFFIXES else OTHERS] += 1


def describe_unread(unread: Mapping[str, int]) -> str:
    """`.txt (12), no suffix (1), hidden files (3)`, the most frequent first."""
    words = {"": "no suffix", HIDDEN: "hidden files", OTHERS: "other suffixes"}
    counts = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{words.get(suffix, f'.{suffix}')} ({count:,})" for suffix, count in counts)


def unread_problem(unread: Mapping[str, int], samples: int, max_share: float, ignored: Iterable[str] = ()) -> str:
    """What is wrong where members that are not read are more than a share of the samples; "" where nothing is.

    Args:
        unread: as `Shard.unread`. Hidden files do not count.
        ignored: suffixes that do not count either, with or without their dot; "*" = all.
    """
    ignored = {suffix.lower().lstrip(".") for suffix in ignored}
    left = {suffix: count for suffix, count in unread.items() if suffix != HIDDEN and suffix not in ignored}
    total = sum(left.values())
    if "*" in ignored or total <= max_share * samples:
        return ""
    return (
        f"{total:,} members of {samples:,} samples are not read: {describe_unread(left)}. Read are "
        f"{', '.join(f'.{suffix}' for suffix in READ_SUFFIXES)}, right behind the key, which ends at the first dot of "
        "the file's name. Rename what training needs; name the suffixes that it does not need in data.ignore_suffixes"
    )


def _describe(
    path: Path, file: IO[bytes], key: str, members: Mapping[str, tarfile.TarInfo], unread: Counter[str]
) -> dict[str, Any]:
    """One row of the index. A sample that lacks its record is kept: reading it is what reports it."""
    record = members.get("json")
    images = [member for suffix, member in members.items() if suffix in FORMATS]
    if len(images) > 1:
        raise ShardError(f'Shard {path}, entry "{key}": {len(images)} images in one sample, expected one at most.')
    image = images[0] if images else None
    parsed = json_or_none(_member_data(file, record)) if record else None
    chars, turns = text_size(captioned(parsed, image is not None)) if record else (0, 0)
    if "txt" in members and is_caption(parsed):  # img2dataset's: the record has the caption too
        unread["txt"] -= 1
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
    """Parsed JSON, or None if it is not valid JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def as_arrays(columns: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Arrays, not lists of objects: worker processes would copy those page by page as their counts are touched."""
    return {name: np.array(columns[name], dtype=np.int64 if kind is int else np.str_) for name, kind in COLUMNS.items()}
