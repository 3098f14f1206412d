"""Is a benchmark's folder complete and sound? Everything that is wrong with it, not the first thing.

Files, schema, ids and counts are those of the readers in `benchmarks/`; every image is decoded in full, as an
evaluation would.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ablate.core.processes import cores
from ablate.evaluation.benchmarks import Benchmark
from ablate.evaluation.benchmarks.base import OFFICIAL
from ablate.evaluation.files import EMPTY, MISSING, UNREADABLE, ImageProblem, image_problem

AT_ONCE = 64  # images that an interruption waits for, at most

Progress = Callable[[int, int], None]  # images decoded, images in all


@dataclass
class Report:
    """What a folder holds and what is wrong with it.

    Attributes:
        counts: what is counted -> (found, expected).
        problems: with the files, each message naming file and entry.
        images: those that cannot be used.
        unchecked: images that an interruption left.
    """

    benchmark: str
    title: str
    path: str
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    images: list[ImageProblem] = field(default_factory=list)
    unchecked: int = 0

    @property
    def sound(self) -> bool:
        """Nothing is wrong with what is there."""
        return not self.problems and not self.images and not self.unchecked

    @property
    def complete(self) -> bool:
        return all(found == expected for found, expected in self.counts.values())

    @property
    def ok(self) -> bool:
        return self.complete and self.sound

    def to_dict(self) -> dict[str, Any]:
        counts = {what: {"found": found, "expected": expected} for what, (found, expected) in self.counts.items()}
        by_kind = {
            kind: {image.name: image.reason for image in self.images if image.kind == kind}
            for kind in (MISSING, EMPTY, UNREADABLE)
        }
        return {
            "benchmark": self.benchmark,
            "path": self.path,
            "ok": self.ok,
            "complete": self.complete,
            "sound": self.sound,
            "counts": counts,
            "problems": self.problems,
            "images": by_kind | {"unchecked": self.unchecked},
        }


def check(benchmark: Benchmark, progress: Progress = lambda done, total: None) -> Report:
    """Read all files, decode all images. An interruption (Ctrl-C) ends it early: `Report.unchecked` says so."""
    questions, problems = benchmark.problems()
    report = Report(benchmark.name, benchmark.title, str(benchmark.file or benchmark.root), problems=problems)
    needed: dict[Path, list[str]] = defaultdict(list)
    for question in questions:
        needed[question.image].append(question.id)
    official = benchmark.expected == OFFICIAL
    report.counts["questions"] = len(questions), benchmark.expected_with(questions)
    found = Counter(question.type for question in questions)
    parts = benchmark.parts_expected(questions) if official else {}
    report.counts |= {part: (found[part], number) for part, number in parts.items()}
    there = sum(path.is_file() for path in needed)
    report.counts["images"] = there, benchmark.official_images if official else len(needed)

    report.unchecked = len(needed)
    progress(0, len(needed))
    try:
        for path, problem in _image_problems(list(needed)):
            report.unchecked -= 1
            if problem is not None:
                report.images.append(ImageProblem(path.name, *problem, tuple(needed[path])))
            progress(len(needed) - report.unchecked, len(needed))
    except KeyboardInterrupt:
        pass
    return report


def _image_problems(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[str, str] | None]]:
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start : start + AT_ONCE]
            yield from zip(some, pool.map(partial(image_problem, thorough=True), some), strict=True)
