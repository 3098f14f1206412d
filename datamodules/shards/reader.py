"""WebDataset shards of LLaVA records: write, describe, check, read at random.

A shard is a tar file in which neighbouring members that share the name before the first dot are one sample
(WebDataset's rule): `<key>.json`, the record, and `<key>.jpg|jpeg|png|webp`, its image, bit for bit as it came.
`index.json` beside the shards (shard_index.py) says where in which file each member lies, so that a sample is one seek
away, and enough about each (length of its text, hash of its image) to plan an epoch without reading any. A folder
without one, such as WebDataset's own writers produce, is scanned once.

Nothing is ever unpacked to disk, and only JSON and the images of `images.FORMATS` are ever parsed.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ablate.core.errors import UserError
from ablate.core.files import file_sha256
from datamodules.errors import BadSample, ShardError
from datamodules.images.decode import FORMATS, sha256
from datamodules.shards.annotations import captioned, one_image
from datamodules.shards.index import (
    COLUMNS,
    INDEX_NAME,
    Shard,
    describe_unread,
    json_or_none,
    read_index,
    scan_shard,
    unread_problem,
    write_index,
)
from datamodules.shards.paths import check_is_tar, expand, is_remote, nothing_in, tars_of
from datamodules.shards.remote import ShardCache, Use
from datamodules.shards.streams import COMMAND, is_stream, unpacked
from datamodules.shards.writer import new_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """What a shard holds for one sample: the record and the undecoded image."""

    key: str  # "<shard>:<key>"
    record: dict[str, Any]
    image: bytes | None


class ShardSet:
    """All samples of some shards, numbered from 0 in the order of the shards.

    Attributes:
        shards: the tar files.
        chars, turns, has_image: (samples,) arrays from the indexes.
    """

    def __init__(self, shards: list[Shard]):
        self.shards = shards
        self._names = _short_names([shard.place for shard in shards])
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.chars = self._column("chars")
        self.turns = self._column("turns")
        self.has_image = self._column("image_size") > 0

    @classmethod
    def open(cls, paths: Iterable[Path | str], cache: ShardCache | None = None) -> "ShardSet":
        """Open folders of shards, single .tar files or patterns of them (shard_paths.py), and check that every file is
        there in its full size.

        URLs of such, which need a cache, are opened by their index alone: a shard is fetched when it is read. A local
        folder without `index.json` is scanned, and the index kept there for the next time where it may be written.

        Raises:
            ShardError: a path, an index or a shard is missing or damaged, or there is no sample.
        """
        shards = [shard for path in paths for shard in open_anywhere(path, cache)]
        for shard in shards:
            if not shard.remote:
                _check_size(shard)
        if not any(len(shard) for shard in shards):
            raise ShardError(f"No sample in {', '.join(map(str, paths)) or 'no path at all'}.")
        return cls(shards)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def digest(self) -> str:
        """SHA-256 over the hashes of the shards, in order: the identity of the data."""
        return sha256("\n".join(shard.sha256 for shard in self.shards).encode())

    @property
    def unread(self) -> Counter[str]:
        """Members that are not read, by suffix, as `Shard.unread`."""
        return sum((Counter(shard.unread) for shard in self.shards), Counter())

    def check_unread(self, max_share: float, ignored: Iterable[str] = ()) -> None:
        """Log which members are not read, such as images that a sample was meant to have.

        Raises:
            ShardError: there are more than `max_share` for each sample, besides those with the suffixes `ignored`.
        """
        if not self.unread:
            return
        folders = ", ".join(sorted({shard.place.rpartition("/")[0] for shard in self.shards}))
        if problem := unread_problem(self.unread, len(self), max_share, ignored):
            raise ShardError(f"{folders}: {problem}, or allow more (data.max_bad_share is {max_share:g}).")
        log.warning("%s: members that are not read: %s", folders, describe_unread(self.unread))

    def key(self, index: int) -> str:
        """`<shard>:<key>` of a sample: unique, and where to look for it.

        The shard is called by its file's name, and by its folder's too where another folder has one of that name.
        """
        shard, row = self._locate(index)
        return f"{self._names[shard.place]}:{shard.columns['key'][row]}"

    def uses(self, steps: Sequence[Sequence[int]]) -> list[Use]:
        """When the steps need which shard, in the order of the first step that does."""
        samples = np.fromiter(chain.from_iterable(steps), np.int64)
        ends = np.cumsum([len(step) for step in steps])
        of_step = np.searchsorted(ends, np.arange(len(samples)), side="right")
        of_sample = np.searchsorted(self._starts, samples, side="right") - 1
        numbers, first = np.unique(of_sample, return_index=True)
        last = len(samples) - 1 - np.unique(of_sample[::-1], return_index=True)[1]
        found = zip(of_step[first].tolist(), of_step[last].tolist(), numbers.tolist(), strict=True)
        return [Use(first, last, self.shards[number]) for first, last, number in sorted(found)]

    def image_sha256(self, index: int) -> str:
        """Hash of a sample's image file, "" if it has none."""
        shard, row = self._locate(index)
        return str(shard.columns["image_sha256"][row])

    def read(self, index: int, *, with_image: bool = True) -> Sample:
        """Read one sample.

        Args:
            index: its number.
            with_image: False leaves the image unread (`Sample.image` is None).

        Raises:
            BadSample: its record is missing or not JSON, its image is missing or its bytes changed.
            ShardError: the shard is gone or shorter than the index says.
        """
        shard, row = self._locate(index)
        key = self.key(index)
        entry = {name: values[row] for name, values in shard.columns.items()}
        if not entry["record_size"]:
            raise BadSample(key, "it has no .json record")
        record = one_image(captioned(_parse_record(_read_range(shard, entry, "record"), key), entry["image_size"] > 0))
        if isinstance(record.get("image"), list):
            raise BadSample(key, f"its record names {len(record['image'])} images; a sample has one at most")
        if record.get("image") and not entry["image_size"]:
            raise BadSample(key, f'its record names the image "{record["image"]}", but the shard has none for it')
        image = None
        if with_image and entry["image_size"]:
            image = _read_range(shard, entry, "image")
            if sha256(image) != entry["image_sha256"]:
                raise BadSample(key, "its image is damaged: the bytes are not those that were indexed")
        return Sample(key, record, image)

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Read every shard and compare its SHA-256 with the index. `progress` gets the bytes of each shard done.

        Raises:
            ShardError: naming the first that differs, and the first damaged entry in it where one can be found.
        """
        for shard in self.shards:
            if shard.remote:
                shard.open().close()  # compared as it arrives
                progress(shard.bytes)
                continue
            _check_size(shard)
            if file_sha256(shard.path) != shard.sha256:
                self._locate_damage(shard)
            progress(shard.bytes)

    def _locate_damage(self, shard: Shard) -> None:
        entry = "the damaged entry is unknown"
        try:
            found = scan_shard(shard.path)
            for name in COLUMNS:
                differs = np.flatnonzero(found.columns[name] != shard.columns[name])
                if len(differs):
                    entry = f'first at entry "{shard.columns["key"][differs[0]]}"'
                    break
        except ShardError as error:
            entry = str(error)
        raise ShardError(f"{shard.path} is corrupt: its SHA-256 is not the one in {INDEX_NAME} ({entry}). Restore it.")

    def _locate(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[number], index - int(self._starts[number])

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([shard.columns[name] for shard in self.shards])


def write_shards(
    samples: Iterable[tuple[Mapping[str, Any], bytes | None]],
    folder: Path | str,
    *,
    prefix: str = "train",
    samples_per_shard: int = 1000,
    max_shard_bytes: int = 1 << 30,
) -> ShardSet:
    """Write LLaVA records and their images as shards with an index.

    The same samples give the same bytes. `folder` appears when everything in it is complete; until then the work is
    in `<folder>.partial`, so that a stopped run cannot pass for a smaller data set.

    Args:
        samples: (record, encoded image or None). The image's suffix is that of `record["image"]`.
        folder: must not exist, or be empty.
        prefix: shards are named `<prefix>-00000.tar`, ...; keys are the running number of the sample.
        samples_per_shard, max_shard_bytes: a shard is closed at whichever comes first.

    Raises:
        UserError: the folder holds something, nothing is given, or an image and `record["image"]` do not agree.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty. Choose another folder for the shards, or remove it.")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards: list[Shard] = []
    numbered = enumerate(samples)
    pending = next(numbered, None)
    while pending is not None:
        with new_shard(partial / f"{prefix}-{len(shards):05d}.tar") as writer:
            while pending is not None and len(writer) < samples_per_shard and writer.size < max_shard_bytes:
                number, (record, image) = pending
                writer.add(f"{number:09d}", record, image, _image_suffix(record, image, number))
                pending = next(numbered, None)
        shards.append(writer.shard)
    if not shards:
        raise UserError(f"No sample was given to write to {folder}.")
    write_index(partial, shards)
    partial.replace(folder)
    return ShardSet.open([folder])


def _image_suffix(record: Mapping[str, Any], image: bytes | None, number: int) -> str:
    name = record.get("image")
    if (name is None) != (image is None):
        given = "no image was given" if image is None else "an image was given"
        raise UserError(f'Record {number} (id "{record.get("id")}") names the image {name!r}, but {given}.')
    if image is None:
        return ""
    suffix = PurePosixPath(str(name)).suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise UserError(f'Image "{name}" of record {number} is none of {", ".join(FORMATS)}.')
    return suffix


def _short_names(places: Iterable[str]) -> dict[str, str]:
    """The last parts of every place, as few as tell all of them apart."""
    different = set(places)
    for parts in count(1):
        names = {place: "/".join(place.split("/")[-parts:]) for place in different}
        if len(set(names.values())) == len(different):
            return names
    raise AssertionError("not reached")


def open_anywhere(given: Path | str, cache: ShardCache | None) -> Sequence[Shard]:
    """The shards of a folder, of a .tar file, of a URL of either, which needs a cache, or of a pattern of those.

    Raises:
        ShardError, UserError: as `ShardSet.open`.
    """
    if str(given).startswith(COMMAND) and cache is not None and cache.allow_pipe:
        return _open_streams([str(given)], cache)
    places = [each for place in expand(given) for each in (_compressed_in(place) or [place])]
    if packed := [place for place in places if is_stream(place) and not Path(place).is_dir()]:
        if len(packed) < len(places):
            raise ShardError(f"{given} stands for compressed and plain shards: give them one by one.")
        return _open_streams(packed, cache)
    if is_remote(given):
        if cache is None:
            raise UserError(
                f"{given} is a URL, and there is no cache to fetch it into: give ShardSet.open a ShardCache."
            )
        return cache.shards(places)
    indexes: dict[Path, dict[str, Shard]] = {}  # one may list thousands of the files that a pattern stands for
    return [shard for place in places for shard in _open_path(Path(place), indexes)]


def plain_places(place: str, cache: ShardCache | None) -> list[Path]:
    """A local path, or the folders that its compressed shards are unpacked to where there is a cache."""
    packed = _compressed_in(place) or ([place] if is_stream(place) and Path(place).is_file() else [])
    if cache is None or not packed:
        return [Path(place)]
    return [unpacked(each, cache.folder / "unpacked", cache.limit_bytes) for each in packed]


def _compressed_in(place: str) -> list[str]:
    """The compressed shards of a folder that has no others."""
    if is_remote(place) or not (folder := Path(place)).is_dir():
        return []
    if (folder / INDEX_NAME).exists() or tars_of(folder):
        return []
    return sorted(str(path) for path in folder.iterdir() if is_stream(path.name) and not path.name.startswith("."))


def _open_streams(places: Sequence[str], cache: ShardCache | None) -> list[Shard]:
    if cache is None:
        raise UserError(f"{places[0]} is compressed, and there is no cache to unpack it into: give a ShardCache.")
    folders = [unpacked(place, cache.folder / "unpacked", cache.limit_bytes) for place in places]
    return [shard for folder in folders for shard in _open_path(folder, {})]


def _open_path(path: Path, indexes: dict[Path, dict[str, Shard]]) -> list[Shard]:
    if path.name == INDEX_NAME and not path.is_dir():
        path = path.parent
    if path.is_dir():
        return read_index(path) if (path / INDEX_NAME).is_file() else _scan_folder(path)
    folder = path.parent
    if folder not in indexes:
        listed = read_index(folder) if (folder / INDEX_NAME).is_file() else []
        indexes[folder] = {shard.path.name: shard for shard in listed}
    if path.name in indexes[folder]:
        return [indexes[folder][path.name]]
    try:
        check_is_tar(path)
    except OSError as error:
        raise ShardError(f"Cannot read the shard {path}: {error.strerror or error}.") from None
    return [scan_shard(path)]


def _scan_folder(folder: Path) -> list[Shard]:
    paths = tars_of(folder)
    if not paths:
        raise nothing_in(folder)
    log.info("%s has no %s: reading its %d shards once to make one", folder, INDEX_NAME, len(paths))
    shards = [scan_shard(path) for path in paths]
    try:
        write_index(folder, shards)
    except UserError as error:
        log.warning("%s The shards will be read again the next time.", error)
    return shards


def _check_size(shard: Shard) -> None:
    try:
        size = shard.path.stat().st_size
    except OSError as error:
        raise ShardError(
            f"Shard {shard.path} is listed in {INDEX_NAME} but cannot be read: {error.strerror}."
        ) from None
    if size != shard.bytes:
        ends = shard.columns["record_offset"] + shard.columns["record_size"]
        ends = np.maximum(ends, shard.columns["image_offset"] + shard.columns["image_size"])
        lost = np.flatnonzero(ends > size)
        entry = f' from entry "{shard.columns["key"][lost[0]]}" on' if len(lost) else ""
        what = "truncated" if size < shard.bytes else "rewritten"
        raise ShardError(
            f"Shard {shard.path} is {what}{entry}: {size} bytes, {INDEX_NAME} says {shard.bytes}. Restore the shard, "
            f"or delete {INDEX_NAME} if it was changed on purpose."
        )


def _read_range(shard: Shard, entry: Mapping[str, Any], member: str) -> bytes:
    offset, size = int(entry[f"{member}_offset"]), int(entry[f"{member}_size"])
    try:
        with shard.open() as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ShardError(f'Cannot read entry "{entry["key"]}" of shard {shard.path}: {error.strerror}.') from None
    if len(data) != size:
        raise ShardError(f'Shard {shard.path} is truncated at entry "{entry["key"]}".')
    return data


def _parse_record(data: bytes, key: str) -> dict[str, Any]:
    record = json_or_none(data)
    if not isinstance(record, dict):
        raise BadSample(key, "its .json is damaged or not a JSON object")
    return record
