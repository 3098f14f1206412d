"""Shards that are far away: http(s) and the other protocols of fsspec (s3, gs, ...), through a bounded cache on disk.

A folder of shards is known by its `index.json`, which is fetched when a run starts; a shard is fetched whole when its
first sample is read, checked against the index's SHA-256, and kept in the cache as `<sha256>/<name>`. A hash cannot
leave a folder, nor can a name that the index accepts, so nothing far away decides where on this disk it is written.

Several processes share a cache. One of them fetches a shard while the others that need it wait; room is made by
removing those that have not been read for longest. A file that is open stays readable after it is removed.

Which shards are needed when is the plan's affair: with `data.block_shards` they are needed a few at a time.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit

from fsspec.core import url_to_fs

from ablate.core.errors import UserError
from ablate.core.files import WRITE_ERRORS
from ablate.core.locks import exclusive
from datamodules.errors import ShardError
from datamodules.shards.index import INDEX_NAME, READ_BYTES, Shard, parse_index
from datamodules.shards.paths import check_url, shown

log = logging.getLogger(__name__)

ATTEMPTS = 5
# Before the second attempt; doubled before each further one, and spread by half, so that ranks do not come all at once.
FIRST_WAIT_SECONDS = 0.5
MAX_INDEX_BYTES = 4 << 30
# A line on which nothing arrives for so long is broken.
SILENCE_SECONDS = 60
PART_NAME = ".part"
# Errors that a retry does not cure.
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclass(frozen=True)
class RemoteShard(Shard):
    """A shard that is fetched when it is needed; `path` is where it will be."""

    url: str
    cache: "ShardCache"

    remote = True

    @property
    def place(self) -> str:
        return shown(self.url)

    def open(self) -> BinaryIO:
        return self.cache.open(self)


class Use(NamedTuple):
    """A shard, and the first and last of the steps that need it."""

    first: int
    last: int
    shard: Shard


@dataclass(frozen=True)
class ShardCache:
    """Fetched shards on this disk.

    Attributes:
        folder: made when needed.
        limit_bytes: shards are removed, those not read for longest first, before there would be more; 0 = no limit.
        allow_pipe: whether commands (`pipe:`) may be run.
    """

    folder: Path
    limit_bytes: int = 0
    allow_pipe: bool = False

    def shards(self, urls: Sequence[str]) -> list[RemoteShard]:
        """The shards of folders with an `index.json`, and those that URLs ending in .tar name.

        Raises:
            ShardError: there is no such folder or shard, or its index cannot be used.
        """
        indexes: dict[str, list[RemoteShard]] = {}
        found: list[RemoteShard] = []
        for url in urls:
            _check_url(url)
            url = url.removesuffix(f"/{INDEX_NAME}").rstrip("/")
            check_url(url)
            folder, _, name = url.rpartition("/") if urlsplit(url).path.lower().endswith(".tar") else (url, "", "")
            if folder not in indexes:
                indexes[folder] = self._index(folder)
            shards = indexes[folder]
            if name:
                shards = [shard for shard in shards if name in (quote(shard.path.name), shard.path.name)]
                if not shards:
                    raise ShardError(f"{shown(url)} is not in the {INDEX_NAME} next to it.")
            found += shards
        if self.limit_bytes and (largest := max((shard.bytes for shard in found), default=0)) > self.limit_bytes:
            raise UserError(
                f"data.cache_bytes is {self.limit_bytes}, but a shard of {shown(urls[0])} has {largest}: raise it."
            )
        return found

    def open(self, shard: RemoteShard) -> BinaryIO:
        """The shard's file, fetched if need be.

        Raises:
            ShardError: it cannot be fetched, or what arrives is not what the index says.
            UserError: the disk is full.
        """
        while True:
            with suppress(FileNotFoundError):
                file = shard.path.open("rb")
                if os.fstat(file.fileno()).st_size == shard.bytes:
                    _touch(shard.path)
                    return file
                file.close()
            self.fetch(shard)

    def touch(self, shards: Iterable[Shard]) -> None:
        """Mark shards as needed, so that they are evicted last."""
        for shard in shards:
            _touch(shard.path)

    def _index(self, folder: str) -> list[RemoteShard]:
        url = f"{folder}/{INDEX_NAME}"
        try:
            data = _with_retries(url, lambda: _read_small(url))
        except ShardError as error:
            raise ShardError(
                f"{error} Remote shards are found by the {INDEX_NAME} next to them. If it is missing, make it where "
                "the shards are stored, with `ablate data show DIR`."
            ) from None
        try:
            index = json.loads(data)
            shards = parse_index(Path(), index)
            for shard in shards:
                if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256) or shard.bytes < 1:
                    raise ValueError(f"{shard.path.name}: neither SHA-256 nor size of a shard")
                if shard.path.name.startswith("."):
                    raise ValueError(f"{shard.path.name}: no name of a shard")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ShardError(f"{shown(url)} cannot be used ({error!r}). Make it again where the shards are.") from None
        return [
            RemoteShard(
                path=self.folder / shard.sha256 / shard.path.name,
                bytes=shard.bytes,
                sha256=shard.sha256,
                columns=shard.columns,
                unread=shard.unread,
                url=f"{folder}/{quote(shard.path.name) if folder.startswith('http') else shard.path.name}",
                cache=self,
            )
            for shard in shards
        ]

    def fetch(self, shard: RemoteShard, wanted: Callable[[], bool] = lambda: True) -> None:
        """Fetch a shard unless it is there.

        Args:
            wanted: asked when no other process is fetching it; with False it is not fetched after all.

        Raises:
            ShardError, UserError: as `open`.
        """
        place = shard.path.parent
        place.mkdir(parents=True, exist_ok=True)
        with exclusive(self._lock(shard.sha256)):
            with suppress(FileNotFoundError):
                if shard.path.stat().st_size == shard.bytes:
                    return  # another process was first
            if not wanted():
                return
            part = place / PART_NAME
            part.unlink(missing_ok=True)  # of a process that was killed: the lock is ours
            try:
                self._reserve(part, shard.bytes)
                _with_retries(shard.url, lambda: _download(shard, part))
                os.replace(part, shard.path)
                _touch(shard.path)
            except OSError as error:
                if error.errno in WRITE_ERRORS:
                    raise UserError(
                        f"Cannot keep {shown(shard.url)} in {self.folder}: {error.strerror}. Free some space, or set "
                        "data.cache_dir to another disk or data.cache_bytes lower."
                    ) from None
                raise
            finally:
                part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> None:
        """Make room, and take it: the part has its full size from the start, and is counted by other processes."""
        while True:
            with exclusive(self.folder / ".room.lock"):
                if not self.limit_bytes or self._make_room(size):
                    with part.open("wb") as file:
                        file.truncate(size)
                    return
            time.sleep(0.05)  # all room is taken by what other processes are fetching: they will be done

    def _make_room(self, size: int) -> bool:
        files = sorted(_kept(self.folder), key=lambda kept: kept[1])
        total = sum(taken for _, _, taken in files)
        for path, _, taken in files:
            if total + size <= self.limit_bytes:
                break
            if path.name == PART_NAME and not self._abandoned(path):
                continue
            with suppress(FileNotFoundError):  # a part that has its final name by now still takes its room
                path.unlink()
                total -= taken
        return total + size <= self.limit_bytes

    def _abandoned(self, part: Path) -> bool:
        """Whether the process that was fetching it is gone."""
        try:
            with exclusive(self._lock(part.parent.name), busy="being fetched"):
                return True
        except UserError:
            return False

    def _lock(self, name: str) -> Path:
        return self.folder / ".locks" / name


def check_locality(shards: Sequence[Shard], *, limit_bytes: int, shuffle: bool, block_shards: int) -> None:
    """Refuse an order that would fetch the same shards over and over.

    Raises:
        UserError: with a `block_shards` that fits.
    """
    sizes = [shard.bytes for shard in shards if shard.remote]
    if not shuffle or not limit_bytes or sum(sizes) <= limit_bytes:
        return
    most = limit_bytes // (2 * max(sizes))  # a batch may reach from one block into the next
    if 0 < block_shards <= most:
        return
    got = f"blocks of {block_shards} shards" if block_shards else "samples of all shards"
    fix = f"Set data.block_shards={most}, or raise data.cache_bytes." if most else "Raise data.cache_bytes."
    raise UserError(
        f"data.cache_bytes ({limit_bytes:,}) holds a part of the {sum(sizes):,} bytes of remote shards, and to shuffle "
        f"{got} would fetch them again and again. It has to hold two blocks. {fix}"
    )


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if "::" in url or parts.query or parts.fragment:
        raise UserError(
            f"{shown(url)} has a query, a fragment or a chain of file systems: give a plain URL of a folder of "
            "shards, such as https://host/folder or s3://bucket/folder."
        )


def _download(shard: RemoteShard, part: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with _opened(shard.url) as source, part.open("r+b") as file:
        while block := source.read(READ_BYTES):
            size += len(block)
            if size > shard.bytes:
                break
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if size != shard.bytes or digest.hexdigest() != shard.sha256:
        raise _Damaged(f"what arrives is not what {INDEX_NAME} says ({size} of {shard.bytes} bytes, or other ones)")


class _Damaged(Exception):
    """Arrived, but not as it was sent, or not what was asked for."""


def _read_small(url: str) -> bytes:
    with _opened(url) as source:
        data = source.read(MAX_INDEX_BYTES + 1)
    if len(data) > MAX_INDEX_BYTES:
        raise ShardError(f"{shown(url)} has more than {MAX_INDEX_BYTES} bytes.")
    return data


def _opened(url: str) -> Any:
    try:
        system, path = url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0].lower()
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'ablate[{extra}]'" if extra else "Choose http(s), s3 or gs, or install its fsspec package"
        raise UserError(f"No file system for {shown(url)} ({error}). {how}.") from None
    # Read once from start to end: without a block size, http asks once for all of it.
    return system.open(path, "rb", block_size=0) if "http" in _protocols(system) else system.open(path, "rb")


def _options(url: str) -> dict[str, Any]:
    """aiohttp gives a whole file five minutes; what matters is that something arrives."""
    if not url.lower().startswith("http"):
        return {}
    import aiohttp  # here: a second that local shards need not wait

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _with_retries(url: str, action: Callable[[], Any]) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except UserError:
            raise
        except _FINAL as error:
            raise ShardError(f"Cannot fetch {shown(url)}: {_reason(error)}.") from None
        except Exception as error:  # every file system has errors of its own for a line that breaks
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if attempt == ATTEMPTS:
                raise ShardError(f"Cannot fetch {shown(url)}, in {ATTEMPTS} attempts: {_reason(error)}.") from None
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            log.warning("%s: %s; trying again in %.1f s", shown(url), _reason(error), wait)
            time.sleep(wait)
    raise AssertionError("not reached")


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return re.sub(r"(://)[^/@\s]*@", r"\1", str(error)) or type(error).__name__


def _touch(path: Path) -> None:
    """Note the time of use, to the nanosecond: the file system's own clock ticks every few milliseconds, in which
    several shards may be used."""
    now = time.time_ns()
    with suppress(FileNotFoundError):  # another process may just have removed it
        os.utime(path, ns=(now, now))


def _kept(folder: Path) -> list[tuple[Path, int, int]]:
    """Every shard and every part of one: path, time of last use, bytes."""
    while True:
        found = {}  # by inode: a part may take its final name meanwhile, and be met twice
        with suppress(FileNotFoundError):  # ... or not at all: then look again
            for path in folder.glob("[0-9a-f]*/*"):
                status = path.stat()
                found[status.st_ino] = (path, status.st_mtime_ns, status.st_size)
            return list(found.values())


@contextmanager
def fetched_ahead(uses: Sequence[Use], ahead: int) -> Iterator[Callable[[int], None]]:
    """Fetch remote shards, in a thread, before they are read; yields a function to call with the number of steps done.

    Nothing is fetched ahead that the cache cannot hold beside the shards that a step still needs, and those are the
    last to make room. Nothing is fetched that no step needs any more: the thread may be late, and the reader have
    fetched the shard itself. A shard that cannot be fetched is left to its reader, which raises the error.

    Args:
        uses: in the order of their first steps; all far shards in one cache.
        ahead: shards to be fetched beyond the latest in use.
    """
    far: list[Any] = [use for use in uses if use.shard.remote]  # whose shards have a cache
    limit = far[0].shard.cache.limit_bytes if far else 0
    if sum(use.shard.bytes for use in far) <= limit:
        limit = 0  # all fit
    done, changed = 0, threading.Condition()
    stopped = threading.Event()

    def may_go(place: int, needed: list[Use]) -> bool:
        use = far[place]
        if stopped.is_set() or done > use.last:
            return True
        if place >= ahead and done < far[place - ahead].first:
            return False
        needed[:] = [use for use in needed if done <= use.last]
        return not limit or sum(use.shard.bytes for use in [*needed, use]) <= limit

    def fetch() -> None:
        needed: list[Use] = []  # of those before this place
        for place, use in enumerate(far):
            with changed:
                changed.wait_for(functools.partial(may_go, place, needed))
            if stopped.is_set():
                return
            try:
                use.shard.cache.touch(each.shard for each in needed)
                use.shard.cache.fetch(use.shard, lambda use=use: not stopped.is_set() and done <= use.last)
            except UserError:
                return
            if limit:
                needed.append(use)

    def tell(steps: int) -> None:
        nonlocal done
        with changed:
            done = steps
            changed.notify()

    if far:
        threading.Thread(target=fetch, name="fetch shards ahead", daemon=True).start()
    try:
        yield tell
    finally:
        stopped.set()
        tell(done)
