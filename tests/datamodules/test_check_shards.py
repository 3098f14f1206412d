"""Everything that can be wrong with shards is found, all of it, and nothing in them is ever run."""

import io
import json
import os
import pickle
import shutil
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.check_shards import CheckReport, check_shards
from datamodules.conversation import check_conversation
from datamodules.errors import BadSample, ShardError
from datamodules.images import check_image, decode_image
from datamodules.shard_index import PICKLES, scan_shard
from datamodules.shards import ShardSet

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "four"}, {"from": "gpt", "value": "two"}]}
TEXT = json.dumps(RECORD).encode()
TRAP = "trapped"


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (TRAP,)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in fields.items():
        setattr(info, field, value)
    padding = bytes(-len(data) % 512)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + padding


def write(path, *members: bytes) -> None:
    path.write_bytes(b"".join(members) + bytes(1024))


@pytest.fixture
def copy(shard_folder, tmp_path):
    return shutil.copytree(shard_folder, tmp_path / "copy")


def told(report: CheckReport) -> list[tuple[str, str]]:
    return [(problem.entry, problem.what) for problem in report.problems]


@pytest.mark.parametrize("workers", [1, 2])
def test_sound_shards(shard_folder, workers):
    seen = []
    report = check_shards(shard_folder, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert (report.shards, report.samples, report.images, report.problems) == (4, 61, 48, [])
    assert seen[-1] == (report.bytes, report.bytes)
    fast = check_shards(shard_folder, fast=True)
    assert (fast.samples, fast.images, fast.problems) == (61, 48, [])


def test_one_file_and_a_folder_without_index(copy):
    assert check_shards(copy / "train-00001.tar").samples == 20
    shutil.copy(copy / "train-00001.tar", copy / "stranger.tar")
    (problem,) = check_shards(copy / "stranger.tar").problems
    assert (problem.shard, problem.what) == ("stranger.tar", "index.json does not list it")
    (copy / "stranger.tar").unlink()
    (copy / "index.json").unlink()
    report = check_shards(copy)
    assert (report.indexed, report.samples, report.problems) == (False, 61, [])
    assert not (copy / "index.json").exists()
    with pytest.raises(ShardError, match="No shards at"):
        check_shards(copy / "none")


def test_all_that_is_wrong_is_listed(copy, samples, make_image):
    first = bytearray((copy / "train-00000.tar").read_bytes())
    for number in (7, 9):  # two images damaged in one shard
        first[first.index(samples[number][1]) + 200] ^= 0xFF
    (copy / "train-00000.tar").write_bytes(first)
    (copy / "train-00001.tar").unlink()
    os.truncate(copy / "train-00002.tar", 9000)
    shutil.copy(copy / "train-00003.tar", copy / "stranger.tar")
    report = check_shards(copy)
    found = {(problem.shard, problem.entry) for problem in report.problems}
    assert {("train-00000.tar", ""), ("train-00000.tar", "000000007"), ("train-00000.tar", "000000009")} <= found
    assert {("train-00001.tar", ""), ("train-00002.tar", ""), ("stranger.tar", "")} <= found
    assert len({entry for shard, entry in found if shard == "train-00002.tar"}) > 5
    assert {problem.shard for problem in check_shards(copy, fast=True).problems} == {shard for shard, _ in found}
    parallel = check_shards(copy, workers=3)
    assert parallel.problems == report.problems


def test_bad_samples_in_a_sound_tar_file_are_listed(tmp_path, make_image):
    bad = json.dumps(RECORD | {"conversations": RECORD["conversations"][:1]}).encode()
    write(
        tmp_path / "a.tar",
        member("a.json", TEXT), member("b.json", bad), member("c.json", b"{"), member("d.jpg", make_image(0)),
        member("e.json", TEXT), member("e.jpg", make_image(0)[:300]), member("x.json", TEXT), member("a.json", TEXT),
    )  # fmt: skip
    report = check_shards(tmp_path)
    assert {entry for entry, _ in told(report)} == {"a", "b", "c", "d", "e"}
    assert report.samples == 7


REFUSED = {
    "../up.json": member("../up.json", TEXT),
    "/abs.json": member("/abs.json", TEXT),
    "a/../../b.json": member("a/../../b.json", TEXT),
    "back\\slash.json": member("back\\slash.json", TEXT),
    "bell\x07.json": member("bell\x07.json", TEXT),
    "escape\x1b[2J.json": member("escape\x1b[2J.json", TEXT),
    "\udcff.json": member("\udcff.json", TEXT),
    "soft.json": member("soft.json", kind=tarfile.SYMTYPE, linkname="/etc/hostname"),
    "hard.json": member("hard.json", kind=tarfile.LNKTYPE, linkname="a.json"),
    "char.json": member("char.json", kind=tarfile.CHRTYPE, devmajor=1),
    "block.json": member("block.json", kind=tarfile.BLKTYPE),
    "fifo.json": member("fifo.json", kind=tarfile.FIFOTYPE),
} | {f"x{suffix}": member(f"x{suffix}", pickle.dumps(Trap())) for suffix in (*sorted(PICKLES), ".PKL")}


@pytest.mark.parametrize("name", REFUSED)
def test_each_member_that_is_no_data_is_refused_and_named(tmp_path, name):
    write(tmp_path / "a.tar", member("a.json", TEXT), REFUSED[name], member("b.json", TEXT))
    with pytest.raises(ShardError, match="1 member is no data") as error:
        ShardSet.open([tmp_path])
    assert [found for found, _ in error.value.members] == [name]
    assert str(error.value).isprintable()


def test_refused_members_are_counted_and_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tar", member("a.json", TEXT), *REFUSED.values())
    with pytest.raises(ShardError, match=rf"{len(REFUSED)} members are no data.*and {len(REFUSED) - 3} more"):
        ShardSet.open([tmp_path])
    report = check_shards(tmp_path, workers=2)
    assert sorted(entry for entry, _ in told(report)) == sorted(REFUSED)
    assert not (tmp_path / TRAP).exists()
    pickle.loads(pickle.dumps(Trap()))  # the trap works
    assert (tmp_path / TRAP).exists()


def test_a_name_with_nul_from_an_extended_header_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.json")
        info.pax_headers = {"path": "a\0b.json"}
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ShardError, match="not a plain relative name"):
        scan_shard(tmp_path / "a.tar")


def _sized(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_member_of_ten_gigabytes_is_refused_by_its_header(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(_sized("a.jpg", 10 << 30))
    os.truncate(path, 512 + (10 << 30) + 1024)  # sparse: all there, and nothing on disk
    if path.stat().st_blocks > 1000:
        pytest.skip("the disk keeps no sparse files")
    with pytest.raises(ShardError, match="10,737,418,240 bytes"):
        scan_shard(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [10 << 30, -512])
def test_headers_that_ask_for_too_much_are_damage(tmp_path, kind, size):
    write(tmp_path / "a.tar", member("a.json", TEXT), _sized("x", size, kind), member("b.json", TEXT))
    with pytest.raises(ShardError, match="truncated or corrupt"):
        scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [-512, -1024, -5120])
def test_members_that_lead_back_end(tmp_path, size):
    write(tmp_path / "a.tar", member("a.json", TEXT), _sized("b.json", size), member("c.json", TEXT))
    with pytest.raises(ShardError, match="truncated or corrupt"):
        scan_shard(tmp_path / "a.tar")


def test_an_index_cannot_ask_for_bytes_outside_a_shard(copy):
    index = json.loads((copy / "index.json").read_text())
    for column, value in [("image_size", 10 << 30), ("image_offset", -1), ("record_offset", 10 << 30)]:
        changed = json.loads(json.dumps(index))
        changed["shards"][1][column][1] = value
        (copy / "index.json").write_text(json.dumps(changed))
        with pytest.raises(ShardError, match=r"index\.json cannot be used.*outside the shard"):
            ShardSet.open([copy])
        assert check_shards(copy).problems[0].entry == "index.json"


# The scanner against chance


NAMES = st.sampled_from(["a.json", "a.jpg", "b.json", "../c.json", "d.pkl", "e/f.json", "é.json"]) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=40
)
KINDS = st.sampled_from([*b"01234567xgLKSV", 0]).map(lambda each: bytes([each]))
SIZES = st.integers(-(1 << 20), 1 << 40) | st.sampled_from([0, 1, 511, 512, 513])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150
)
@given(
    parts=st.lists(
        st.builds(lambda name, data: member(name, data), NAMES, st.binary(max_size=30))
        | st.builds(_sized, NAMES, SIZES, KINDS)
        | st.binary(max_size=600),
        max_size=5,
    ),
    flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
)
def test_any_bytes_are_a_shard_or_a_shard_error(tmp_path, parts, flips):
    data = bytearray(b"".join(parts) + bytes(1024))
    for place, value in flips:
        data[place % len(data)] = value
    (tmp_path / "a.tar").write_bytes(data)
    try:
        shard = scan_shard(tmp_path / "a.tar")
    except ShardError:
        return
    ends = shard.columns["record_offset"] + shard.columns["record_size"]
    assert (ends <= len(data)).all()
    for index in range(len(shard)):
        try:
            sample = ShardSet([shard]).read(index)
            check_conversation(sample.record, has_image=sample.image is not None, key="x")
        except BadSample:
            pass


# Images that unpack to gigabytes


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_a_bomb_is_refused_by_its_header(suffix):
    file = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(file, suffix)
    data = file.getvalue()
    # The header alone is refused: no pixel was needed for it.
    for image in (data, data[:2000]):
        for read in (decode_image, check_image):
            with pytest.raises(BadSample, match=r"400000000 pixels|20000 x 20000"):
                read(image, key="bomb")
