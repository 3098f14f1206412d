"""Tar files of every kind, against Python's `tarfile`: a shard holds what that reads, or is refused."""

import io
import json
import re
import tarfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules.check_shards import check_shards
from datamodules.config import DataConfig
from datamodules.errors import ShardError
from datamodules.llava import LlavaDataModule
from datamodules.shard_index import HIDDEN, MAX_MEMBER_BYTES, MAX_NAME, MAX_SUFFIXES, OTHERS, READ_SUFFIXES, scan_shard
from datamodules.shards import ShardSet

TURNS = [{"from": "human", "value": "four"}, {"from": "gpt", "value": "two"}]
TEXT = json.dumps({"id": "a", "conversations": TURNS}).encode()
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
BLOCK = bytes(512)


def member(name: str, data: bytes = b"", form: str = "gnu", **fields) -> bytes:
    """Headers and padded data of one member; `v7` is ustar's header without its magic."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    header = info.tobuf(FORMATS.get(form, tarfile.USTAR_FORMAT), "utf-8", "surrogateescape")
    if form == "v7":
        header = _with_checksum(header[:257] + bytes(255))
    return header + data + bytes(-len(data) % 512)


def _with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def numbered(first: int, last: int, form: str = "gnu") -> bytes:
    return b"".join(member(f"{number:03d}.json", TEXT, form) for number in range(first, last))


def keys(path) -> list[str]:
    return scan_shard(path).columns["key"].tolist()


def is_read(name: str) -> bool:
    base = name.rpartition("/")[2]
    return not base.startswith((".", "__")) and base.partition(".")[2].lower() in READ_SUFFIXES


def by_tarfile(data: bytes) -> set[tuple[int, int]]:
    """(offset, size) of every member that a shard's reader wants, by Python's own reader."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=True) as tar:
        return {(each.offset_data, each.size) for each in tar if each.isreg() and each.size and is_read(each.name)}


def by_scan(path) -> set[tuple[int, int]]:
    columns = scan_shard(path).columns
    pairs = [(f"{kind}_offset", f"{kind}_size") for kind in ("record", "image")]
    found = (zip(columns[offset].tolist(), columns[size].tolist(), strict=True) for offset, size in pairs)
    return {pair for each in found for pair in each if pair[1]}


LONG = ["long/" * 15 + "n" * 60 + ".json", "x" * 300 + ".jpg", "deep/" * 60 + "a.json"]
NAMES = st.sampled_from(
    ["a.json", "a.jpg", "b.json", "b.JPG", "d/._b.jpg", ".DS_Store", "d/x.input.jpg", "é/ü.json", "plain", *LONG]
) | st.from_regex(r"[ab]/?[0-9]{1,2}\.(json|jpg|png|txt)", fullmatch=True)
PARTS = st.one_of(
    st.builds(member, NAMES, st.binary(max_size=1100), st.sampled_from(["gnu", "pax"])),
    st.builds(member, NAMES.filter(lambda name: len(name) < 90 and name.isascii()), st.binary(max_size=600),
              st.sampled_from(["ustar", "v7"])),
    st.integers(1, 4).map(lambda count: BLOCK * count),  # end markers, whole and half
    st.builds(lambda name: member(name, type=tarfile.DIRTYPE), st.sampled_from(["d", "a.json"])),
    st.builds(lambda data: member("a.json", data, "pax", pax_headers={"comment": "x"}), st.binary(max_size=20)),
)  # fmt: skip
GARBAGE = st.sampled_from([b"", b"", b"", b"x", b"\xff" * 512, b"garbage" * 200, bytes(100)])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=300
)
@given(parts=st.lists(PARTS, max_size=8), end=st.integers(0, 3), garbage=GARBAGE, cut=st.integers(0, 1600))
@example(parts=[numbered(0, 3), BLOCK * 2, numbered(3, 6)], end=2, garbage=b"", cut=0)
@example(parts=[numbered(0, 3), BLOCK, numbered(3, 6)], end=1, garbage=b"", cut=0)
@example(parts=[numbered(0, 3)], end=2, garbage=b"\xff" * 512, cut=0)
@example(parts=[member("a.json", TEXT), BLOCK * 2, member("a.jpg", b"x")], end=2, garbage=b"", cut=0)
def test_what_tarfile_reads_is_read_or_the_shard_is_refused(tmp_path, parts, end, garbage, cut):
    data = b"".join(parts) + BLOCK * end + garbage
    data = data[: len(data) - cut] if cut < len(data) else data
    (tmp_path / "a.tar").write_bytes(data)
    try:
        found = by_scan(tmp_path / "a.tar")
    except ShardError:
        return
    assert found == by_tarfile(data)


@pytest.mark.parametrize("zeros", [1, 2, 3, 20, 5000])
@pytest.mark.parametrize("forms", [("gnu", "gnu"), ("pax", "ustar"), ("v7", "pax")])
def test_archives_in_a_row_are_all_read(tmp_path, zeros, forms):
    first, second = forms
    parts = numbered(0, 3, first) + BLOCK * zeros + numbered(3, 6, second) + BLOCK * 2
    (tmp_path / "a.tar").write_bytes(parts)
    assert keys(tmp_path / "a.tar") == [f"{number:03d}" for number in range(6)]
    assert len(ShardSet.open([tmp_path / "a.tar"])) == 6
    assert check_shards(tmp_path / "a.tar").problems == []


def test_tar_files_joined_by_cat(tmp_path):
    for name, numbers in (("a", range(3)), ("b", range(3, 6)), ("c", range(6, 9))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for number in numbers:
                info = tarfile.TarInfo(f"{number}.json")
                info.size = len(TEXT)
                tar.addfile(info, io.BytesIO(TEXT))
    (tmp_path / "all.tar").write_bytes(b"".join((tmp_path / name).read_bytes() for name in "abc"))
    assert keys(tmp_path / "all.tar") == [str(number) for number in range(9)]


def test_an_index_that_missed_the_second_archive_is_found_out(tmp_path):
    (tmp_path / "a.tar").write_bytes(numbered(0, 3) + BLOCK * 2 + numbered(3, 6) + BLOCK * 2)
    ShardSet.open([tmp_path])
    index = json.loads((tmp_path / "index.json").read_text())
    entry = index["shards"][0]
    entry |= {name: values[:3] for name, values in entry.items() if isinstance(values, list)} | {"samples": 3}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert [problem.what for problem in check_shards(tmp_path).problems] == ["it has 6 samples, index.json says 3"]


def test_a_sample_does_not_reach_over_the_seam(tmp_path):
    """The first archive's last sample is text only; the second's first has the same key, and an image."""
    path = tmp_path / "a.tar"
    parts = [member("0.json", TEXT), BLOCK * 2, member("0.jpg", b"image"), member("0.json", TEXT), BLOCK * 2]
    path.write_bytes(b"".join(parts))
    assert scan_shard(path).columns["image_size"].tolist() == [0, 5]
    assert "the key comes more than once" in {problem.what for problem in check_shards(path).problems}


SOUND = numbered(0, 3)


@pytest.mark.parametrize(
    "data",
    [
        SOUND,  # no end marker
        SOUND + b"x" * 512,
        SOUND + BLOCK + b"x" * 512,
        SOUND + BLOCK * 2 + b"x" * 512,
        SOUND + BLOCK * 2 + b"x",
        SOUND + BLOCK * 2 + bytes(7) + SOUND + BLOCK * 2,  # not on a block
        SOUND + BLOCK * 2 + SOUND[:300],
        SOUND + BLOCK * 2 + SOUND,
        SOUND + BLOCK * 2 + _with_checksum(SOUND[:124] + b"x" * 12 + SOUND[136:512]) + BLOCK * 3,
        SOUND[:-1000] + SOUND + BLOCK * 2,
        SOUND[:-100],
        SOUND[:-600],
        SOUND[:100],
        b"",
        b"x" * 1000,
    ],
)
def test_what_is_no_whole_tar_file_is_refused(tmp_path, data):
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"bad\.tar is truncated or corrupt after"):
        scan_shard(tmp_path / "bad.tar")


@pytest.mark.parametrize("zeros", [1, 2, 40])
@pytest.mark.parametrize("tail", [b"", bytes(100)])
def test_any_number_of_zeros_ends_an_archive(tmp_path, zeros, tail):
    (tmp_path / "a.tar").write_bytes(SOUND + BLOCK * zeros + tail)
    assert len(keys(tmp_path / "a.tar")) == 3


@pytest.mark.parametrize("name", [*LONG, "a" * 95 + ".json", "d/" * 70 + "a" * 90 + ".json", "é" * 150 + ".json"])
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names(tmp_path, name, form):
    (tmp_path / "a.tar").write_bytes(member(name, b"{}", form) + BLOCK * 2)
    assert [f"{key}.{suffix}" for key in keys(tmp_path / "a.tar") for suffix in ("json", "jpg")].count(name) == 1


def test_a_name_beyond_all_measure_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(member("n" * MAX_NAME + ".json", b"{}", "pax") + BLOCK * 2)
    with pytest.raises(ShardError, match=r"a name of 1,029 characters, more than 1,024"):
        scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_a_name_that_is_no_text_is_refused_in_words_that_can_be_printed(tmp_path, form):
    name = b"\xff\xfe.json".decode("utf-8", "surrogateescape")
    (tmp_path / "a.tar").write_bytes(SOUND + member(name, b"{}", form) + b"x" * 512)
    for data in (SOUND + member(name, b"{}", form) + b"x" * 512, SOUND + member(name, b"{}", form) + BLOCK * 2):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(ShardError) as error:
            scan_shard(tmp_path / "a.tar")
        str(error.value).encode()


def base256(name: str, size: int, data: bytes = b"") -> bytes:
    header = bytearray(member(name)[:512])
    header[124:136] = bytes([0x80 if size >= 0 else 0xFF]) + size.to_bytes(11, "big", signed=True)
    return _with_checksum(bytes(header)) + data + bytes(-len(data) % 512)


def test_sizes_in_base_256(tmp_path):
    (tmp_path / "a.tar").write_bytes(base256("a.json", 2, b"{}") + SOUND + BLOCK * 2)
    assert len(keys(tmp_path / "a.tar")) == 4
    for size in (-512, 1 << 70, MAX_MEMBER_BYTES + 1):
        (tmp_path / "a.tar").write_bytes(base256("a.json", size, b"{}") + SOUND + BLOCK * 2)
        with pytest.raises(ShardError):
            scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("size", ["2", "600", "-1", "x", "", "1e3", str(1 << 40)])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_size_from_a_pax_header_is_tarfile_s_or_refused(tmp_path, size, kind):
    """A global header's size moves the end of a member, but not the place where `tarfile` looks for the next."""
    record = b"size=" + size.encode() + b"\n"
    record = b"%d " % (len(record) + 2 + (len(record) > 6)) + record
    header = tarfile.TarInfo("x")
    header.size, header.type = len(record), kind
    pax = header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    data = pax + member("a.json", b"{" + b" " * 598 + b"}") + SOUND + BLOCK * 2
    (tmp_path / "a.tar").write_bytes(data)
    try:
        found = by_scan(tmp_path / "a.tar")
    except ShardError:
        return
    assert found == by_tarfile(data)
    assert len(found) == 4


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE, b"V", b"Z"])
@pytest.mark.parametrize("data", [b"", b"linked"])
def test_links_and_other_kinds_are_refused_by_name_wherever_their_data_ends(tmp_path, kind, data):
    part = member("l.json", data, type=kind, linkname="000.json")
    (tmp_path / "a.tar").write_bytes(SOUND + part + numbered(3, 5) + BLOCK * 2)
    if kind == tarfile.CONTTYPE:
        assert len(keys(tmp_path / "a.tar")) == 6
        return
    with pytest.raises(ShardError, match=r"entry 'l\.json' is a link|truncated or corrupt after entry \"l.json\""):
        scan_shard(tmp_path / "a.tar")


def test_sparse_members_are_refused_by_name(tmp_path):
    """GNU's and the three of pax: the bytes on disk are not the file's."""
    old = bytearray(member("s.json", b"{}", type=tarfile.GNUTYPE_SPARSE))
    old[386:398], old[398:410] = b"%011o\0" % 4096, b"%011o\0" % 2
    old[483:495] = b"%011o\0" % 9000
    parts = [_with_checksum(bytes(old[:512])) + bytes(old[512:])]
    for version in ({"GNU.sparse.map": "4096,2"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}):
        headers = {"GNU.sparse.realsize": "9000", "GNU.sparse.size": "9000", "GNU.sparse.name": "s.json"} | version
        data = b"1\n4096\n2\n".ljust(512, b"\0") + b"{}" if "GNU.sparse.major" in version else b"{}"
        parts.append(member("s.json", data, "pax", pax_headers=headers))
    for part in parts:
        (tmp_path / "a.tar").write_bytes(SOUND + part + SOUND + BLOCK * 2)
        with pytest.raises(ShardError, match=r"entry 's\.json' is a link, device or other special file"):
            scan_shard(tmp_path / "a.tar")


# Members that nobody reads


@pytest.mark.parametrize("hidden", ["._000.jpg", "d/._000.jpg", "d/.DS_Store", ".git", "__MACOSX/._000.json"])
def test_hidden_files_are_counted_and_break_no_sample(tmp_path, hidden, make_image):
    parts = [("d/000.jpg", make_image(0)), (hidden, b"x"), ("d/000.json", TEXT), (hidden, b"x"), ("d/001.json", TEXT)]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(member(name, data) for name, data in parts) + BLOCK * 2)
    shard = scan_shard(path)
    assert shard.columns["key"].tolist() == ["d/000", "d/001"]
    assert (shard.columns["image_size"] > 0).tolist() == [True, False]
    assert shard.unread == {HIDDEN: 2}
    assert check_shards(path).problems == []


def test_suffixes_that_are_all_different_are_counted_together(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(member(f"photo.{number}.jpg", b"x") for number in range(500)) + BLOCK * 2)
    unread = scan_shard(path).unread
    assert len(unread) == MAX_SUFFIXES + 1
    assert sum(unread.values()) == 500
    assert unread[OTHERS] == 500 - MAX_SUFFIXES


IMAGE_SUFFIXES = ["input.jpg", "image.jpg", "0.jpg", "gif", "tiff", "jpg.1", "jpg~", "jp2", "JPG.bak"]


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, "txt", "caption", "cls", "jsonl", "json.gz"])
def test_members_that_nobody_reads_are_named_and_an_error(tmp_path, suffix, tokenizer, caplog):
    """The samples are sound text without them, so that nothing else would tell."""
    parts = [(f"{number:03d}.{end}", data) for number in range(20) for end, data in (("json", TEXT), (suffix, b"x"))]
    (tmp_path / "a.tar").write_bytes(b"".join(member(name, data) for name, data in parts) + BLOCK * 2)
    said = rf"20 members of 20 samples are not read: \.{re.escape(suffix.lower())} \(20\)\. Read are \.json, \.jpg, "
    for _ in range(2):  # scanned, and from the index
        with pytest.raises(ShardError, match=said):
            opened(tokenizer, tmp_path)
    for fast in (False, True):
        (problem,) = check_shards(tmp_path, fast=fast).problems
        assert re.search(said, problem.what)
        assert check_shards(tmp_path, fast=fast, ignore_suffixes=[suffix]).problems == []
    for allowed in ({"ignore_suffixes": [f".{suffix}"]}, {"ignore_suffixes": ["*"]}, {"max_bad_share": 1.0}):
        assert len(opened(tokenizer, tmp_path, **allowed)) == 20
    assert f".{suffix.lower()} (20)" in caplog.text


def opened(tokenizer, folder, **settings):
    data = LlavaDataModule(DataConfig(shards=[str(folder)], cache_dir=str(folder / "cache"), **settings))
    data.connect(tokenizer, [], 4)
    return data.shards


def test_a_few_unread_members_are_counted_and_no_error(tmp_path, tokenizer, caplog):
    names = [*(f"{number:03d}.json" for number in range(100)), "099.txt"]
    (tmp_path / "a.tar").write_bytes(b"".join(member(name, TEXT) for name in names) + BLOCK * 2)
    assert len(opened(tokenizer, tmp_path)) == 100
    assert "members that are not read: .txt (1)" in caplog.text
    report = check_shards(tmp_path)
    assert (report.problems, report.unread) == ([], {"txt": 1})


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "Jpeg", "jpg"])
def test_suffixes_are_read_in_any_case(tmp_path, suffix, make_image):
    parts = member("a.JSON", TEXT), member(f"a.{suffix}", make_image(0)), BLOCK * 2
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    report = check_shards(tmp_path)
    assert (report.samples, report.images, report.problems) == (1, 1, [])


def test_samples_that_lack_a_part_are_named(tmp_path, make_image):
    """Images without a record, a record that names an image or says <image> without one, images that come elsewhere."""
    says = json.dumps({"conversations": [{"from": "human", "value": "<image>\nwhat?"}, TURNS[1]]}).encode()
    names = json.dumps({"image": "x/d.jpg", "conversations": TURNS}).encode()
    parts = [("a.jpg", make_image(0)), ("b.jpg", make_image(1)), ("b.txt", b"caption"), ("c.json", says)]
    parts += [("d.json", names), ("e.json", TEXT), ("f.json", TEXT), ("e.jpg", make_image(2))]
    (tmp_path / "a.tar").write_bytes(b"".join(member(name, data) for name, data in parts) + BLOCK * 2)
    report = check_shards(tmp_path, ignore_suffixes=["txt"])
    assert {(problem.entry, problem.what) for problem in report.problems} == {
        ("a", "it has no .json record"),
        ("b", "it has no .json record"),
        ("c", "it says <image> but has no image"),
        ("d", 'its record names the image "x/d.jpg", but the shard has none for it'),
        ("e", "the key comes more than once"),
        ("e", "it has no .json record"),
    }


@pytest.mark.parametrize("unread", [[], "txt", {"txt": -1}, {"txt": "x"}, {"txt": None}])
def test_an_index_with_counts_that_are_none_is_refused(tmp_path, unread):
    (tmp_path / "a.tar").write_bytes(SOUND + BLOCK * 2)
    ShardSet.open([tmp_path])
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["unread"] = unread
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"index\.json cannot be used"):
        ShardSet.open([tmp_path])


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({"images": ["x.jpg"]}, None),
        ({"image": ["x.jpg"]}, None),
        ({"images": ["x.jpg", "y.jpg"]}, "its record names 2 images; a sample has one at most"),
        ({"image": ["x.jpg", "y.jpg"]}, "its record names 2 images; a sample has one at most"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_images_in_a_list(tmp_path, names, what, there, make_image):
    parts = [member("a.json", json.dumps(names | {"conversations": TURNS}).encode())]
    parts += [member("a.jpg", make_image(0))] * there
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + BLOCK * 2)
    if what is None and not there:
        what = 'its record names the image "x.jpg", but the shard has none for it'
    assert [problem.what for problem in check_shards(tmp_path).problems] == [what] * bool(what)
    if what is None:
        assert ShardSet.open([tmp_path]).read(0).record["image"] == "x.jpg"
