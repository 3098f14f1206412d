"""Remote shards: what arrives is what was sent, the cache keeps to its size and its folder, breaks are mended."""

import functools
import http.server
import json
import multiprocessing
import random
import shutil
import threading
import time
from collections import Counter

import fsspec
import numpy as np
import pytest

from ablate.core.errors import UserError
from ablate.core.locks import exclusive
from datamodules.config import DataConfig
from datamodules.errors import ShardError
from datamodules.llava import LlavaDataModule
from datamodules.order.mixture import Source
from datamodules.shards import remote
from datamodules.shards.check import check_shards
from datamodules.shards.paths import is_remote
from datamodules.shards.reader import ShardSet
from datamodules.shards.remote import ShardCache


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` holds, per file name, what goes wrong with the next requests."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        fault = self.server.faults[name].pop(0) if self.server.faults.get(name) else None
        if fault == "error":
            self.send_error(503)
        elif fault is None:
            super().do_GET()
        else:
            data = bytearray((self.server.folder / name).read_bytes())
            data[700] ^= 1
            body = bytes(data) if fault == "damaged" else bytes(data[: len(data) // 2])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if fault == "broken" else len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shard_folder, tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(shard_folder, folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.asked, server.faults, server.folder = Counter(), {}, folder
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def in_memory(shard_folder):
    store = fsspec.filesystem("memory")
    for path in shard_folder.iterdir():
        store.pipe(f"/bucket/train/{path.name}", path.read_bytes())
    yield "memory://bucket/train"
    store.rm("/bucket", recursive=True)


def sizes(shard_folder):
    return [shard["bytes"] for shard in json.loads((shard_folder / "index.json").read_text())["shards"]]


def kept(cache: ShardCache) -> int:
    return sum(size for _, _, size in remote._kept(cache.folder))


def assert_same_samples(far: ShardSet, near: ShardSet, order=None):
    assert (len(far), far.digest) == (len(near), near.digest)
    for index in range(len(near)) if order is None else order:
        assert far.key(index) == near.key(index)
        assert far.read(index) == near.read(index)


@pytest.mark.parametrize("where", ["http", "memory"])
def test_remote_samples_are_the_local_ones(server, in_memory, shard_set, tmp_path, where):
    cache = ShardCache(tmp_path / "cache")
    far = ShardSet.open([server.url if where == "http" else in_memory], cache)
    assert kept(cache) == 0  # nothing is fetched before it is needed
    assert_same_samples(far, shard_set)
    if where == "http":
        assert max(server.asked.values()) == 1
        again = ShardSet.open([server.url], cache)
        assert_same_samples(again, shard_set)
        assert server.asked == {"index.json": 2} | {shard.path.name: 1 for shard in shard_set.shards}


def test_a_single_shard(server, shard_set, tmp_path):
    far = ShardSet.open([f"{server.url}/train-00001.tar"], ShardCache(tmp_path / "cache"))
    assert [shard.path.name for shard in far.shards] == ["train-00001.tar"]
    assert far.read(0).key == shard_set.read(20).key
    with pytest.raises(ShardError, match=r"none\.tar is not in the index\.json next to it"):
        ShardSet.open([f"{server.url}/none.tar"], ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize("fault", ["error", "damaged", "cut", "broken"])
def test_what_goes_wrong_once_is_mended(server, shard_set, tmp_path, fault):
    server.faults = {"train-00000.tar": [fault, fault]}
    far = ShardSet.open([server.url], ShardCache(tmp_path / "cache"))
    assert far.read(0) == shard_set.read(0)
    assert server.asked["train-00000.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "said"), [("error", "503"), ("damaged", "what arrives is not what"), ("cut", "bytes")]
)
def test_what_stays_wrong_is_named_and_not_kept(server, tmp_path, fault, said):
    server.faults = {"train-00002.tar": [fault] * 99}
    cache = ShardCache(tmp_path / "cache")
    far = ShardSet.open([server.url], cache)
    with pytest.raises(ShardError, match=rf"train-00002\.tar, in 5 attempts: .*{said}"):
        far.read(45)
    assert server.asked["train-00002.tar"] == 5
    assert kept(cache) == 0


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(ShardError, match=r"nowhere/index\.json: the file does not exist"):
        ShardSet.open([f"{server.url}/nowhere"], ShardCache(tmp_path / "cache"))
    far = ShardSet.open([server.url], ShardCache(tmp_path / "cache"))
    (server.folder / "train-00000.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00000\.tar: the file does not exist"):
        far.read(0)
    assert server.asked["index.json"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../evil.tar"},
        {"name": "/etc/evil.tar"},
        {"name": ".."},
        {"name": ".part"},
        {"sha256": "../../../../evil"},
        {"sha256": "ab" * 31},
        {"bytes": 0},
        {"bytes": -5},
    ],
)
def test_an_index_that_means_harm_is_refused(server, tmp_path, change):
    path = server.folder / "index.json"
    index = json.loads(path.read_text())
    index["shards"][1] |= change
    path.write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"index\.json cannot be used"):
        ShardSet.open([server.url], ShardCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_an_index_that_lies_about_sizes_fills_no_disk(server, tmp_path):
    """A shard that goes on after its stated end is not read on."""
    path = server.folder / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0]["bytes"] -= 512  # of the zeros at its end
    path.write_text(json.dumps(index))
    cache = ShardCache(tmp_path / "cache")
    with pytest.raises(ShardError, match=f"of {index['shards'][0]['bytes']} bytes"):
        ShardSet.open([server.url], cache).read(0)
    assert kept(cache) == 0


def test_the_cache_keeps_to_its_size_and_forgets_what_was_not_read_for_longest(server, shard_set, tmp_path):
    first, second, third, last = (shard.bytes for shard in shard_set.shards)
    cache = ShardCache(tmp_path / "cache", limit_bytes=first + second + third)
    far = ShardSet.open([server.url], cache)
    for index in (0, 20, 40, 0, 60):  # the fourth shard drives out the second, not read for longest
        assert far.read(index) == shard_set.read(index)
        assert kept(cache) <= cache.limit_bytes
        time.sleep(0.02)
    assert {path.name for path in cache.folder.glob("[0-9a-f]*/*")} == {
        "train-00000.tar",
        "train-00002.tar",
        "train-00003.tar",
    }
    assert last < first


def test_a_cache_too_small_for_a_shard(server, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_bytes is 1000, but a shard"):
        ShardSet.open([server.url], ShardCache(tmp_path / "cache", limit_bytes=1000))


def _read_all(url, folder, limit, seed, queue):
    far = ShardSet.open([url], ShardCache(folder, limit))
    order = np.random.default_rng(seed).permutation(len(far))
    queue.put([far.read(int(index)).key for index in order] == [far.key(int(index)) for index in order])


def test_processes_share_a_cache_that_holds_two_shards(server, shard_set, tmp_path):
    limit = 2 * max(shard.bytes for shard in shard_set.shards)
    context = multiprocessing.get_context("fork")
    queue, cache = context.Queue(), ShardCache(tmp_path / "cache", limit)
    readers = [context.Process(target=_read_all, args=(server.url, cache.folder, limit, n, queue)) for n in range(3)]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        with exclusive(cache.folder / ".room.lock"):  # or a shard that goes and one that comes are both seen
            assert kept(cache) <= limit
        time.sleep(0.005)
    assert [queue.get(timeout=5) for _ in readers] == [True] * 3


def test_processes_that_need_one_shard_fetch_it_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (server.url, tmp_path / "cache", 0, 0, queue)
    readers = [context.Process(target=_read_all, args=arguments) for _ in range(4)]
    for reader in readers:
        reader.start()
    assert [queue.get(timeout=30) for _ in readers] == [True] * 4
    assert {name: n for name, n in server.asked.items() if name != "index.json"} == {
        f"train-0000{n}.tar": 1 for n in range(4)
    }


def test_readers_killed_while_they_fetch_leave_a_cache_that_works(server, shard_set, tmp_path):
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    limit = 2 * max(shard.bytes for shard in shard_set.shards)
    for seed in range(8):
        reader = context.Process(target=_read_all, args=(server.url, tmp_path / "cache", limit, seed, context.Queue()))
        reader.start()
        reader.join(draw.uniform(0.005, 0.08))
        reader.kill()
        reader.join()
    far = ShardSet.open([server.url], ShardCache(tmp_path / "cache", limit))
    assert_same_samples(far, shard_set)
    assert kept(ShardCache(tmp_path / "cache")) <= limit


# Through the data module


def module(url, tmp_path, tokenizer, **settings):
    settings = {"shards": [url], "batch_size": 8, "cache_dir": str(tmp_path / "cache")} | settings
    data = LlavaDataModule(DataConfig(**settings))
    data.connect(tokenizer, [], 6)
    return data


@pytest.mark.parametrize(("num_workers", "room"), [(0, 2), (2, 2), (2, 4)])
def test_batches_from_afar_are_those_from_here(server, shard_folder, tokenizer, tmp_path, num_workers, room):
    settings = {"block_shards": 1, "num_workers": num_workers, "cache_bytes": room * max(sizes(shard_folder))}
    settings["batch_size"] = 4
    far = module(server.url, tmp_path, tokenizer, **settings).train_dataloader()
    near = module(str(shard_folder), tmp_path, tokenizer, **settings).train_dataloader()
    assert [batch["keys"] for batch in far] == [batch["keys"] for batch in near]
    # Workers read several steps at once, as many shards apart as their speeds make it: those that a cache of two has
    # dropped meanwhile come again.
    if room == 4 or not num_workers:
        assert fetches(server) == {1}


def test_an_order_that_would_fetch_again_and_again_is_refused(server, shard_folder, tokenizer, tmp_path):
    largest = max(sizes(shard_folder))
    with pytest.raises(UserError, match=r"shuffle samples of all shards.*Set data\.block_shards=1"):
        module(server.url, tmp_path, tokenizer, cache_bytes=2 * largest)
    with pytest.raises(UserError, match=r"blocks of 2 shards.*Set data\.block_shards=1"):
        module(server.url, tmp_path, tokenizer, cache_bytes=2 * largest, block_shards=2)
    with pytest.raises(UserError, match=r"again and again.*Raise data\.cache_bytes"):
        module(server.url, tmp_path, tokenizer, cache_bytes=largest)
    module(server.url, tmp_path, tokenizer, cache_bytes=largest, shuffle=False)
    module(server.url, tmp_path, tokenizer, cache_bytes=sum(sizes(shard_folder)))


def test_verifying_fetches_all(server, shard_set, tokenizer, tmp_path):
    module(server.url, tmp_path, tokenizer, verify_checksums=True)
    assert kept(ShardCache(tmp_path / "cache" / "shards")) == sum(shard.bytes for shard in shard_set.shards)


def test_sources_near_and_far_are_mixed(server, shard_folder, tokenizer, tmp_path):
    """Their shards have the same names; an epoch has half of the far ones, the next one the other half."""
    sources = [Source([str(shard_folder)], 1.0), Source([server.url], 0.5)]
    far = module(server.url, tmp_path, tokenizer, sources=sources, block_shards=2, cache_bytes=2**20)
    near_sources = [Source([str(shard_folder)], 1.0), Source([str(server.folder)], 0.5)]
    near = module(str(shard_folder), tmp_path, tokenizer, sources=near_sources, block_shards=2)
    loaders = [far.train_dataloader(), near.train_dataloader()]
    fetched = set()
    for epoch in range(2):
        for loader in loaders:
            loader.set_epoch(epoch)
        batches = [[[key.rpartition("/")[2] for key in batch["keys"]] for batch in loader] for loader in loaders]
        assert batches[0] == batches[1]
        assert sum(map(len, batches[0])) == 61 + 31
        loaders[0].set_epoch(epoch + 10)  # other passes; and back again
        loaders[0].set_epoch(epoch)
        keys = {
            key for batch in loaders[0] for key in batch["keys"] if key.startswith(f"127.0.0.1:{server.server_port}/")
        }
        assert len(keys) == 31
        fetched |= keys
    assert len(fetched) == 61
    assert max(asked for name, asked in server.asked.items() if name != "index.json") == 1


# Checking and showing


def test_a_remote_folder_is_checked_and_not_kept(server, tmp_path):
    cache = ShardCache(tmp_path / "cache")
    report = check_shards(server.url, cache=cache)
    assert (report.shards, report.samples, report.images, report.problems) == (4, 61, 48, [])
    assert kept(cache) == 0
    with cache.shards([server.url])[0].open():
        pass
    one = check_shards(f"{server.url}/train-00000.tar", cache=cache, fast=True)
    assert (one.shards, one.samples, one.problems) == (1, 20, [])
    assert [path.name for path in cache.folder.glob("[0-9a-f]*/*")] == ["train-00000.tar"]  # was there before
    with pytest.raises(UserError, match="no cache"):
        check_shards(server.url)


def test_all_that_is_wrong_far_away_is_listed(server, tmp_path):
    (server.folder / "train-00001.tar").unlink()
    server.faults = {"train-00002.tar": ["damaged"] * 99}
    report = check_shards(server.url, cache=ShardCache(tmp_path / "cache"), workers=2)
    assert [(problem.shard, problem.what.rpartition(": ")[2][:19]) for problem in report.problems] == [
        ("train-00001.tar", "the file does not e"),
        ("train-00002.tar", "what arrives is not"),
    ]
    assert report.samples == 21


# Mistakes


def test_urls(tmp_path):
    assert all(map(is_remote, ("s3://bucket/a", "HTTPS://host/a", "simplecache::s3://bucket/a")))
    assert not any(map(is_remote, ("data/train", "/data/a:b", "C:/data")))
    cache = ShardCache(tmp_path)
    with pytest.raises(UserError, match=r"No file system for s33://bucket.*http"):
        ShardSet.open(["s33://bucket/train"], cache)
    for url in ("https://host/a?token=secret", "simplecache::https://host/a"):
        with pytest.raises(UserError, match="plain URL") as error:
            ShardSet.open([url], cache)
        assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="no cache"):
        ShardSet.open(["https://host/a"])


def test_passwords_are_not_told(tmp_path):
    with pytest.raises(ShardError) as error:
        ShardSet.open(["http://name:secret@127.0.0.1:9/a"], ShardCache(tmp_path))
    assert "secret" not in str(error.value)
    assert "127.0.0.1:9/a/index.json" in str(error.value)


def test_a_missing_package_is_told_with_the_command(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"pip install 'ablate\[s3\]'"):
        ShardSet.open(["s3://bucket/train"], ShardCache(tmp_path))


# Fetching ahead


def test_shards_are_fetched_before_they_are_read(server, shard_folder, tokenizer, tmp_path):
    """A batch of the first block is enough for the second block to come; the third waits until the second is begun."""
    settings = {"block_shards": 1, "cache_bytes": 2 * max(sizes(shard_folder)), "batch_size": 4}
    loader = module(server.url, tmp_path, tokenizer, **settings).train_dataloader()
    order = [use.shard.path.name for use in uses_of(loader)]
    batches = iter(loader)
    next(batches)
    assert _arrives(lambda: server.asked[order[1]] == 1)
    assert server.asked[order[2]] == 0
    batches.close()


def test_a_shard_that_cannot_be_fetched_ahead_is_its_readers_error(server, shard_folder, tokenizer, tmp_path):
    settings = {"block_shards": 1, "cache_bytes": 2 * max(sizes(shard_folder)), "batch_size": 4}
    loader = module(server.url, tmp_path, tokenizer, **settings).train_dataloader()
    second = uses_of(loader)[1].shard.path.name
    server.faults = {second: ["error"] * 99}
    with pytest.raises(ShardError, match=second):
        list(loader)
    assert loader.handed_out > 0


def _arrives(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_uses(shard_set):
    """Shards of 20, 20, 20 and 1."""
    uses = shard_set.uses([(45, 3), (44, 60), (25,), (0, 26)])
    first, second, third, fourth = shard_set.shards
    assert [(use.first, use.last) for use in uses] == [(0, 1), (0, 3), (1, 1), (2, 3)]
    assert [use.shard for use in uses] == [third, first, fourth, second]
    assert shard_set.uses([]) == []


def uses_of(loader):
    return loader.dataset.shards.uses([step.samples for step in loader.steps])


def bounded(server, tmp_path, tokenizer, batch_size, seed):
    """A loader whose cache holds the shards of any step and one more: two large ones and the small one."""
    limit = 2 * max(sizes(server.folder)) + min(sizes(server.folder))
    settings = {"block_shards": 1, "cache_bytes": limit, "batch_size": batch_size}
    data = LlavaDataModule(DataConfig(shards=[server.url], cache_dir=str(tmp_path / "cache"), **settings), seed=seed)
    data.connect(tokenizer, [], 6)
    return data.train_dataloader()


def fetches(server) -> set[int]:
    return {asked for name, asked in server.asked.items() if name != "index.json"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
def test_a_slow_reader_s_shards_are_not_driven_out(server, tokenizer, tmp_path, batch_size, seed):
    """Between two steps the thread has all the time it wants: the next shard that fits is there before a step is asked
    for. Shards that were fetched ahead but not read yet must not make room for it."""
    loader = bounded(server, tmp_path, tokenizer, batch_size, seed)
    uses, limit = uses_of(loader), loader.dataset.shards.shards[0].cache.limit_bytes
    for done, _ in enumerate(loader, start=1):
        for place, use in enumerate(uses[1:], start=1):
            needed = [each.shard.bytes for each in uses[: place + 1] if each.last >= done]
            if done < uses[place - 1].first or sum(needed) > limit:
                break
            assert _arrives(lambda use=use: server.asked[use.shard.path.name] >= 1)
        assert kept(loader.dataset.shards.shards[0].cache) <= limit
    assert fetches(server) == {1}


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_slow_fetcher_fetches_nothing_that_was_read_already(server, tokenizer, tmp_path, monkeypatch, late):
    """The thread stops before its first, second or third shard until the epoch is over, and then goes on."""
    loader = bounded(server, tmp_path, tokenizer, 4, 0)
    over, fetch, begun, ended = threading.Event(), ShardCache.fetch, [], []

    def slow(self, shard, *wanted):
        if threading.current_thread().name != "fetch shards ahead":
            return fetch(self, shard, *wanted)
        begun.append(shard)
        if len(begun) == late + 1:
            assert over.wait(60)
        try:
            return fetch(self, shard, *wanted)
        finally:
            ended.append(shard)

    monkeypatch.setattr(ShardCache, "fetch", slow)
    batches = iter(loader)
    keys = [next(batches)["keys"] for _ in range(len(loader))]  # the generator has not ended, nor the thread
    over.set()
    assert _arrives(lambda: len(ended) == 4)
    batches.close()
    assert sum(map(len, keys)) == 61
    assert fetches(server) == {1}
