"""The benchmarks by name.

    create("vqav2", "data/vqav2").questions

Each file of this folder registers one with `@benchmark("name")`; other packages offer theirs through the entry-point
group `ablate.benchmarks`, whose values name modules to import. Your own set in a benchmark's official layout is a
subclass with `official_questions = None`, or another name at another root: `create("gqa", root, name="my_gqa",
expected=None)`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.core.errors import unknown_name
from ablate.core.registry import Registry
from ablate.evaluation.benchmarks.base import ANSWERING_MODES, Answer, Benchmark, Figures, Judged, Judgement, Question

registry: Registry[type[Benchmark]] = Registry(
    "benchmark", base=Benchmark, given=("root",), package=__name__, entry_points="ablate.benchmarks"
)
names, get = registry.names, registry.get


def benchmark(name: str) -> Callable[[type[Benchmark]], type[Benchmark]]:
    """Register a class under `name`, once."""

    def register(cls: type[Benchmark]) -> type[Benchmark]:
        registry.register(name)(cls)
        cls.name = name
        return cls

    return register


def create(name: str, root: Path | str, **options: Any) -> Benchmark:
    """The benchmark `name` with its files at `root`; options as of `Benchmark`.

    Raises:
        UserError: an unknown name or option value; the message lists the choices.
    """
    return registry.create(name, root, **options)


def create_all(
    chosen: Sequence[str],
    root: Path | str,
    *,
    prompt: str = "",
    answering: str = "",
    modes: Mapping[str, str] | None = None,
    partial: bool = False,
) -> list[Benchmark]:
    """Several benchmarks, each with its files in a folder of its name in `root`.

    Args:
        prompt: of all but those that are always asked in one way (`Benchmark.always_asked`).
        answering: for those that leave the choice (POPE, VSR); the others are always answered in their one way.
        modes: whose scorer to follow, by benchmark; the others follow their default.

    Raises:
        UserError: an unknown benchmark, prompt, answering mode or scoring mode; the message lists the choices.
    """
    modes = modes or {}
    if unlisted := sorted(modes.keys() - set(chosen)):
        raise unknown_name("benchmark in modes", unlisted[0], chosen)
    if answering and answering not in ANSWERING_MODES:
        raise unknown_name("answering mode", answering, ANSWERING_MODES)
    created = []
    for name in chosen:
        kind = get(name)
        options: dict[str, Any] = {"mode": modes.get(name), "partial": partial}
        options["prompt"] = kind.always_asked or prompt or None
        if answering in kind.answering_modes:
            options["answering"] = answering
        created.append(create(name, folder_of(name, root), **options))
    return created


def folder_of(name: str, root: Path | str) -> Path:
    """Where a benchmark's files are in a folder of all benchmarks: in one of its name, or of `Benchmark.folder`."""
    return Path(root) / (get(name).folder or name)


def of_a_release(name: str) -> bool:
    """Whether this is a published benchmark, with splits that others report too, or one that is not known here."""
    return name not in names() or get(name).official_questions is not None


__all__ = [
    "ANSWERING_MODES",
    "Answer",
    "Benchmark",
    "Figures",
    "Judged",
    "Judgement",
    "Question",
    "benchmark",
    "create",
    "create_all",
    "folder_of",
    "get",
    "names",
    "of_a_release",
    "registry",
]
