"""What may be given as shards: a folder, a .tar file, a URL of either, or a pattern of those.

`{000..009}` and `{a,b}` (WebDataset's braces) expand to several paths, for local files and URLs; `*`, `?` and `[0-9]`
match existing local files only: a URL's folder cannot be listed. An existing path is taken literally, even if it
contains such characters.
"""

import glob
import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from ablate.core.filetypes import type_of
from datamodules.errors import ShardError

MAX_PLACES = 100_000
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(://|::)", re.IGNORECASE)
_PACKED = re.compile(r"\.(tgz|tbz2?|txz|zip|7z|gz|bz2|xz|zst|zstd|lz4)$", re.IGNORECASE)
TAR_GZ = re.compile(r"\.(tar\.gz|tgz)$", re.IGNORECASE)
_TABLES = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow)$", re.IGNORECASE)


def is_remote(path: object) -> bool:
    """Whether it is a URL and not a path."""
    return bool(_SCHEME.match(str(path)))


def shown(url: str) -> str:
    """Without a user's name and password, which must not end up in logs."""
    return re.sub(r"^([^/]*//)[^/@]*@", r"\1", url.partition("?")[0])


def expand(given: Path | str) -> list[str]:
    """The paths or URLs that a path, a URL or a pattern expands to, in order.

    Raises:
        ShardError: nothing matches, a path that braces stand for is not there, or it is a command (WebDataset's pipe:).
    """
    text = os.path.expanduser(str(given))
    if text.startswith("pipe:"):
        raise ShardError(
            f"{text} is a command, which runs in a shell with your rights. If you trust it, set "
            "data.allow_pipe=true; or give a URL (https, s3, gs) or a local copy."
        )
    if is_remote(text):
        if glob.has_magic(text.partition("?")[0]):
            raise ShardError(
                f"{shown(text)}: a URL's folder cannot be listed. Give the folder, or braces such as {{000..009}}."
            )
        return braces(text)
    if os.path.lexists(text):
        return [text]
    places = braces(text)
    if missing := [place for place in places if not os.path.lexists(place) and not glob.has_magic(place)]:
        if places == [text]:
            raise ShardError(f"No shards at {text}: {_why_missing(text)}")
        raise ShardError(
            f"{len(missing):,} of the {len(places):,} files of {text} are not there. The first: {missing[0]}."
        )
    found = [each for place in places for each in ([place] if os.path.lexists(place) else _matches(place))]
    return list(dict.fromkeys(found))


def braces(text: str) -> list[str]:
    """`braceexpand`, in bounds.

    Raises:
        ShardError: braces do not pair, or stand for too many paths.
    """
    numbers = [abs(int(last) - int(first)) for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", text)]
    try:
        places = list(islice(braceexpand(text), MAX_PLACES + 1)) if max(numbers, default=0) < MAX_PLACES else None
    except UnbalancedBracesError:
        raise ShardError(f"{text}: its braces do not pair. Expected such as {{000..009}} or {{a,b}}.") from None
    if places is None or len(places) > MAX_PLACES:
        raise ShardError(f"{text} stands for more than {MAX_PLACES:,} paths. Give the folders instead.")
    return places


def tars_of(folder: Path) -> list[Path]:
    """The tar files of a folder by name; hidden ones, such as macOS's ._x.tar, do not count."""
    return [each for each in _visible(folder) if each.suffix.lower() == ".tar"]


def check_is_tar(path: Path) -> None:
    """Refuse, for what it is, a file that is often given in place of a shard. What is damaged is left to the scan.

    Raises:
        ShardError: such a file.
        OSError: it cannot be read.
    """
    if (found := type_of(path)) and found.kind != "tar":
        raise ShardError(f"{path} is no shard but {found.describe(path, _MAKE)}")
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] in (b"[", b"{") and _TABLES.search(path.name):
            raise ShardError(f"{path} is JSON and no shard. {_MAKE}")


_MAKE = "Make shards of LLaVA's annotations and images with `ablate data shard`."


def nothing_in(folder: Path) -> ShardError:
    """Why a folder holds no shards, by what it holds instead."""
    names = [each.name for each in _visible(folder)]
    said = f"No .tar shard and no index.json in {folder}"
    if packed := [name for name in names if _PACKED.search(name)]:
        found = type_of(folder / packed[0])
        described = found.describe(folder / packed[0], _MAKE) if found else "compressed: unpack it."
        return ShardError(f"{said}, but {len(packed):,} compressed files. {packed[0]} is {described}")
    if below := sorted({each.parent.name for each in folder.glob("*/*.tar")}):
        return ShardError(f"{said} itself. Shards are in its folders {_few(below)}: give those, or {folder}/*.")
    if tables := [name for name in names if _TABLES.search(name)]:
        return ShardError(f"{said}, but {_few(tables)}. {_MAKE}")
    return ShardError(f"{said}.")


def check_url(url: str) -> None:
    """Refuse a URL that is seen to be no folder of shards and no .tar file.

    Raises:
        ShardError: it is one of a compressed file, or of a table or an annotation file.
    """
    path = url.partition("?")[0].partition("#")[0]
    if _PACKED.search(path):
        raise ShardError(f"{shown(url)} is compressed, and samples are read by offset. Decompress it in place.")
    if _TABLES.search(path):
        raise ShardError(f"{shown(url)} is no shard. {_MAKE}")


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    shards = [each for each in found if os.path.isdir(each) or each.lower().endswith(".tar")]
    shards = shards or [each for each in found if TAR_GZ.search(each)]
    if found and not shards:
        what = type_of(Path(found[0]))
        described = f" {found[0]} is {what.describe(Path(found[0]), _MAKE)}" if what else ""
        raise ShardError(f"{pattern} matches no .tar file but {_few(found)}.{described}")
    if not shards:
        raise ShardError(f"Nothing matches {pattern}. Look with: ls {os.path.dirname(pattern) or '.'}")
    return shards


def _why_missing(text: str) -> str:
    path = Path(text)
    other = [each.name for each in _visible(path.parent) if each.name.startswith(path.name + ".")]
    if other and _PACKED.search(other[0]):
        return f"there is {other[0]}. Decompress it: samples are read by offset."
    if "," in text:
        return "the file or folder does not exist. Several are a list: data.shards=[a,b]."
    return "the file or folder does not exist. `ablate data demo` makes the demo's."


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _few(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
