"""Everything that is wrong with shards, not only the first thing."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ablate.core.files import file_sha256
from ablate.core.processes import run_tasks
from datamodules.config import DataConfig
from datamodules.errors import BadSample, ShardError
from datamodules.images.decode import MAX_PIXELS, check_image
from datamodules.shards.index import COLUMNS, INDEX_NAME, Shard, read_index, scan_shard, unread_problem
from datamodules.shards.paths import check_is_tar, expand, is_remote, nothing_in, tars_of
from datamodules.shards.reader import ShardSet, open_anywhere, plain_places
from datamodules.shards.remote import ShardCache
from datamodules.text.conversation import check_conversation

_MESSAGE_EVERY = 50


@dataclass(frozen=True)
class Problem:
    """`entry` is a sample's key or a member's name, "" where the whole shard or folder is meant."""

    shard: str
    entry: str
    what: str


@dataclass
class CheckReport:
    """What was looked at and what is wrong with it; `indexed`: whether there were checksums to compare with.

    `unread`: members that are not read, by suffix, as `Shard.unread`.
    """

    shards: int = 0
    samples: int = 0
    images: int = 0
    bytes: int = 0
    unread: dict[str, int] = field(default_factory=dict)
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
    unread: Mapping[str, int] = field(default_factory=dict)


def check_shards(
    *paths: Path | str,
    fast: bool = False,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    cache: ShardCache | None = None,
    ignore_suffixes: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Compare folders of shards, or .tar files, with their index; read every member, decode every image.

    Args:
        paths: also patterns, and URLs, whose shards are fetched one after the other, and are not kept unless they were.
        fast: only compare checksums. Without an index the members are read all the same.
        ignore_suffixes: of members that training need not read, as `data.ignore_suffixes`.
        progress: gets the bytes done and their number.
        cache: for shards that are far away.

    Raises:
        ShardError: there is no shard.
        UserError: a URL, and no cache.
    """
    report = CheckReport()
    found: list[tuple[Path, Shard | None]] = []
    for path in paths:
        if is_remote(path):
            found += [(shard.path, shard) for shard in open_anywhere(path, cache)]
        else:
            found += _find([place for each in expand(path) for place in plain_places(each, cache)], report)
    tasks = [_Task(file, shard, fast, max_pixels) for file, shard in found]
    total = sum(map(_size, tasks))
    for message in run_tasks(_check_shard, tasks, workers):
        if isinstance(message, Problem):
            report.problems.append(message)
        else:
            report.samples += message.samples
            report.images += message.images
            report.bytes += message.bytes
            report.unread = dict(Counter(report.unread) + Counter(message.unread))
            progress(report.bytes, total)
    report.shards = len(tasks)
    if problem := unread_problem(report.unread, report.samples, DataConfig().max_bad_share, ignore_suffixes):
        report.problems.append(Problem("", "", f"{problem}."))
    report.problems.sort(key=lambda problem: (problem.shard, problem.entry, problem.what))
    return report


def _find(places: Sequence[Path], report: CheckReport) -> list[tuple[Path, Shard | None]]:
    """The shards of local folders and files, each as its index describes it."""
    indexes: dict[Path, dict[str, Shard] | None] = {}
    found: list[tuple[Path, Shard | None]] = []
    for place in places:
        if place.name == INDEX_NAME and not place.is_dir():
            place = place.parent
        folder = place if place.is_dir() else place.parent
        if folder not in indexes:
            indexes[folder] = _listed(folder, report)
        indexed = indexes[folder]
        listed = indexed or {}
        if place.is_dir():
            files = sorted({*tars_of(folder), *(shard.path for shard in listed.values())})
            if not files:
                raise nothing_in(folder)
        else:
            files = [place]
            if place.name not in listed and place.is_file():
                check_is_tar(place)
        if indexed is not None:
            unknown = [file.name for file in files if file.name not in listed]
            report.problems += [Problem(name, "", f"{INDEX_NAME} does not list it") for name in unknown]
        found += [(file, listed.get(file.name)) for file in files]
    return found


def _listed(folder: Path, report: CheckReport) -> dict[str, Shard] | None:
    """The index, or None if there is no usable one."""
    if not (folder / INDEX_NAME).is_file():
        report.indexed = False
        return None
    try:
        return {shard.path.name: shard for shard in read_index(folder)}
    except ShardError as error:
        report.problems.append(Problem("", INDEX_NAME, str(error)))
        report.indexed = False
        return None


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
        images = int((task.shard.columns["image_size"] > 0).sum())
        yield _Done(len(task.shard), images, size, task.shard.unread)
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
    yield _Done(bytes=size, unread=found.unread if found is not None else {})


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
                check_image(sample.image, key=key, max_pixels=max_pixels, decode=True)
            check_conversation(sample.record, has_image=sample.image is not None, key=key)
        except BadSample as bad:
            yield Problem(shard.path.name, key, bad.reason)
        except ShardError as error:
            yield Problem(shard.path.name, key, str(error))
        if read == _MESSAGE_EVERY:
            yield _Done(read, images)
            read = images = 0
    yield _Done(read, images)
