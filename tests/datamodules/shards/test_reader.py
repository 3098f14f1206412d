"""Shards written, read at random, indexed from nothing, and damaged in every way."""

import io
import json
import os
import tarfile

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from datamodules.errors import BadSample, ShardError
from datamodules.images.decode import sha256
from datamodules.shards.reader import ShardSet, write_shards

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "four"}, {"from": "gpt", "value": "two"}]}


def write_tar(path, members) -> None:
    """members: (name, bytes) or a TarInfo."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def copy(shard_folder, tmp_path):
    """A copy of the shards to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shard_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_every_sample_reads_back_bit_for_bit(shard_set, samples):
    assert len(shard_set) == len(samples)
    for number, (record, image) in enumerate(samples):
        sample = shard_set.read(number)
        assert sample.record == record
        assert sample.image == image
        assert bool(shard_set.has_image[number]) == (image is not None)
        assert shard_set.image_sha256(number) == (sha256(image) if image else "")
        assert shard_set.chars[number] == sum(len(turn["value"]) for turn in record["conversations"])
        assert shard_set.turns[number] == len(record["conversations"])
    assert shard_set.read(1, with_image=False).image is None
    assert len({shard_set.key(number) for number in range(len(samples))}) == len(samples)
    with pytest.raises(IndexError):
        shard_set.read(len(samples))


def test_webdataset_reads_our_shards(shard_folder, samples):
    urls = sorted(str(path) for path in shard_folder.glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [json.loads(sample["json"]) for sample in read] == [record for record, _ in samples]
    images = [next((sample[suffix] for suffix in ("jpg", "png") if suffix in sample), None) for sample in read]
    assert images == [image for _, image in samples]


def test_same_samples_give_the_same_bytes(shard_folder, samples, tmp_path):
    write_shards(iter(samples), tmp_path / "again", samples_per_shard=20)
    names = sorted(path.name for path in shard_folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (shard_folder / name).read_bytes()


def test_shards_close_at_their_size(samples, tmp_path):
    written = write_shards(samples, tmp_path / "small", max_shard_bytes=10_000)
    assert len(written.shards) > 3
    assert len(written) == len(samples)


def test_digest_is_the_data_s(shard_set, shard_folder, copy, tmp_path, samples):
    assert ShardSet.open([copy]).digest == shard_set.digest
    assert write_shards(samples[:-1], tmp_path / "other", samples_per_shard=20).digest != shard_set.digest


def test_stopped_writing_leaves_no_folder_and_can_start_again(samples, tmp_path):
    def stops():
        yield from samples[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(stops(), tmp_path / "out", samples_per_shard=20)
    assert not (tmp_path / "out").exists()
    assert len(write_shards(samples, tmp_path / "out", samples_per_shard=20)) == len(samples)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_writing_refuses_a_folder_in_use(shard_folder, samples):
    with pytest.raises(UserError, match="not empty"):
        write_shards(samples, shard_folder)


@pytest.mark.parametrize(
    ("record", "image", "message"),
    [
        (RECORD | {"image": "a.jpg"}, None, "no image was given"),
        (RECORD, b"x", "an image was given"),
        (RECORD | {"image": "a.tiff"}, b"x", "a.tiff"),
    ],
)
def test_writing_refuses_what_does_not_agree(record, image, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_shards([(record, image)], tmp_path / "out")
    with pytest.raises(UserError, match="No sample"):
        write_shards([], tmp_path / "out")


def test_atomic_file_tells_its_own_failures_from_others(tmp_path):
    with pytest.raises(UserError, match="Cannot write"), atomic_file(tmp_path / "missing" / "a"):
        pass
    with pytest.raises(UserError, match="No space left"), atomic_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert list(tmp_path.iterdir()) == []


# Somebody else's shards


def test_shards_written_by_webdataset_itself_work_without_an_index(tmp_path, make_image):
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"part-{number}.tar")) as writer:
            for i in range(3):
                image = {"jpg": make_image(i)} if i else {}
                writer.write({"__key__": f"sub/{i:03d}", "json": RECORD, "txt": "ignored", **image})
    found = ShardSet.open([tmp_path])
    assert len(found) == 6
    assert found.read(4).record == RECORD
    assert found.read(4).image == make_image(1)
    assert found.key(4) == "part-1.tar:sub/001"
    assert (tmp_path / "index.json").is_file()
    assert ShardSet.open([tmp_path]).digest == found.digest


def test_one_tar_file(shard_folder, copy):
    assert len(ShardSet.open([copy / "train-00001.tar"])) == 20
    (copy / "index.json").unlink()
    assert len(ShardSet.open([copy / "train-00001.tar", copy / "train-00003.tar"])) == 21


def test_scanning_gives_the_written_index(shard_folder, copy):
    (copy / "index.json").unlink()
    ShardSet.open([copy])
    assert (copy / "index.json").read_bytes() == (shard_folder / "index.json").read_bytes()


def test_index_that_cannot_be_kept_is_no_error(copy, monkeypatch, caplog):
    (copy / "index.json").unlink()

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert len(ShardSet.open([copy])) == 61
    assert "read again the next time" in caplog.text


def test_folders_and_metadata_members_are_passed_over(tmp_path):
    folder = tarfile.TarInfo("./sub")
    folder.type = tarfile.DIRTYPE
    write_tar(tmp_path / "a.tar", [folder, ("__index__.json", b"{}"), ("./sub/x.json", json.dumps(RECORD).encode())])
    assert len(ShardSet.open([tmp_path])) == 1


def test_sample_without_record_or_image_is_bad_when_read(tmp_path, make_image):
    named = json.dumps(RECORD | {"image": "x.jpg"}).encode()
    members = [("a.jpg", make_image(0)), ("b.json", named), ("c.json", b"[1]"), ("d.json", b"{"), ("e.json", named)]
    write_tar(tmp_path / "a.tar", [*members, ("e.jpg", make_image(1))])
    found = ShardSet.open([tmp_path])
    for number, reason in enumerate(["no .json", 'names the image "x.jpg"', "not a JSON object", "damaged"]):
        with pytest.raises(BadSample, match=rf"a\.tar:{'abcd'[number]}.*{reason}"):
            found.read(number)
    assert found.read(4).image == make_image(1)


# Damage


@pytest.mark.parametrize(
    "name", ["/etc/x.json", "../x.json", "a/../../x.json", "a\\x.json", "a\x07.json", os.fsdecode(b"\xff.json")]
)
def test_names_that_leave_or_confuse_are_refused(tmp_path, name):
    info = tarfile.TarInfo(name)
    write_tar(tmp_path / "a.tar", [info])
    with pytest.raises(ShardError, match="not a plain relative name"):
        ShardSet.open([tmp_path])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("a.json")
    info.type, info.linkname = kind, "/etc/hostname"
    write_tar(tmp_path / "a.tar", [info])
    with pytest.raises(ShardError, match="link, device"):
        ShardSet.open([tmp_path])


def test_two_images_in_a_sample_are_refused(tmp_path, make_image):
    write_tar(tmp_path / "a.tar", [("a.json", b"{}"), ("a.jpg", make_image(0)), ("a.png", make_image(0, "png"))])
    with pytest.raises(ShardError, match=r'entry "a": 2 images'):
        ShardSet.open([tmp_path])


def test_compressed_shard_says_so(copy):
    path = copy / "train-00000.tar"
    with tarfile.open(path, "w:gz"):
        pass
    (copy / "index.json").unlink()
    with pytest.raises(ShardError, match=r"a gzip archive.*gunzip -k"):
        ShardSet.open([copy])


@pytest.mark.parametrize("with_index", [True, False])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_shard_names_itself_and_the_entry(shard_folder, tmp_path_factory, with_index, share):
    folder = tmp_path_factory.mktemp("cut")
    data = (shard_folder / "train-00001.tar").read_bytes()
    # The last block or more of the end marker may be missing without loss.
    content = len(data.rstrip(b"\0"))
    (folder / "train-00001.tar").write_bytes(data[: int(share * content)])
    if with_index:
        index = json.loads((shard_folder / "index.json").read_bytes())
        index["shards"] = [index["shards"][1]]
        (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"train-00001\.tar is truncated.*(entry|its start)"):
        ShardSet.open([folder])


def test_damaged_header_in_the_middle_is_not_taken_for_the_end(copy):
    path = copy / "train-00000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[10].offset
        before = tar.getmembers()[9].name
    data[header + 100 : header + 300] = b"\xff" * 200
    path.write_bytes(data)
    (copy / "index.json").unlink()
    with pytest.raises(ShardError, match=f'corrupt after entry "{before}"'):
        ShardSet.open([copy])


def test_changed_image_bytes_are_a_bad_sample_and_found_by_verify(copy, samples):
    path = copy / "train-00000.tar"
    data = bytearray(path.read_bytes())
    offset = data.index(samples[7][1])
    data[offset + 300] ^= 0xFF
    path.write_bytes(data)
    found = ShardSet.open([copy])
    with pytest.raises(BadSample, match=r"train-00000\.tar:000000007: its image is damaged"):
        found.read(7)
    with pytest.raises(ShardError, match=r'train-00000\.tar is corrupt.*first at entry "000000007"'):
        found.verify()


def test_verify_passes_and_reports_progress(shard_set):
    done = []
    shard_set.verify(done.append)
    assert done == [shard.bytes for shard in shard_set.shards]


def test_missing_shard(copy):
    (copy / "train-00002.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00002\.tar"):
        ShardSet.open([copy])


def test_shard_that_vanishes_or_shrinks_while_in_use(copy):
    found = ShardSet.open([copy])
    path = copy / "train-00001.tar"
    os.truncate(path, 5000)
    with pytest.raises(ShardError, match='truncated at entry "000000039"'):
        found.read(39)
    path.unlink()
    with pytest.raises(ShardError, match=r"Cannot read entry .*train-00001\.tar"):
        found.read(20)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 9, "shards": []}', '{"schema": 1, "shards": [{}]}'])
def test_unusable_index(copy, content):
    (copy / "index.json").write_text(content)
    with pytest.raises(ShardError, match=r"index\.json cannot be used"):
        ShardSet.open([copy])


def test_index_cannot_point_outside_its_folder(copy):
    index = json.loads((copy / "index.json").read_text())
    index["shards"][0]["name"] = "../train-00000.tar"
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match="leaves the folder"):
        ShardSet.open([copy])


def test_nothing_there(tmp_path):
    with pytest.raises(ShardError, match="ablate data demo"):
        ShardSet.open([tmp_path / "none"])
    with pytest.raises(ShardError, match=r"No \.tar shard"):
        ShardSet.open([tmp_path])
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(ShardError, match="No sample"):
        ShardSet.open([tmp_path])
