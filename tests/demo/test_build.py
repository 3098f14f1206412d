"""Building the whole dataset: the same bytes every time, nothing twice, and what goes wrong is said."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablate.core.errors import UserError
from ablate.demo import build as demo
from ablate.demo import evalsets, parts
from ablate.demo.build import build_demo
from ablate.demo.catalogue import Catalogue
from ablate.demo.config import TASKS, DemoConfig, DemoPaths
from ablate.demo.sheet import contact_sheet
from datamodules.shards.reader import ShardSet

MADE = ("train/", "eval/", "tokenizer.json")
SMALL = {"n_train_images": 6, "n_eval_questions": 24, "image_size": 64, "num_workers": 2}


def config(**fields) -> DemoConfig:
    return DemoConfig(**(SMALL | {"pictures": "procedural"} | fields))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Path) -> None:
    _stand_ins(monkeypatch, bytes_tokenizer)


def _stand_ins(patch: pytest.MonkeyPatch, tokenizer: Path) -> None:
    """Tokenizer and encoder are there; Debian is out of reach; the contact sheet, which takes longest, is small."""

    def unreachable(*_) -> None:
        raise parts.PartUnavailable("tuxpaint-stamps-default 1 (Debian): there is no apt-get on this system.")

    patch.setattr(parts, "fetch_tokenizer", lambda folder, progress: tokenizer)
    patch.setattr(parts, "fetch_encoder", lambda folder, progress: folder / "encoder.pth")
    patch.setattr(parts, "fetch_pictures", unreachable)
    patch.setattr(demo, "contact_sheet", lambda plans, catalogue: Image.new("RGB", (8, 8)))


def hashes(root: Path) -> dict[str, str]:
    """Of all files but the lock, the packages and the manifest's own settings."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(root / "parts") and path.name != demo.LOCK_FILE
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, bytes_tokenizer: Path) -> DemoPaths:
    with pytest.MonkeyPatch.context() as patch:
        _stand_ins(patch, bytes_tokenizer)
        return build_demo(tmp_path_factory.mktemp("demo"), config(), str)


def test_two_builds_have_the_same_bytes(tmp_path: Path, built: DemoPaths) -> None:
    again = build_demo(tmp_path / "demo", config(num_workers=1), str)
    assert hashes(again.root) == hashes(built.root)


def test_another_seed_has_other_bytes(tmp_path: Path, built: DemoPaths) -> None:
    again = build_demo(tmp_path / "demo", config(seed=1), str)
    ours, theirs = hashes(again.root), hashes(built.root)
    pictures = [name for name in ours if name.endswith((".jpg", ".tar"))]
    assert pictures
    assert not any(ours[name] == theirs.get(name) for name in pictures)


def test_the_layout(built: DemoPaths) -> None:
    for path in (built.licences, built.contact_sheet, built.manifest, built.tokenizer, built.train / "index.json"):
        assert path.is_file()
    assert sorted(each.name for each in built.eval.iterdir()) == sorted(TASKS)
    assert all((built.task(task) / "groups.json").is_file() for task in TASKS)
    for picture in built.eval.rglob("*.jpg"):
        with Image.open(picture) as image:
            assert image.size == (64, 64)


def test_the_contact_sheet_shows_every_task(shapes: Catalogue) -> None:
    plans = {task: evalsets.plan(task, shapes, config()) for task in TASKS}
    sheet = contact_sheet(plans, shapes)
    rows = np.asarray(sheet.convert("L"), dtype=float).std(axis=1)
    assert sheet.width > 1000
    # Pictures and text down to the last row, and nothing but paper in the margins.
    assert rows[:15].max() == rows[-15:].max() == 0
    assert (rows > 0).mean() > 0.8
    assert contact_sheet(plans, shapes).tobytes() == sheet.tobytes()


def test_the_training_records(built: DemoPaths) -> None:
    shards = ShardSet.open([built.train])
    records = [shards.read(i) for i in range(len(shards))]
    assert len({sample.record["id"] for sample in records}) == len(records) >= SMALL["n_train_images"]
    assert len({hashlib.sha256(sample.image or b"").digest() for sample in records}) == SMALL["n_train_images"]
    for sample in records:
        turns = sample.record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert not any("<image>" in turn["value"] for turn in turns[1:])
        assert all(turn["value"].strip() for turn in turns)


def test_the_manifest(built: DemoPaths) -> None:
    manifest = json.loads(built.manifest.read_text())
    listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert listed == {name: each for name, each in hashes(built.root).items() if name.startswith(MADE)}
    assert manifest["pictures"].startswith("FALLBACK")
    assert "num_workers" not in manifest["config"]
    backgrounds = manifest["split"]["backgrounds"]
    assert not set(backgrounds["train"]) & set(backgrounds["test"])


def test_a_finished_dataset_is_not_touched(tmp_path: Path, built: DemoPaths) -> None:
    root = tmp_path / "demo"
    shutil.copytree(built.root, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != demo.LOCK_FILE}
    told: list[str] = []
    build_demo(root, config(num_workers=1), told.append)
    assert "up to date" in told[-1]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != demo.LOCK_FILE} == before


@pytest.mark.parametrize("damage", ["picture", "manifest", "truncated"])
def test_a_damaged_dataset_is_mended(tmp_path: Path, built: DemoPaths, damage: str) -> None:
    paths = DemoPaths(tmp_path / "demo")
    shutil.copytree(built.root, paths.root)
    picture = next(paths.task("demo_gqa").rglob("*.jpg"))
    if damage == "picture":
        picture.unlink()
    elif damage == "truncated":
        picture.write_bytes(picture.read_bytes()[:100])
    else:
        paths.manifest.write_text("{")
    build_demo(paths.root, config(), str)
    assert hashes(paths.root) == hashes(built.root)


def test_only_what_is_damaged_is_made_again(tmp_path: Path, built: DemoPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, write = DemoPaths(tmp_path / "demo"), demo._write_task
    shutil.copytree(built.root, paths.root)
    next(paths.task("demo_vsr").rglob("*.jpg")).unlink()
    made: list[str] = []
    monkeypatch.setattr(demo, "_write_train", lambda *_: made.append("train"))
    monkeypatch.setattr(demo, "_write_task", lambda paths, task, *rest: (made.append(task), write(paths, task, *rest)))
    build_demo(paths.root, config(), str)
    assert made == ["demo_vsr"]
    assert hashes(paths.root) == hashes(built.root)


def test_other_settings_replace_the_dataset(tmp_path: Path, built: DemoPaths) -> None:
    root = tmp_path / "demo"
    shutil.copytree(built.root, root)
    build_demo(root, config(n_train_images=2), str)
    fresh = build_demo(tmp_path / "fresh", config(n_train_images=2), str)
    assert hashes(root) == hashes(fresh.root)


def test_a_stopped_build_goes_on_where_it_stopped(
    tmp_path: Path, built: DemoPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, write = tmp_path / "demo", demo.evalsets.write_annotations

    def stop(task: str, *arguments) -> None:
        if task == "demo_pope":
            raise KeyboardInterrupt
        write(task, *arguments)

    monkeypatch.setattr(demo.evalsets, "write_annotations", stop)
    with pytest.raises(KeyboardInterrupt):
        build_demo(root, config(), str)
    paths = DemoPaths(root)
    assert not paths.manifest.exists()
    assert paths.task("demo_textvqa").is_dir()
    assert not paths.task("demo_pope").exists()
    monkeypatch.setattr(demo.evalsets, "write_annotations", write)
    monkeypatch.setattr(demo, "_write_train", lambda *_: pytest.fail("the training set was finished already"))
    build_demo(root, config(), str)
    assert hashes(root) == hashes(built.root)


def test_folders_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "train" / "mine.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(UserError, match="a folder train that no build of the demo made"):
        build_demo(tmp_path, config(), str)
    assert precious.read_text() == "years of work"


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on the disk"):
        build_demo(tmp_path / "demo", config(), str)


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the demo dataset"):
        build_demo(tmp_path / "file" / "demo", config(), str)


def test_the_fallback_is_loud(tmp_path: Path) -> None:
    told: list[str] = []
    paths = build_demo(tmp_path / "demo", config(pictures="auto"), told.append)
    assert any("WARNING" in line and "DRAWN SHAPES" in line and "no apt-get" in line for line in told)
    assert "FALLBACK" in told[-1]
    assert json.loads(paths.manifest.read_text())["pictures"].startswith("FALLBACK")


def test_real_pictures_or_an_error(tmp_path: Path) -> None:
    with pytest.raises(parts.PartUnavailable, match="no apt-get"):
        build_demo(tmp_path / "demo", config(pictures="real"), str)


def test_a_corrupt_part_is_never_worked_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*_) -> None:
        raise parts.PartCorrupt("wrong hash")

    monkeypatch.setattr(parts, "fetch_pictures", corrupt)
    with pytest.raises(parts.PartCorrupt):
        build_demo(tmp_path / "demo", config(pictures="auto"), str)


def test_photos(tmp_path: Path, photo_parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With (generated) photos in the places of the real ones."""
    monkeypatch.setattr(parts, "fetch_pictures", lambda folder, progress: None)
    root = tmp_path / "demo"
    shutil.copytree(photo_parts, root / "parts")
    paths = build_demo(root, config(pictures="auto"), str)
    manifest = json.loads(paths.manifest.read_text())
    assert manifest["pictures"] == "real photos"
    for each in manifest["split"]["objects"].values():
        assert not set(each["seen"]) & set(each["unseen"])
    licences = paths.licences.read_text()
    assert "| petra | Somebody | CC0-1.0 |" in licences
    assert all(package.title in licences for package in parts.PACKAGES)


def test_two_builds_at_once_make_one_dataset(tmp_path: Path, built: DemoPaths) -> None:
    told: list[str] = []
    threads = [threading.Thread(target=build_demo, args=(tmp_path / "demo", config(), told.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("is finished" in line for line in told) == 1
    assert sum("up to date" in line for line in told) == 1
    assert hashes(tmp_path / "demo") == hashes(built.root)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_train_images", 0, "n_train_images is 0"),
        ("n_eval_questions", 100, "multiple of 24"),
        ("jpeg_quality", 101, "expected 1 to 100"),
        ("unseen_share", 1.5, "expected 0 to 1"),
        ("pictures", "cartoons", "procedural"),
        ("prompts", "long", "official"),
    ],
)
def test_settings_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**{field: value})


def test_the_settings_import_nothing_heavy() -> None:
    code = "import sys, ablate.demo; print([m for m in ('numpy', 'PIL', 'scipy', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
