"""Shards that others made: compressed, printed by a command, and img2dataset's triples."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from ablate.core.errors import UserError
from datamodules.errors import ShardError
from datamodules.shards.check import check_shards
from datamodules.shards.reader import ShardSet
from datamodules.shards.remote import ShardCache


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", allow_pipe=True)


def contents(shards: ShardSet) -> list:
    read = [shards.read(index) for index in range(len(shards))]
    return [(sample.key.rpartition(":")[2], sample.record, sample.image) for sample in read]


def packed(path: Path, folder: Path, name: str = "packed.tar.gz") -> Path:
    target = folder / name
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


@pytest.fixture
def plain(shard_folder) -> Path:
    return sorted(shard_folder.glob("*.tar"))[0]


@pytest.mark.parametrize("name", ["packed.tar.gz", "packed.tgz", "PACKED.TAR.GZ"])
def test_a_compressed_shard_has_the_samples_of_the_plain_one(plain, tmp_path, cache, name):
    path = packed(plain, tmp_path, name)
    expected = contents(ShardSet.open([plain]))
    first = ShardSet.open([path], cache)
    assert contents(first) == expected
    report = check_shards(path, cache=cache)
    assert (report.samples, report.problems) == (len(first), [])
    (index,) = cache.folder.rglob("index.json")
    made = index.stat().st_mtime_ns
    assert ShardSet.open([path], cache).digest == first.digest
    assert index.stat().st_mtime_ns == made  # unpacked and scanned once
    with pytest.raises(UserError, match="no cache to unpack it into"):
        ShardSet.open([path])


def test_braces_of_compressed_shards_stand_for_all_of_them(shard_folder, tmp_path, cache):
    shards = sorted(shard_folder.glob("*.tar"))[:2]
    for number, path in enumerate(shards):
        packed(path, tmp_path, f"{number:03d}.tar.gz")
    opened = ShardSet.open([f"{tmp_path}/{{000..{len(shards) - 1:03d}}}.tar.gz"], cache)
    assert contents(opened) == contents(ShardSet.open(shards))


def test_a_folder_of_compressed_shards(shard_folder, tmp_path, cache):
    (folder := tmp_path / "packed").mkdir()
    for path in sorted(shard_folder.glob("*.tar")):
        packed(path, folder, f"{path.name}.gz")
    assert contents(ShardSet.open([folder], cache)) == contents(ShardSet.open([shard_folder]))


def test_a_changed_file_is_unpacked_again(shard_folder, tmp_path, cache):
    shards = sorted(shard_folder.glob("*.tar"))
    first = ShardSet.open([packed(shards[0], tmp_path)], cache)
    second = ShardSet.open([packed(shards[-1], tmp_path)], cache)
    assert first.digest != second.digest


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_is_run_where_it_is_allowed(plain, tmp_path, cache, zipped):
    path = packed(plain, tmp_path) if zipped else plain
    assert contents(ShardSet.open([f"pipe:cat {path}"], cache)) == contents(ShardSet.open([plain]))
    trace = tmp_path / "ran"
    with pytest.raises(ShardError, match=r"is a command.*data\.allow_pipe=true"):
        ShardSet.open([f"pipe:touch {trace}"], ShardCache(tmp_path / "other"))
    assert not trace.exists()


@pytest.mark.parametrize("command", ["false", "cat {path}; exit 3", "true", "head -c 700 {path}"])
def test_a_command_that_fails_leaves_nothing(plain, cache, command):
    with pytest.raises(ShardError):
        ShardSet.open([f"pipe:{command.format(path=plain)}"], cache)
    assert not list(cache.folder.rglob("index.json"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-9] + b"123456789"])
def test_a_damaged_file_is_named_and_leaves_nothing(plain, tmp_path, cache, damage):
    path = packed(plain, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ShardError, match=r"packed\.tar\.gz cannot be read"):
        ShardSet.open([path], cache)
    assert not list(cache.folder.rglob("*.tar"))


def test_a_bomb_stops_at_the_limit(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(ShardError, match=r"unpacks to more than data\.cache_bytes"):
        ShardSet.open([path], ShardCache(tmp_path / "cache", limit_bytes=1 << 20))


def triples(path: Path, image: bytes, *, caption: str = "a dog", pictures: bool = True) -> Path:
    """As img2dataset writes them."""
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            record = {
                "caption": f"{caption} {number}",
                "url": "http://x/y.jpg",
                "key": f"{number:09d}",
                "status": "success",
            }
            members = {"txt": f"{caption} {number}".encode(), "json": json.dumps(record).encode()}
            for suffix, data in (({"jpg": image} if pictures else {}) | members).items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_img2datasets_triples_become_captions(tmp_path, make_image):
    shards = ShardSet.open([triples(tmp_path / "00000.tar", make_image(0))])
    assert not shards.unread
    assert shards.has_image.all()
    assert shards.chars.tolist() == [len("a dog 0") + len("<image>")] * 3
    sample = shards.read(1)
    assert [turn["value"] for turn in sample.record["conversations"]] == ["<image>", "a dog 1"]
    assert sample.image == make_image(0)
    without = ShardSet.open([triples(tmp_path / "00001.tar", b"", pictures=False)])
    assert "conversations" not in without.read(0).record  # refused where it is used
