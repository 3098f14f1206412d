"""Everything that is wrong with shards, not only the first thing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datamodules.conversation import check_conversation
from datamodules.errors import BadSample, ShardError
from datamodules.files import file_sha256
from datamodules.images import MAX_PIXELS, decode_image
from datamodules.processes import run_tasks
from datamodules.remote import ShardCache, is_remote
from datamodules.shard_index import COLUMNS, INDEX_NAME, Shard, read_index, scan_shard
from datamodules.shards import ShardSet, open_anywhere

_MESSAGE_EVERY = 50


@dataclass(frozen=True)
class Problem:
    """`entry` is a sample's key or a member's name, "" where the whole shard or folder is meant."""

    shard: str
    entry: str
    what: str


@dataclass
class CheckReport:
    """What was looked at and what is wrong with it; `indexed`: whether there were checksums to compare with."""

    shards: int = 0
    samples: int = 0
    images: int = 0
    bytes: int = 0
    indexed: bool = True
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    path: Path
    shard: Shard | None  # as the index describes it
    fast: bool
    max_pixels: int


@dataclass(frozen=True)
class _Done:
    samples: int = 0
    images: int = 0
    bytes: int = 0


def check_shards(
    path: Path | str,
    *,
    fast: bool = False,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    cache: ShardCache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Compare a folder of shards, or one .tar file, with its index; read every member, decode every image.

    Args:
        path: also a URL of either, whose shards are fetched one after the other, and are not kept unless they were.
        fast: only compare checksums. Without an index the members are read all the same.
        progress: gets the bytes done and their number.
        cache: for shards that are far away.

    Raises:
        ShardError: there is no shard.
        UserError: a URL, and no cache.
    """
    report = CheckReport()
    if is_remote(path):
        found = [(shard.path, shard) for shard in open_anywhere(path, cache)]
    else:
        found = _find(Path(path), report)
    tasks = [_Task(file, shard, fast, max_pixels) for file, shard in found]
    total = sum(map(_size, tasks))
    for message in run_tasks(_check_shard, tasks, workers):
        if isinstance(message, Problem):
            report.problems.append(message)
        else:
            report.samples += message.samples
            report.images += message.images
            report.bytes += message.bytes
            progress(report.bytes, total)
    report.shards = len(tasks)
    report.problems.sort(key=lambda problem: (problem.shard, problem.entry, problem.what))
    return report


def _find(path: Path, report: CheckReport) -> list[tuple[Path, Shard | None]]:
    if not path.exists():
        raise ShardError(f"No shards at {path}: there is no such file or folder.")
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.tar")) if path.is_dir() else [path]
    report.indexed = (folder / INDEX_NAME).is_file()
    listed: dict[str, Shard] = {}
    if report.indexed:
        try:
            listed = {shard.path.name: shard for shard in read_index(folder)}
        except ShardError as error:
            report.problems.append(Problem("", INDEX_NAME, str(error)))
            report.indexed = False
    if report.indexed:
        strangers = [file.name for file in files if file.name not in listed]
        report.problems += [Problem(name, "", f"{INDEX_NAME} does not list it") for name in strangers]
    if path.is_dir():
        files = sorted({*files, *(shard.path for shard in listed.values())})
    if not files:
        raise ShardError(f"No .tar shard and no {INDEX_NAME} in {folder}.")
    return [(file, listed.get(file.name)) for file in files]


def _size(task: _Task) -> int:
    if task.shard is not None and task.shard.remote:
        return task.shard.bytes
    return task.path.stat().st_size if task.path.is_file() else 0


def _check_shard(task: _Task) -> Iterator[Problem | _Done]:
    if task.shard is None or not task.shard.remote:
        yield from _check_file(task)
        return
    kept = task.path.is_file()
    try:
        task.shard.open().close()
        yield from _check_file(task)
    except ShardError as error:
        yield Problem(task.path.name, "", str(error))
        yield _Done(bytes=task.shard.bytes)
    finally:
        if not kept:
            task.path.unlink(missing_ok=True)


def _check_file(task: _Task) -> Iterator[Problem | _Done]:
    name = task.path.name
    if not task.path.is_file():
        yield Problem(name, "", f"{INDEX_NAME} lists it, but it is not there")
        return
    size = task.path.stat().st_size
    same = True
    if task.shard is not None and size != task.shard.bytes:
        same = False
        yield Problem(name, "", f"it has {size:,} bytes, {INDEX_NAME} says {task.shard.bytes:,}")
    elif task.shard is not None and file_sha256(task.path) != task.shard.sha256:
        same = False
        yield Problem(name, "", f"its SHA-256 is not the one in {INDEX_NAME}")
    if task.fast and task.shard is not None:
        yield _Done(len(task.shard), int((task.shard.columns["image_size"] > 0).sum()), size)
        return
    found = None
    try:
        found = scan_shard(task.path)
    except ShardError as error:
        if error.members:
            yield from (Problem(name, member, reason) for member, reason in error.members)
        else:
            yield Problem(name, "", str(error))
    if found is not None and task.shard is not None:
        yield from _differences(name, task.shard, found, same)
    if (shard := task.shard if task.shard is not None else found) is not None:
        yield from _check_samples(shard, task.max_pixels)
    yield _Done(bytes=size)


def _differences(name: str, listed: Shard, found: Shard, same: bool) -> Iterator[Problem]:
    """Where the index says otherwise than the shard."""
    if len(listed) != len(found):
        yield Problem(name, "", f"it has {len(found):,} samples, {INDEX_NAME} says {len(listed):,}")
        return
    differs = np.zeros(len(found), dtype=bool)
    for column in COLUMNS:
        differs |= listed.columns[column] != found.columns[column]
    for row in np.flatnonzero(differs):
        what = "its bytes are not those that were indexed" if not same else f"{INDEX_NAME} describes it wrongly"
        yield Problem(name, str(listed.columns["key"][row]), what)


def _check_samples(shard: Shard, max_pixels: int) -> Iterator[Problem | _Done]:
    keys, counts = np.unique(shard.columns["key"], return_counts=True)
    yield from (Problem(shard.path.name, str(key), "the key comes more than once") for key in keys[counts > 1])
    samples = ShardSet([shard])
    read = images = 0
    for index in range(len(shard)):
        key = str(shard.columns["key"][index])
        read += 1
        try:
            sample = samples.read(index)
            if sample.image is not None:
                images += 1
                decode_image(sample.image, key=key, max_pixels=max_pixels)
            check_conversation(sample.record, has_image=sample.image is not None, key=key)
        except BadSample as bad:
            yield Problem(shard.path.name, key, bad.reason)
        except ShardError as error:
            yield Problem(shard.path.name, key, str(error))
        if read == _MESSAGE_EVERY:
            yield _Done(read, images)
            read = images = 0
    yield _Done(read, images)
