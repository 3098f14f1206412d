"""Build the demo dataset: parts, training shards, six test sets, credits and a contact sheet.

    from ablate.demo.build import build_demo
    paths = build_demo(Path("data/demo"), DemoConfig(), print)

Every picture is decided by (seed, split, number) alone, so that the bytes do not depend on the machine's cores or on
what was built before. A folder appears only when it is complete, so an interrupted build resumes;
`manifest.json` is written last, and with the same settings in it nothing needs to be done.
"""

import errno
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ablate.core.errors import UserError
from ablate.core.files import atomic_file, file_sha256, read_json, write_text
from ablate.core.locks import exclusive
from ablate.core.processes import cores
from ablate.demo import evalsets, parts
from ablate.demo.catalogue import Catalogue
from ablate.demo.config import TASKS, DemoConfig, DemoPaths
from ablate.demo.licences import credits_table
from ablate.demo.questions import PROMPTS, Prompts, Turn, training_sample
from ablate.demo.scenes import FONTS_SEEN, FONTS_UNSEEN, WORDS, Scene, render
from ablate.demo.shapes import shapes_catalogue
from ablate.demo.sheet import contact_sheet
from ablate.demo.vocabulary import pruned
from datamodules.shards.reader import ShardSet, write_shards

Progress = Callable[[str], None]

SCHEMA = 8
"""Raised whenever the same settings give another dataset."""
_WAITING = "another process is building {}: waiting for it"
STATE_FILE, LOCK_FILE = ".demo.json", ".demo.lock"


def build_demo(root: Path | str, config: DemoConfig | None = None, progress: Progress = print) -> DemoPaths:
    """Build the demo dataset below `root`, or find it finished.

    Args:
        root: its folder.
        config: what it is made of.
        progress: gets one line at a time.

    Returns:
        The paths of everything.

    Raises:
        UserError: a part cannot be fetched or is not the pinned one (the message names it, what was got and what was
            expected), `root` holds folders that no build of the demo made, or the disk is full.
    """
    config, paths = config or DemoConfig(), DemoPaths(Path(root))
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        with exclusive(paths.root / LOCK_FILE, waiting=lambda: progress(_WAITING.format(paths.root))):
            return _build(paths, config, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"No space left on the disk of {paths.root} (about 1 GB is needed). What is finished is kept: free "
                "some space and run again."
            ) from None
        raise UserError(f"Cannot write the demo dataset below {paths.root}: {error.strerror or error}.") from None


def _build(paths: DemoPaths, config: DemoConfig, progress: Progress) -> DemoPaths:
    full_tokenizer = parts.fetch_tokenizer(paths.parts, progress)
    parts.fetch_encoder(paths.parts, progress)
    manifest = read_json(paths.manifest)
    if _is_current(paths, manifest, config):
        progress(f"{paths.root} is up to date ({manifest['pictures']})")
        return paths
    catalogue = get_catalogue(paths, config, progress)
    _start(paths, config, catalogue)
    _drop_damaged(paths, manifest)
    if not paths.train.is_dir():
        _write_train(paths, catalogue, config, progress)
    plans = {task: evalsets.plan(task, catalogue, config) for task in TASKS}
    for task, images in plans.items():
        if not paths.task(task).is_dir():
            _write_task(paths, task, images, catalogue, config)
        progress(f"{task}: {sum(len(image.asked) for image in images)} questions about {len(images)} pictures")
    texts = _texts(paths, plans, PROMPTS[config.prompts])
    write_text(paths.tokenizer, pruned(full_tokenizer.read_text(encoding="utf-8"), texts))
    write_text(paths.licences, _licences(catalogue))
    _write_contact_sheet(paths, plans, catalogue)
    manifest = _manifest(paths, catalogue, config)
    write_text(paths.manifest, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    progress(f"{paths.root} is finished ({manifest['pictures']})")
    return paths


def _start(paths: DemoPaths, config: DemoConfig, catalogue: Catalogue) -> None:
    """Keep what a stopped build of the same dataset has finished; remove what a build of another one left."""
    state = {"schema": SCHEMA, "config": _settings(config), "pictures": catalogue.kind}
    path = paths.root / STATE_FILE
    if read_json(path) == state:
        return
    ours = path.is_file() or paths.manifest.is_file()
    there = [folder for folder in (paths.train, paths.eval) if folder.exists()]
    if there and not ours:
        raise UserError(
            f"{paths.root} has a folder {there[0].name} that no build of the demo made. Choose another root for the "
            "demo, or move that folder away."
        )
    # From here on the dataset is unfinished, even if it was complete before.
    paths.manifest.unlink(missing_ok=True)
    for folder in there:
        shutil.rmtree(folder)
    write_text(path, json.dumps(state) + "\n")


def get_catalogue(paths: DemoPaths, config: DemoConfig, progress: Progress) -> Catalogue:
    """The photos, or the drawn shapes where they were asked for or nothing else is within reach."""
    if config.pictures != "procedural":
        try:
            parts.fetch_pictures(paths.parts, progress)
            return parts.load_photos(paths.parts)
        except parts.PartUnavailable as error:
            if config.pictures == "real":
                raise
            progress(
                f"WARNING: {error}\nWARNING: the demo falls back to DRAWN SHAPES instead of photos. Tasks and files "
                "are the same, scores are not comparable with those on photos. pictures=real makes this an error."
            )
    return shapes_catalogue(config.seed)


# -- Training ----------------------------------------------------------------------------------------------------------


def _write_train(paths: DemoPaths, catalogue: Catalogue, config: DemoConfig, progress: Progress) -> None:
    def sample(number: int) -> tuple[bytes, list[list[Turn]]]:
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0, number]))
        scene, conversations = training_sample(catalogue, rng, config.conversations_per_image, PROMPTS[config.prompts])
        return draw(scene, catalogue, config), conversations

    def samples() -> Iterator[tuple[dict[str, Any], bytes]]:
        drawn = _in_threads(sample, range(config.n_train_images), config)
        for number, (image, conversations) in enumerate(drawn):
            for part, turns in enumerate(conversations):
                yield _record(f"train-{number:06d}-{part}", turns), image
            if (number + 1) % 500 == 0:
                progress(f"train: {number + 1} of {config.n_train_images} pictures")

    write_shards(samples(), paths.train)


def _record(name: str, turns: list[Turn]) -> dict[str, Any]:
    """A record in LLaVA's format; the image stands first in the first turn."""
    conversation = []
    for i, turn in enumerate(turns):
        conversation.append({"from": "human", "value": turn.body if i else f"<image>\n{turn.body}"})
        conversation.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": f"{name}.jpg", "conversations": conversation}


def draw(scene: Scene, catalogue: Catalogue, config: DemoConfig) -> bytes:
    """A scene as a JPEG file."""
    return _jpeg(render(scene, catalogue, config.image_size), config.jpeg_quality)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _in_threads(work: Callable[[Any], Any], items: Iterable[Any], config: DemoConfig) -> Iterator[Any]:
    """The results of `work` in order. Threads, because Pillow draws outside of Python's lock."""
    workers = config.num_workers or cores()
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        # A batch at a time: results wait in memory until they are written.
        while batch := list(islice(items, 32 * workers)):
            yield from pool.map(work, batch)


# -- Test sets ---------------------------------------------------------------------------------------------------------


def _write_task(
    paths: DemoPaths, task: str, images: list[evalsets.TestImage], catalogue: Catalogue, config: DemoConfig
) -> None:
    layout = evalsets.LAYOUTS[task]
    final = paths.task(task)
    folder = final.with_name(f"{task}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / layout.images).mkdir(parents=True)
    drawn = _in_threads(lambda image: draw(image.scene, catalogue, config), images, config)
    for number, data in enumerate(drawn, start=1):
        (folder / layout.images / layout.image_name(number)).write_bytes(data)
    evalsets.write_annotations(task, folder, images, config.image_size)
    folder.replace(final)


# -- Tokenizer ---------------------------------------------------------------------------------------------------------


def _texts(paths: DemoPaths, plans: dict[str, list[evalsets.TestImage]], prompts: Prompts) -> set[str]:
    """Every text of the dataset, as prompts and answers have it, and after a space, where an answer may begin."""
    shards = ShardSet.open([paths.train])
    records = [shards.read(i, with_image=False).record for i in range(len(shards))]
    texts = {turn["value"] for record in records for turn in record["conversations"]}
    asked = [each for images in plans.values() for image in images for each in image.asked]
    texts |= {prompt.format(question=each.question) for each in asked for prompt in astuple(prompts)}
    return texts | {f" {text}" for text in texts}


# -- Manifest ----------------------------------------------------------------------------------------------------------


def _settings(config: DemoConfig) -> dict[str, Any]:
    """What decides the bytes."""
    settings = asdict(config)
    del settings["num_workers"]
    return settings


def _is_current(paths: DemoPaths, manifest: Any, config: DemoConfig) -> bool:
    """Whether the manifest is of these settings, and every file that it lists is there in its size."""
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        return False
    return manifest.get("config") == _settings(config) and not _damaged(paths, manifest)


def _damaged(paths: DemoPaths, manifest: dict[str, Any]) -> list[Path]:
    """The files that the manifest lists and that are missing or of another size."""
    sizes = {paths.root / name: entry["bytes"] for name, entry in manifest["files"].items()}
    return [path for path, size in sizes.items() if not path.is_file() or path.stat().st_size != size]


def _drop_damaged(paths: DemoPaths, manifest: Any) -> None:
    """Remove the folders in which something is damaged, so that they are made again."""
    if not isinstance(manifest, dict):
        return
    damaged = _damaged(paths, manifest)
    for folder in (paths.train, *(paths.task(task) for task in TASKS)):
        if any(path.is_relative_to(folder) for path in damaged):
            shutil.rmtree(folder, ignore_errors=True)


def _manifest(paths: DemoPaths, catalogue: Catalogue, config: DemoConfig) -> dict[str, Any]:
    files = sorted(path for folder in (paths.train, paths.eval) for path in folder.rglob("*") if path.is_file())
    files.append(paths.tokenizer)
    return {
        "schema": SCHEMA,
        "config": _settings(config),
        "pictures": "real photos" if catalogue.kind == "photos" else "FALLBACK: drawn shapes, not photos",
        "packages": {
            name: {"version": package.version, "sha256": package.sha256, "licence": package.licence}
            for name, package in parts.packages_used(catalogue.kind).items()
        },
        "split": {
            "backgrounds": {split: [each.source for each in them] for split, them in catalogue.backgrounds.items()},
            "objects": {
                name: {
                    group: [each.source for each in catalogue.cutouts[name, unseen]]
                    for group, unseen in (("seen", False), ("unseen", True))
                }
                for name in catalogue.classes
            },
            "typefaces": {"seen": list(FONTS_SEEN), "unseen": list(FONTS_UNSEEN)},
            "words": list(WORDS),
        },
        "files": {
            path.relative_to(paths.root).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in files
        },
    }


def _licences(catalogue: Catalogue) -> str:
    rows = [
        f"| {package.title} | {package.holds} | {package.licence} |"
        for package in parts.packages_used(catalogue.kind).values()
    ]
    photos = (
        "The pictures are photos of objects pasted on photos of landmarks. The landmarks are in the public domain, so "
        "a picture as a whole has the licence of the objects' photos: GPL-2 or later.\n\n"
        f"## Photos of landmarks\n\n{credits_table(catalogue.credits)}\n"
    )
    drawn = "The pictures are drawn; nobody else has rights in them.\n"
    return (
        "# Licences of the demo dataset's parts\n\nNone of this is part of Ablate itself.\n\n"
        "| Package | What is used of it | Licence |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nThe words on signs are set in the DejaVu fonts that matplotlib brings (Bitstream Vera licence).\n\n"
        + (photos if catalogue.kind == "photos" else drawn)
    )


def _write_contact_sheet(paths: DemoPaths, plans: dict[str, list[evalsets.TestImage]], catalogue: Catalogue) -> None:
    file = io.BytesIO()
    contact_sheet(plans, catalogue).save(file, "PNG")
    with atomic_file(paths.contact_sheet) as target:
        target.write(file.getvalue())
