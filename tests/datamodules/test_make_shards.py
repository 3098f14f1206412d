"""From annotation files and images to shards: what is kept, what is reported, and kills at any moment."""

import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablate.errors import UserError
from datamodules.check_shards import check_shards
from datamodules.images import CONVERTED, Resize, decode_image, to_rgb
from datamodules.make_shards import KINDS, Progress, ShardSettings, make_shards
from datamodules.shards import ShardSet, write_shards


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def entry(name: str, image: str | None = None, text: str = "what?") -> dict:
    found = {"id": name, "conversations": turns(text, "this")}
    return found | {"image": image} if image else found


@pytest.fixture(scope="module")
def world(tmp_path_factory, samples):
    """The 61 samples as LLaVA ships them: one JSON array, and images in folders."""
    root = tmp_path_factory.mktemp("llava")
    for record, image in samples:
        if image is not None:
            path = root / "images" / record["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    (root / "mix.json").write_text(json.dumps([record for record, _ in samples], indent=2))
    return root


def settings_of(world: Path, **changes) -> ShardSettings:
    return ShardSettings((world / "mix.json",), world / "images", **({"samples_per_shard": 5} | changes))


@pytest.fixture
def make(tmp_path, make_image):
    """Writes entries and the images "a.jpg" and "sub/b.png", and makes shards of them."""

    def run(entries: list, *, workers: int = 1, **changes):
        images = tmp_path / "images"
        (images / "sub").mkdir(parents=True, exist_ok=True)
        (images / "a.jpg").write_bytes(make_image(1))
        (images / "sub" / "b.png").write_bytes(make_image(2, "png"))
        (tmp_path / "in.json").write_text(json.dumps(entries))
        out = tmp_path / "out"
        made = make_shards(ShardSettings((tmp_path / "in.json",), images, **changes), out, workers=workers)
        report = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
        assert made.counts == {kind: count for kind in KINDS if (count := sum(r["kind"] == kind for r in report))}
        assert made.dropped == sum(not line["kept"] for line in report)
        assert made.samples + made.dropped == made.entries == len(entries)
        return ShardSet.open([out]), report

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    make_shards(settings_of(world), folder)
    return content(folder)


def test_samples_are_those_of_the_annotations_bit_for_bit(world, samples, expected, tmp_path):
    made = make_shards(settings_of(world), tmp_path / "out")
    assert (made.samples, made.shards, made.text_only, made.dropped, made.found) == (61, 13, 13, 0, 0)
    found = ShardSet.open([tmp_path / "out"])
    for number, (record, image) in enumerate(samples):
        sample = found.read(number)
        assert (sample.record, sample.image) == (record, image)
    found.verify()
    assert sorted(expected) == sorted([f"train-{i:05d}.tar" for i in range(13)] + ["index.json", "report.jsonl"])


def test_the_library_s_own_writer_makes_the_same_shards(samples, expected, tmp_path):
    write_shards(samples, tmp_path / "out", samples_per_shard=5)
    written = content(tmp_path / "out")
    assert {name: written[name] for name in written if name != "index.json"} == {
        name: expected[name] for name in expected if name.endswith(".tar")
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_changes_nothing(world, expected, tmp_path, workers):
    seen: list[Progress] = []
    make_shards(settings_of(world), tmp_path / "out", workers=workers, progress=seen.append)
    assert content(tmp_path / "out") == expected
    assert seen[-1] == Progress("write", 61, 61)
    assert [each.done for each in seen if each.phase == "write"] == sorted(
        each.done for each in seen if each.phase == "write"
    )


def test_json_lines_and_several_files(world, samples, expected, tmp_path):
    lines = [json.dumps(record) for record, _ in samples]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:20]) + "\n\n")
    (tmp_path / "b.json").write_text(f"[{', '.join(lines[20:])}]")
    settings = ShardSettings((tmp_path / "a.jsonl", tmp_path / "b.json"), world / "images", samples_per_shard=5)
    make_shards(settings, tmp_path / "out")
    made = content(tmp_path / "out")
    assert {name: made[name] for name in made if name.endswith(".tar")} == {
        name: expected[name] for name in expected if name.endswith(".tar")
    }


def test_shards_close_at_their_size(world, tmp_path):
    made = make_shards(settings_of(world, samples_per_shard=1000, max_shard_bytes=10_000), tmp_path / "out")
    assert made.shards > 3
    assert made.samples == 61


# What is left out, and told


def test_every_kind_of_trouble_is_reported_once(make, tmp_path, make_image):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c.jpg").write_bytes(make_image(3))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.jpg").symlink_to(outside / "c.jpg")
    (tmp_path / "images" / "far").symlink_to(outside)
    (tmp_path / "images" / "cut.jpg").write_bytes(make_image(4)[:400])
    (tmp_path / "images" / "text.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "images" / "x.gif").write_bytes(b"GIF89a")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    cases = [
        (entry("0", "a.jpg"), None),
        (entry("1"), None),
        (entry("2", "none.jpg"), "missing_image"),
        (entry("3", "sub"), "missing_image"),
        (entry("4", "pipe.jpg"), "missing_image"),
        (entry("5", "/etc/hostname"), "refused_image"),
        (entry("6", "../outside/c.jpg"), "refused_image"),
        (entry("7", "link.jpg"), "refused_image"),
        (entry("8", "far/c.jpg"), "refused_image"),
        (entry("9", "sub\\b.png"), "refused_image"),
        (entry("10", "a.jpg\0"), "refused_image"),
        (entry("11") | {"image": ["a.jpg", "b.jpg"]}, "refused_image"),
        (entry("12", "cut.jpg"), "unreadable_image"),
        (entry("13", "text.jpg"), "unreadable_image"),
        (entry("14", "x.gif"), "unreadable_image"),
        (entry("15", text="<image> without one"), "bad_conversation"),
        ({"id": "16"}, "bad_conversation"),
        (entry("17") | {"conversations": turns("a", "b", "c")}, "bad_conversation"),
        (["no object"], "bad_entry"),
        (entry("0", "sub/b.png"), "repeated_id"),
        (entry("0", "a.jpg"), "repeated_entry"),
    ]
    found, report = make([each for each, _ in cases])
    assert {line["entry"]: line["kind"] for line in report} == {
        number: kind for number, (_, kind) in enumerate(cases) if kind
    }
    assert [found.key(number).partition(":")[2] for number in range(len(found))] == [
        f"{number:09d}" for number in (0, 1, 19, 20)
    ]
    assert all(line["kept"] == line["kind"].startswith("repeated") for line in report)
    by_entry = {line["entry"]: line for line in report}
    assert "--follow-links" in by_entry[7]["reason"]
    assert "--convert-gif" in by_entry[14]["reason"]
    assert by_entry[2]["image"] == "none.jpg"
    assert by_entry[2]["annotations"] == "in.json"


@pytest.mark.parametrize("key", ["image", "images"])
def test_images_in_a_list_are_taken_if_they_are_one(make, make_image, key):
    entries = [entry("0") | {key: ["a.jpg"]}, entry("1") | {key: ["a.jpg", "sub/b.png"]}, entry("2") | {key: []}]
    found, report = make([*entries, entry("3") | {"images": [{"path": "a.jpg"}]}])
    assert found.read(0).image == make_image(1)
    assert found.read(0).record == entry("0", "a.jpg")
    assert found.read(1).image is None
    assert [(line["entry"], line["kind"]) for line in report] == [(1, "refused_image"), (3, "refused_image")]
    assert "2 images" in report[0]["reason"]


def test_a_missing_image_with_another_suffix_is_told(make, tmp_path):
    _, report = make([entry("0", "a.jpg"), entry("1", "sub/b.jpg")])
    assert "there is b.png" in report[0]["reason"]


def test_links_out_are_followed_where_allowed(make, tmp_path, make_image):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "c.jpg").write_bytes(make_image(3))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "far").symlink_to(tmp_path / "outside")
    found, report = make([entry("0", "far/c.jpg")], follow_links=True)
    assert found.read(0).image == make_image(3)
    assert not report


def test_repeated_entries_are_left_out_where_asked(make):
    found, report = make([entry("0"), entry("0"), entry("0", "a.jpg")], drop_repeated=True)
    assert len(found) == 2
    assert [(line["kind"], line["kept"]) for line in report] == [("repeated_entry", False), ("repeated_id", True)]


def test_gifs_are_converted_where_asked(make, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("P", (9, 7), 3).save(tmp_path / "images" / "x.gif")
    found, _ = make([entry("0", "x.gif")], convert_gif=True)
    image = found.read(0).image
    assert image.startswith(b"\x89PNG")
    assert decode_image(image, key="x").size == (9, 7)


KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def every_format(folder: Path) -> dict[str, str]:
    """A picture in every format that Pillow writes and reads: format -> file, each under a suffix that says nothing."""
    Image.init()
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    written = {}
    for number, kind in enumerate(sorted(Image.SAVE.keys() & Image.OPEN.keys())):
        options = {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]} if kind == "MPO" else {}
        for mode in ("RGB", "P", "L", "1", "F"):
            data = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(data, kind, **options)
            except (OSError, KeyError, ValueError, AttributeError):
                continue  # it has no such mode, or needs a program
            (folder / f"{number}.img").write_bytes(data.getvalue())
            written[kind] = f"{number}.img"
            break
    return written


@pytest.mark.parametrize("resize", [None, "shortest=32"])
def test_every_format_of_pillow_is_kept_converted_or_left_out_by_rule(make, tmp_path, resize):
    files = every_format(tmp_path / "images")
    assert len(files) > 15
    found, report = make(
        [entry(kind, name) for kind, name in files.items()],
        convert_gif=True,
        resize=Resize.parse(resize) if resize else None,
    )
    samples = [found.read(number) for number in range(len(found))]
    kept = {sample.record["id"]: sample.image for sample in samples}
    lines = {line["id"]: line for line in report}
    assert kept.keys() == (KEPT.keys() | set(CONVERTED)) & files.keys()
    for kind, name in files.items():
        original = (tmp_path / "images" / name).read_bytes()
        if kind not in kept:
            assert (lines[kind]["kind"], lines[kind]["kept"]) == ("unreadable_image", False)
            continue
        if kind in KEPT:
            assert kind not in lines
        else:
            assert (lines[kind]["kind"], lines[kind]["kept"]) == ("converted_image", True)
            assert kind in lines[kind]["reason"]
        picture = decode_image(kept[kind], key=kind)
        if resize:
            assert picture.size == (32, 32)
        elif kind in KEPT:
            assert kept[kind] == original
        else:
            assert np.array_equal(picture, to_rgb(Image.open(io.BytesIO(original))))
    for shard in found.shards:
        with tarfile.open(shard.path) as archive:
            names = archive.getnames()
        suffixes = {sample.key.rpartition(":")[2]: KEPT.get(sample.record["id"], "png") for sample in samples}
        assert sorted(names) == sorted(f"{key}.{suffix}" for key, own in suffixes.items() for suffix in (own, "json"))


def test_several_attempts_with_an_mpo_photo_go_through(make, tmp_path, make_image):
    """Phones write them: a JPEG with another picture behind it."""
    (tmp_path / "images").mkdir()
    for name in ("photo.jpg", "photo.mpo"):
        photo = Image.open(io.BytesIO(make_image(7)))
        photo.save(tmp_path / "images" / name, "MPO", save_all=True, append_images=[photo])
    found, report = make([entry("0", "photo.jpg"), entry("1", "photo.mpo")], decode=True)
    assert not report
    for number in (0, 1):
        assert found.read(number).image == (tmp_path / "images" / "photo.jpg").read_bytes()
        assert decode_image(found.read(number).image, key="k").size == (32, 24)
    assert not check_shards(tmp_path / "out", workers=1).problems


def test_damage_in_the_middle_is_found_where_images_are_decoded(make, tmp_path, make_image):
    (tmp_path / "images").mkdir()
    data = make_image(8, "jpg", (96, 80))
    (tmp_path / "images" / "cut.jpg").write_bytes(data[: len(data) // 3] + b"\xff\xd9")
    found, report = make([entry("0"), entry("1", "cut.jpg")], decode=True)
    assert len(found) == 1
    assert "data end before the picture does" in report[0]["reason"]


def test_names_that_lie_about_the_format_are_put_right(make, tmp_path, make_image):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "lie.jpg").write_bytes(make_image(5, "png"))
    found, _ = make([entry("0", "lie.jpg")])
    assert found.read(0).image == make_image(5, "png")
    assert b"000000000.png" in found.shards[0].path.read_bytes()[:100]


def test_images_are_resized_by_the_rule(make, tmp_path, make_image):
    (tmp_path / "images").mkdir()
    for suffix in ("jpg", "png", "webp"):
        (tmp_path / "images" / f"big.{suffix}").write_bytes(make_image(6, suffix, (90, 60)))
    entries = [entry("0", "a.jpg"), *(entry(suffix, f"big.{suffix}") for suffix in ("jpg", "png", "webp"))]
    found, _ = make(entries, resize=Resize.parse("shortest=30"))
    assert found.read(0).image == make_image(1)  # 32 x 24 is small enough
    for number in (1, 2, 3):
        image = found.read(number).image
        assert decode_image(image, key="x").size == (45, 30)
    assert found.read(2).image.startswith(b"\x89PNG")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["made"]["resize"] == {"side": "shortest", "pixels": 30, "quality": 90}


@pytest.mark.parametrize("rule", ["", "384", "shortest=0", "longest=-1", "shortest=1,quality=100", "width=3"])
def test_a_rule_that_is_none(rule):
    with pytest.raises(UserError, match="expected shortest=PIXELS"):
        Resize.parse(rule)


def test_mistakes_are_told(world, make, tmp_path, samples):
    with pytest.raises(UserError, match="No annotations at"):
        make_shards(ShardSettings((tmp_path / "none.json",), world), tmp_path / "x")
    with pytest.raises(UserError, match="not a folder"):
        make_shards(ShardSettings((world / "mix.json",), tmp_path / "none"), tmp_path / "x")
    with pytest.raises(UserError, match=r'None of the 48 images is under .*"photos/1\.png"'):
        make_shards(ShardSettings((world / "mix.json",), world), tmp_path / "x")
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        settings_of(world, samples_per_shard=0)
    write_shards(samples, tmp_path / "other")
    with pytest.raises(UserError, match="is not empty and holds other data"):
        make_shards(settings_of(world), tmp_path / "other")


# Stopped and continued


def test_finished_shards_are_not_made_again(world, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.phase == "write" and progress.done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shards(settings_of(world), out, progress=stop)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    assert len(kept) == 6
    with pytest.raises(UserError, match="samples_per_shard was 5, is 6"):
        make_shards(settings_of(world, samples_per_shard=6), out)
    assert make_shards(settings_of(world), out).found == 6
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert content(out) == expected
    assert not partial.exists()
    again = make_shards(settings_of(world), out)
    assert (again.found, again.samples, again.text_only) == (13, 61, 13)


def test_images_that_changed_since_the_first_attempt_are_noticed(make, tmp_path, make_image):
    with pytest.raises(UserError, match="No entry could be used"):
        make([entry("0", text="<image>")])
    (tmp_path / "in.json").write_text(json.dumps([entry("0")]))
    with pytest.raises(UserError, match="annotations or the images have changed"):
        make_shards(ShardSettings((tmp_path / "in.json",), tmp_path / "images"), tmp_path / "out")


def _kill_while_it_works(settings: ShardSettings, out: Path, workers: int, seconds: float) -> bool:
    """Start, kill -9 after a while; whether it was still at work."""
    process = multiprocessing.get_context("fork").Process(
        target=make_shards, args=(settings, out), kwargs={"workers": workers}
    )
    process.start()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _kill_and_compare(world, expected, tmp_path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    start = time.monotonic()
    make_shards(settings_of(world), tmp_path / "timed")
    whole = time.monotonic() - start
    killed = rounds = 0
    while killed < kills:
        out = tmp_path / f"out-{rounds}"
        rounds += 1
        for _ in range(4):
            workers = generator.choice([1, 2, 3])
            killed += _kill_while_it_works(settings_of(world), out, workers, generator.uniform(0, whole))
        make_shards(settings_of(world), out, workers=2)
        assert content(out) == expected
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_twenty_kills_change_nothing(world, expected, tmp_path):
    _kill_and_compare(world, expected, tmp_path, kills=20, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_kills_change_nothing(world, expected, tmp_path, seed):
    _kill_and_compare(world, expected, tmp_path, kills=50, seed=seed)


def test_a_killed_worker_is_told_and_the_rest_kept(world, expected, tmp_path):
    others = set(multiprocessing.active_children())  # such as loaders' workers that wait for the garbage collector

    def kill(progress: Progress) -> None:
        if progress.phase == "write" and progress.done > 10:
            for child in set(multiprocessing.active_children()) - others:  # one alone may have nothing left to do
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(UserError, match="fewer --workers"):
        make_shards(settings_of(world), tmp_path / "out", workers=2, progress=kill)
    make_shards(settings_of(world), tmp_path / "out", workers=2)
    assert content(tmp_path / "out") == expected
