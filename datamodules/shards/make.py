"""From LLaVA's annotation files and a folder of images to shards: in several processes, over any number of attempts.

First the annotations are read once, from start to end, one entry in memory at a time: that finds missing images and
repeated entries before any work, and decides which entries make which shard. Then processes write one shard after the
other, reading their entries at known offsets of the annotation files.

    <out>.partial/                everything, until the last shard is complete
      train-00000.tar ...         finished shards: a shard has its name only once it is on disk in full
      .work/plan.json             what decides the bytes; another attempt must agree
      .work/planned.jsonl         what the reading of the annotations had to report
      .work/train-00000.json ...  what a finished shard's index entry and reports are; written after the shard
    <out>/                        the shards, index.json, report.jsonl

What a shard holds depends on the annotations, the images and the settings alone: not on the number of processes, on the
attempts it took or on the time. A sample's key is the number of its entry, counted over all annotation files from 0.

**The report** has one line for each entry that is not as expected: {"kind", "entry", "annotations", "id", "image",
"reason", "kept"}; `KINDS` lists the kinds. What is not kept is in no shard.
"""

import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL

from ablate.core.errors import UserError
from ablate.core.files import atomic_file, clear_leftovers, read_json
from ablate.core.locks import exclusive
from ablate.core.processes import run_tasks
from datamodules.errors import BadSample
from datamodules.images.decode import FORMATS, Resize, check_image, is_kept, to_png
from datamodules.shards.annotations import Entry, one_image, read_entries
from datamodules.shards.index import INDEX_NAME, MAX_MEMBER_BYTES, Shard, write_index
from datamodules.shards.writer import new_shard
from datamodules.text.conversation import check_conversation

REPORT_NAME = "report.jsonl"
KINDS = {
    "missing_image": "the image is not there",
    "refused_image": "the image's path leaves the folder, or is no path",
    "unreadable_image": "the image cannot be decoded, or is in no format that is taken",
    "converted_image": "the image is in a format that training does not read: stored as PNG",
    "bad_conversation": "the turns are not a conversation that training can use",
    "bad_entry": "the entry is not a JSON object",
    "repeated_entry": "the very same entry came before",
    "repeated_id": "another entry with this id came before",
}
# Samples between two messages of a process, and entries between two of the reading of the annotations.
_MESSAGE_EVERY, _SCAN_EVERY = 50, 5000
_ENTRY = np.dtype([("number", np.int64), ("file", np.int32), ("offset", np.int64), ("bytes", np.int64)])


@dataclass(frozen=True)
class ShardSettings:
    """What decides the shards.

    Attributes:
        annotations: JSON arrays or JSON Lines of LLaVA records; their entries come in this order.
        images: the folder that the records' image paths start from.
        samples_per_shard, max_shard_bytes: a shard is closed at whichever comes first. The bytes are those of the
            original images and texts, also where `resize` makes them fewer.
        resize: None keeps every image bit for bit.
        convert_gif: store the first frame of GIFs as PNG; without, they are reported and left out. Formats are known
            by content: JPEG (several pictures in one file too, MPO), PNG and WebP are kept; `images.CONVERTED` are
            stored as PNG and reported; all others are left out.
        decode: decode the pixels of every image, not only read its header and look for its end.
        follow_links: allow images that symbolic links bring in from outside `images`.
        drop_repeated: leave out entries that are the same as an earlier one to the byte. Entries that share an id only
            are different conversations (LLaVA's mixes have many) and always stay.
    """

    annotations: tuple[Path, ...]
    images: Path
    prefix: str = "train"
    samples_per_shard: int = 1000
    max_shard_bytes: int = 1 << 30
    resize: Resize | None = None
    convert_gif: bool = False
    decode: bool = False
    follow_links: bool = False
    drop_repeated: bool = False

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "max_shard_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def to_json(self) -> dict[str, Any]:
        """Without the folders: the same data elsewhere gives the same bytes."""
        values = asdict(self) | {"annotations": [path.name for path in self.annotations]}
        del values["images"]
        if self.resize or self.convert_gif:
            values["pillow"] = PIL.__version__  # another version may encode otherwise
        return values


@dataclass
class Made:
    """What `make_shards` did.

    Attributes:
        shards, samples, bytes: what there is now.
        found: shards that an earlier attempt had finished.
        counts: lines in the report, by kind.
        dropped: entries that are in no shard.
    """

    folder: Path
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    found: int = 0
    entries: int = 0
    dropped: int = 0
    text_only: int = 0
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Progress:
    """`done` of `total`: bytes of the annotations while phase is "read", samples while it is "write"."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class _Plan:
    """Which entries make which shard: `entries[bounds[i]:bounds[i + 1]]`, a row of `_ENTRY` each."""

    entries: np.ndarray
    bounds: list[int]
    read: int
    text_only: int
    digest: str


@dataclass(frozen=True)
class _Task:
    settings: ShardSettings
    folder: Path
    number: int
    entries: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.settings.prefix}-{self.number:05d}"

    @property
    def shard(self) -> Path:
        return self.folder / f"{self.name}.tar"

    @property
    def done(self) -> Path:
        return self.folder / ".work" / f"{self.name}.json"


class _Dropped(Exception):
    """A verdict: the entry goes into no shard. `kind` is one of `KINDS`."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def make_shards(
    settings: ShardSettings, out: Path | str, *, workers: int = 1, progress: Callable[[Progress], None] = lambda _: None
) -> Made:
    """Make the shards in `out`, or what is still missing of them. Another process doing the same is waited for.

    Raises:
        UserError: `out` holds something else, the settings or the data differ from those of the earlier attempt, the
            annotations cannot be read, no image is where it should be, or the disk is full.
    """
    out = Path(out)
    for path in settings.annotations:
        if not path.is_file():
            what = "It is a folder: give the file." if path.is_dir() else "The file does not exist."
            raise UserError(f"No annotations at {path}. {what}")
    if not settings.images.is_dir():
        raise UserError(f"{settings.images} is not a folder: give the one that the records' image paths start from.")
    _tidy(out)
    partial = out.with_name(f"{out.name}.partial")
    work = partial / ".work"
    if out.exists() and any(out.iterdir()):
        return _finished_already(settings, out)
    with exclusive(work / "lock"):
        if (out / INDEX_NAME).is_file():  # made by the process that had the lock
            return _finished_already(settings, out)
        clear_leftovers(partial)
        plan = _make_plan(settings, work, progress)
        _agree(work / "plan.json", {"digest": plan.digest, "settings": settings.to_json()}, partial)
        tasks = [
            _Task(settings, partial, number, plan.entries[start:end])
            for number, (start, end) in enumerate(zip(plan.bounds, plan.bounds[1:], strict=False))
        ]
        todo = [task for task in tasks if _read_done(task) is None]
        done = len(plan.entries) - sum(len(task.entries) for task in todo)
        progress(Progress("write", done, len(plan.entries)))
        for count in run_tasks(_write_shard, todo, workers):
            done += count
            progress(Progress("write", done, len(plan.entries)))
        made = _finish(settings, plan, tasks, out)
    made.found = len(tasks) - len(todo)
    return made


# The plan


def _make_plan(settings: ShardSettings, work: Path, progress: Callable[[Progress], None]) -> _Plan:
    """Read the annotations. What there is to report goes to `planned.jsonl`, as it may be as long as they are."""
    total = sum(path.stat().st_size for path in settings.annotations)
    images = _ImageFolder(settings.images, follow_links=settings.follow_links)
    rows, sizes = [], []
    read = text_only = missing = with_image = 0
    digest = hashlib.sha256(json.dumps(settings.to_json(), sort_keys=True).encode())
    repeats = _Repeats()
    first_missing = ""
    with atomic_file(work / "planned.jsonl") as report:
        for file, number, entry, before in _numbered(settings.annotations):
            if number % _SCAN_EVERY == 0:
                progress(Progress("read", before + entry.offset, total))
            read += 1
            value = one_image(entry.value) if isinstance(entry.value, dict) else {}
            image = value.get("image")
            with_image += bool(image)
            kind = repeats.kind(value.get("id"), entry.raw, number)
            size, dropped = 0, None
            try:
                if not isinstance(entry.value, dict):
                    raise _Dropped("bad_entry", f"it is not an object but {str(entry.value)[:40]!r}")
                if kind == "repeated_entry" and settings.drop_repeated:
                    raise _Dropped(kind, repeats.reason)
                if image:
                    size = images.size(image)
            except _Dropped as error:
                dropped = error
                missing += error.kind == "missing_image"
                first_missing = first_missing or str(error) if error.kind == "missing_image" else first_missing
                report.write(_line(error.kind, number, settings.annotations[file], value, str(error), kept=False))
            if dropped is None and kind:
                report.write(_line(kind, number, settings.annotations[file], value, repeats.reason, kept=True))
            if dropped is None:
                text_only += not image
                rows.append((number, file, entry.offset, len(entry.raw)))
                sizes.append(size + len(entry.raw))
            digest.update(f"{dropped.kind if dropped else size}\n".encode() + entry.raw)
    progress(Progress("read", total, total))
    if missing and missing == with_image:
        raise UserError(
            f"None of the {missing:,} images is under {settings.images}. The first: {first_missing}. "
            "Give with --images the folder that these paths start from."
        )
    if not rows:
        raise UserError(f"No usable entry in {', '.join(map(str, settings.annotations))} ({read:,} read).")
    bounds = _bounds(sizes, settings)
    return _Plan(np.array(rows, dtype=_ENTRY), bounds, read, text_only, digest.hexdigest())


def _numbered(paths: tuple[Path, ...]) -> Iterator[tuple[int, int, Entry, int]]:
    """(file, number of the entry over all files, entry, bytes of the files before)."""
    number = before = 0
    for file, path in enumerate(paths):
        for entry in read_entries(path):
            yield file, number, entry, before
            number += 1
        before += path.stat().st_size


def _bounds(sizes: list[int], settings: ShardSettings) -> list[int]:
    bounds, total = [0], 0
    for index, size in enumerate(sizes):
        if index - bounds[-1] == settings.samples_per_shard or total >= settings.max_shard_bytes:
            bounds.append(index)
            total = 0
        total += size
    return [*bounds, len(sizes)]


class _Repeats:
    """Finds ids and whole entries that came before. 16 bytes of a hash stand for each: 1.2 million take 0.4 GB."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._entries: dict[bytes, int] = {}
        self.reason = ""

    def kind(self, name: Any, raw: bytes, number: int) -> str:
        """`repeated_entry`, `repeated_id` or "". Entries without an id repeat as a whole only."""
        whole = hashlib.blake2b(raw, digest_size=16).digest()
        first = self._entries.setdefault(whole, number)
        if first != number:
            self.reason = f"the same as entry {first}"
            return "repeated_entry"
        if name is None:
            return ""
        first = self._ids.setdefault(
            hashlib.blake2b(repr(name).encode(errors="replace"), digest_size=16).digest(), number
        )
        if first != number:
            self.reason = f"entry {first} has the id too, with other content"
            return "repeated_id"
        return ""


class _ImageFolder:
    """Looks images up, and lets no path out of the folder: no absolute one, no `..`, no link that leads away."""

    def __init__(self, root: Path, *, follow_links: bool):
        self.root, self._real = root, os.path.realpath(root)
        self._follow_links = follow_links
        self._folders: dict[str, bool] = {}

    def size(self, name: Any) -> int:
        """Bytes of an image.

        Raises:
            _Dropped: refused, missing, or too large to be an image.
        """
        _check_name(name)
        path = self.root / name
        parent = str(path.parent)
        if parent not in self._folders:
            self._folders[parent] = self._inside(parent)
        try:
            found = path.lstat()
            inside = self._folders[parent]
            if stat.S_ISLNK(found.st_mode):
                inside, found = self._inside(str(path)), path.stat()
        except OSError as error:
            raise _Dropped("missing_image", f'"{name}": {error.strerror}{_other_suffix(path)}') from None
        if not inside and not self._follow_links:
            raise _Dropped("refused_image", f'"{name}" is a link out of {self.root}; --follow-links allows it')
        if not stat.S_ISREG(found.st_mode):
            raise _Dropped("missing_image", f'"{name}" is not a file')
        if found.st_size > MAX_MEMBER_BYTES:
            raise _Dropped("unreadable_image", f'"{name}" has {found.st_size:,} bytes: that is no image')
        return found.st_size

    def _inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(os.path.join(self._real, ""))


def _check_name(name: Any) -> None:
    if isinstance(name, list):
        raise _Dropped("refused_image", f"it has {len(name)} images, {str(name)[:80]}; a sample has one at most")
    if not isinstance(name, str):
        raise _Dropped("refused_image", f"the image is {str(name)[:80]!r}; a sample has one image, named by its path")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise _Dropped("refused_image", f"{name!r} is not a plain relative path")


def _other_suffix(path: Path) -> str:
    """LLaVA's OCR-VQA images come under other suffixes than its annotations say."""
    try:
        found = [other.name for suffix in (*FORMATS, "gif") if (other := path.with_suffix(f".{suffix}")).exists()]
    except (OSError, ValueError):
        return ""
    return f" (there is {found[0]})" if found else ""


def _line(kind: str, number: int, annotations: Path, record: Any, reason: str, *, kept: bool) -> bytes:
    record = record if isinstance(record, Mapping) else {}
    line = {
        "kind": kind,
        "entry": number,
        "annotations": annotations.name,
        "id": record.get("id"),
        "image": record.get("image"),
        "reason": reason,
        "kept": kept,
    }
    return json.dumps(line).encode() + b"\n"


def _agree(path: Path, plan: Mapping[str, Any], partial: Path) -> None:
    """Keep the plan, or compare it with the earlier attempt's."""
    plan = json.loads(json.dumps(plan))
    earlier = read_json(path)
    if earlier is None:
        with atomic_file(path) as file:
            file.write(json.dumps(plan).encode())
    elif earlier != plan:
        old, new = earlier["settings"], plan["settings"]
        changed = [f"{name} was {old.get(name)}, is {new[name]}" for name in new if old.get(name) != new[name]]
        what = "; ".join(changed) or "the annotations or the images have changed"
        raise UserError(
            f"{partial} holds shards of an earlier attempt with other data or settings ({what}). Give the same "
            "to continue it, or remove it to start over."
        )


# A shard


def _write_shard(task: _Task) -> Iterator[int]:
    """Write one shard and what it is; yields the entries done since the last time."""
    settings = task.settings
    files = [path.open("rb") for path in settings.annotations]
    try:
        report: list[str] = []
        pending = 0
        with new_shard(task.shard) as writer:
            for number, file, offset, size in task.entries.tolist():
                files[file].seek(offset)
                record = one_image(json.loads(files[file].read(size)))
                try:
                    image, suffix, change = _checked(record, settings, f"entry {number}")
                    writer.add(f"{number:09d}", record, image, suffix)
                    kind = "converted_image" if change else ""
                except _Dropped as error:
                    kind, change = error.kind, str(error)
                if kind:
                    kept = kind == "converted_image"
                    line = _line(kind, number, settings.annotations[file], record, change, kept=kept)
                    report.append(line.decode())
                pending += 1
                if pending == _MESSAGE_EVERY:
                    yield pending
                    pending = 0
        with atomic_file(task.done) as done:
            done.write(json.dumps({"shard": writer.shard.to_json(), "report": report}).encode())
        yield pending
    finally:
        for file in files:
            file.close()


def _checked(record: Mapping[str, Any], settings: ShardSettings, key: str) -> tuple[bytes | None, str, str]:
    """The image as it goes into the shard (None for text alone), its suffix, and what its conversion has to report."""
    name = record.get("image")
    try:
        check_conversation(record, has_image=bool(name), key=key)
    except BadSample as bad:
        raise _Dropped("bad_conversation", bad.reason) from None
    if not name:
        return None, "", ""
    path = settings.images / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _Dropped("unreadable_image", f'"{name}": {error.strerror}') from None
    try:
        if data[:3] == b"GIF" and not settings.convert_gif:
            raise BadSample(key, "it is a GIF; --convert-gif stores its first frame as PNG")
        change = ""
        if not is_kept(data):
            data, image_format = to_png(data, key=key)
            change = f'"{name}" is {image_format}'
        if settings.resize is not None:
            data = settings.resize(data, key=key)
        image_format = check_image(data, key=key, decode=settings.decode)
    except BadSample as bad:
        raise _Dropped("unreadable_image", f'"{name}": {bad.reason}') from None
    suffix = path.suffix.lower().lstrip(".")
    # File names with the wrong suffix are common; the shard's names have the right one.
    return data, suffix if FORMATS.get(suffix) == image_format else _SUFFIXES[image_format], change


_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def _read_done(task: _Task) -> dict[str, Any] | None:
    """What a finished shard is; None if it is not finished."""
    done = read_json(task.done)
    if done is None or not task.shard.is_file() or task.shard.stat().st_size != done["shard"]["bytes"]:
        return None
    return done


# The end


def _finish(settings: ShardSettings, plan: _Plan, tasks: list[_Task], out: Path) -> Made:
    """Put index and report together, and give the folder its name. A kill within leaves nothing half done."""
    partial = tasks[0].folder
    made = Made(out, entries=plan.read, text_only=plan.text_only)
    shards: list[Shard] = []
    with atomic_file(partial / REPORT_NAME) as report:

        def tell(line: bytes | str) -> None:
            values = json.loads(line)
            made.counts[values["kind"]] += 1
            made.dropped += not values["kept"]
            report.write(line if isinstance(line, bytes) else line.encode())

        with (partial / ".work" / "planned.jsonl").open("rb") as planned:
            for line in planned:
                tell(line)
        for task in tasks:
            done = _read_done(task)
            assert done is not None, task.shard
            for line in done["report"]:
                tell(line)
            shards.append(Shard.from_json(partial, done["shard"]))
    made.shards, made.samples = len(shards), sum(map(len, shards))
    made.bytes = sum(shard.bytes for shard in shards)
    if not made.samples:
        raise UserError(f"No entry could be used; {partial / REPORT_NAME} says why for each.")
    counts = {"entries": made.entries, "dropped": made.dropped, "text_only": made.text_only, "report": made.counts}
    write_index(partial, shards, {"plan": plan.digest, **settings.to_json(), **counts})
    partial.replace(out)
    _tidy(out)
    return made


def _tidy(out: Path) -> None:
    """Remove the working files of a finished folder; a kill may have come just before."""
    if (out / INDEX_NAME).is_file():
        shutil.rmtree(out / ".work", ignore_errors=True)


def _finished_already(settings: ShardSettings, out: Path) -> Made:
    index = read_json(out / INDEX_NAME) or {}
    made = index.get("made") or {}
    mine = json.loads(json.dumps(settings.to_json()))
    if not made or any(made.get(name) != mine[name] for name in mine):
        raise UserError(f"{out} is not empty and holds other data. Choose another folder for the shards, or remove it.")
    shards = index["shards"]
    return Made(
        out,
        shards=len(shards),
        samples=index["samples"],
        bytes=sum(shard["bytes"] for shard in shards),
        found=len(shards),
        entries=made["entries"],
        dropped=made["dropped"],
        text_only=made["text_only"],
        counts=Counter(made["report"]),
    )
