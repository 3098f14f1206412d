"""Whatever is given as shards is taken, or named for what it is."""

import bz2
import gzip
import http.server
import json
import lzma
import os
import shutil
import threading
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.core.errors import UserError
from datamodules.errors import ShardError
from datamodules.shards.check import check_shards
from datamodules.shards.paths import expand
from datamodules.shards.reader import ShardSet
from datamodules.shards.remote import ShardCache

TARS = [f"train-0000{number}.tar" for number in range(4)]


@pytest.fixture(params=["indexed", "scanned"])
def folder(request, shard_folder, tmp_path, monkeypatch):
    """Four shards in `d` below the working folder."""
    shutil.copytree(shard_folder, tmp_path / "d")
    if request.param == "scanned":
        (tmp_path / "d" / "index.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "d"


def names(*given) -> list[str]:
    return [shard.path.name for shard in ShardSet.open(given).shards]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d", TARS),
        ("d/", TARS),
        ("~/d", TARS),
        ("d/index.json", TARS),
        ("d/train-{00000..00003}.tar", TARS),
        ("d/train-0000{0..3}.tar", TARS),
        ("d/train-0000{3,0}.tar", [TARS[3], TARS[0]]),
        ("d/train-0000{1..2}.tar", TARS[1:3]),
        ("d/train-*.tar", TARS),
        ("d/train-0000?.tar", TARS),
        ("d/train-0000[01].tar", TARS[:2]),
        ("*/*.tar", TARS),
        ("**/*.tar", TARS),
        ("d/*", TARS),
        ("{d,d}/train-0000[0-1].tar", TARS[:2]),
        ("?", TARS),
    ],
)
def test_patterns_are_taken(folder, pattern, found):
    if pattern == "d/index.json" and not (folder / "index.json").is_file():
        pytest.skip("there is none")
    assert names(pattern) == found
    report = check_shards(pattern)
    assert (report.shards, [p for p in report.problems if p.what != "the key comes more than once"]) == (len(found), [])


def test_a_path_that_exists_is_that_path_whatever_it_is_called(folder):
    for name in ("a{0..1}.tar", "b*.tar", "c[0].tar", "d?.tar", "e{.tar"):
        shutil.copy(folder / TARS[3], folder.parent / name)
        assert names(name) == [name]


def test_hidden_files_are_no_shards(folder):
    (folder / "._train-00000.tar").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (folder / ".hidden.tar").write_bytes(b"x")
    assert names("d") == names("d/*") == names("d/*.tar") == TARS
    assert check_shards("d").problems == []


def test_an_index_is_read_once_for_all_that_a_pattern_stands_for(folder, monkeypatch):
    ShardSet.open(["d"])
    from datamodules.shards import reader as shards

    calls, read = [], shards.read_index
    monkeypatch.setattr(shards, "read_index", lambda folder: calls.append(folder) or read(folder))
    assert names("d/*.tar") == TARS
    assert len(calls) == 1


def packed(folder, suffix):
    data = (folder / TARS[0]).read_bytes()
    ways = {"gz": gzip.compress, "tgz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    zstd = b"\x28\xb5\x2f\xfd" + data[:100]
    return ways[suffix](data) if suffix in ways else zstd


@pytest.mark.parametrize(
    ("suffix", "command"),
    [("gz", "gunzip -k"), ("tgz", "gunzip -k"), ("bz2", "bunzip2 -k"), ("xz", "unxz -k"), ("zst", "zstd -d")],
)
def test_compressed_shards_are_named(folder, tmp_path, suffix, command):
    name = "a.tgz" if suffix == "tgz" else f"a.tar.{suffix}"
    other = tmp_path / "packed"
    other.mkdir()
    (other / name).write_bytes(packed(folder, suffix))
    for given_ in (f"packed/{name}", "packed", "packed/*", "packed/a.t*"):
        for use in (names, check_shards):
            if use is names and suffix in ("gz", "tgz"):  # unpacked where there is a cache: test_streams.py
                with pytest.raises(UserError, match="compressed, and there is no cache"):
                    use(given_)
                continue
            with pytest.raises(ShardError, match=rf"archive: unpack it with {command} packed/{name}"):
                use(given_)
    if suffix != "tgz":
        with pytest.raises(ShardError, match=rf"there is {name}\. Decompress"):
            names("packed/a.tar")
    (other / "b.tar").write_bytes(packed(folder, suffix))  # by its content, whatever its name says
    with pytest.raises(ShardError, match=rf"archive: unpack it with {command} packed/b\.tar"):
        names("packed/b.tar")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mix.json", b'[{"id": 1}]', r"is JSON and no shard.*ablate data shard"),
        ("mix.jsonl", b'{"id": 1}\n', r"is JSON and no shard.*ablate data shard"),
        ("a.parquet", b"PAR1xxxx", r"is no shard but a Parquet table.*ablate data shard"),
        ("a.zip", b"PK\x03\x04xx", r"is no shard but a ZIP archive"),
        ("a.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"git-lfs pointer.*git lfs pull"),
        ("a.tar", b"<!DOCTYPE html><html>", r"a web page.*download the file itself"),
        ("a.tar", b"", r"truncated or corrupt after its start: empty file"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError, match=said):
        names(tmp_path / name)
    if content:  # what is damaged is listed, not raised
        with pytest.raises(ShardError, match=said):
            check_shards(tmp_path / name)


def test_folders_without_shards_are_described(folder, tmp_path):
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "mix.json").write_text("[]")
    with pytest.raises(ShardError, match=r"but mix\.json\. Make shards .*`ablate data shard`"):
        names("llava")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "x").symlink_to(folder)
    with pytest.raises(ShardError, match=r"Shards are in its folders x: give those, or up/\*"):
        names("up")
    assert names("up/*") == TARS


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("d/none-*.tar", r"Nothing matches d/none-\*\.tar"),
        ("d/train-{00000..00009}.tar", r"6 of the 10 files of d/train-.* are not there\. The first: d/train-00004"),
        ("d/train-{00000..00003.tar", r"braces do not pair"),
        ("d/{0..999999999999}.tar", r"stands for more than 100,000 paths"),
        ("{0..999}{0..999}.tar", r"stands for more than 100,000 paths"),
        ("pipe:cat d/a.tar", r"a command, which runs in a shell.*data\.allow_pipe"),
        ("https://host/train-*.tar", r"a URL's folder cannot be listed"),
        ("https://host/a.tar.bz2", r"https://host/a\.tar\.bz2 is compressed"),
        ("s3://bucket/{a,b}.zip", r"s3://bucket/a\.zip is compressed"),
        ("https://host/mix.json", r"no shard.*ablate data shard"),
        ("d/train-00000.tar,d/train-00001.tar", r"Several are a list: data\.shards=\[a,b\]"),
        ("nowhere", r"No shards at nowhere.*ablate data demo"),
    ],
)
def test_what_stands_for_nothing_is_named(folder, pattern, said):
    cache = ShardCache(folder.parent / "cache")
    with pytest.raises(UserError, match=said):
        ShardSet.open([pattern], cache)
    with pytest.raises(UserError, match=said):
        check_shards(pattern, cache=cache)


@settings(deadline=None)
@given(st.text("ab{},.0123456789*?[]/-~:", max_size=30))
def test_any_text_is_expanded_or_refused(text):
    try:
        assert all(isinstance(place, str) for place in expand(text))
    except UserError as error:
        str(error).encode()


def test_braces_in_urls(shard_folder, shard_set, tmp_path):
    asked = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked[os.path.basename(self.path)] += 1
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(shard_folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        far = ShardSet.open([f"{url}/train-{{00000..00003}}.tar"], ShardCache(tmp_path / "cache"))
        assert far.digest == shard_set.digest
        assert asked == {"index.json": 1}
        assert far.read(45) == shard_set.read(45)
        assert len(ShardSet.open([f"{url}/index.json"], ShardCache(tmp_path / "cache"))) == 61
        with pytest.raises(ShardError, match=r"train-00004\.tar is not in the index\.json"):
            ShardSet.open([f"{url}/train-{{00000..00004}}.tar"], ShardCache(tmp_path / "cache"))
    finally:
        server.shutdown()


def test_several_shards_as_a_shell_expands_them(folder, capsys):
    from ablate import cli

    assert cli.main(["data", "check", "d/train-00000.tar", "d/train-00003.tar", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 21
