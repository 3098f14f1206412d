"""The benchmarks by name.

    create("vqav2", "data/vqav2").questions

Each file of this folder registers one with `@benchmark("name")`. A set of one's own in a benchmark's official layout is
another name at another root: `create("gqa", root, name="my_gqa", expected=None)`. The demo's six tasks are just that,
under the names in `DEMO_TASKS`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ablate.core.errors import unknown_name
from ablate.evaluation.benchmarks.base import ANSWERING_MODES, Answer, Benchmark, Figures, Judged, Judgement, Question

_REGISTRY: dict[str, Callable[..., Benchmark]] = {}


def benchmark(name: str) -> Callable[[type[Benchmark]], type[Benchmark]]:
    """Register a class under `name`, once."""

    def register(cls: type[Benchmark]) -> type[Benchmark]:
        cls.name = name
        _add(name, cls)
        return cls

    return register


def also_known_as(name: str, of: str, **options: Any) -> None:
    """Register the benchmark `of` with other options (`expected=None`, ...) under a name of its own."""
    _add(name, partial(_find(of), name=name, **options))


def names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted(_REGISTRY))


def create(name: str, root: Path | str, **options: Any) -> Benchmark:
    """The benchmark `name` with its files at `root`; options as of `Benchmark`.

    Raises:
        UserError: an unknown name or option value; the message lists the choices.
    """
    return _find(name)(root, **options)


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
        prompt: of all but the benchmarks in `TEXTVQA_WITH_OCR`, which are prompts by themselves.
        answering: for those that leave the choice (POPE, VSR); the others are always answered by text.
        modes: whose scorer to follow, by benchmark; the others follow their default.

    Raises:
        UserError: an unknown benchmark, prompt, answering mode or scoring mode; the message lists the choices.
    """
    modes = modes or {}
    if strangers := sorted(modes.keys() - set(chosen)):
        raise unknown_name("benchmark in modes", strangers[0], chosen)
    if answering and answering not in ANSWERING_MODES:
        raise unknown_name("answering mode", answering, ANSWERING_MODES)
    created = []
    for name in chosen:
        folder = folder_of(name, root)
        options = {"mode": modes.get(name), "partial": partial}
        if name not in TEXTVQA_WITH_OCR:
            options["prompt"] = prompt or None
        benchmark = create(name, folder, **options)
        if answering in benchmark.answering_modes:
            benchmark = create(name, folder, **options, answering=answering)
        created.append(benchmark)
    return created


def folder_of(name: str, root: Path | str) -> Path:
    """Where a benchmark's files are in a folder of all benchmarks."""
    return Path(root) / ("textvqa" if name in TEXTVQA_WITH_OCR else name)


def _add(name: str, factory: Callable[..., Benchmark]) -> None:
    if name in _REGISTRY:
        raise ValueError(f'A benchmark "{name}" is registered already.')
    _REGISTRY[name] = factory


def _find(name: str) -> Callable[..., Benchmark]:
    if name not in _REGISTRY:
        raise unknown_name("benchmark", name, _REGISTRY)
    return _REGISTRY[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

# In the order of the columns of the paper's tables.
DEMO_TASKS = {
    "demo_vqa": "vqav2",
    "demo_gqa": "gqa",
    "demo_textvqa": "textvqa",
    "demo_pope": "pope",
    "demo_vizwiz": "vizwiz",
    "demo_vsr": "vsr",
}
for _name, _of in DEMO_TASKS.items():
    also_known_as(_name, _of, expected=None)

# TextVQA with LLaVA's OCR words in the question, in the two orders of the peers: beside the pure one, from its folder.
TEXTVQA_WITH_OCR = {"textvqa_llava": "llava", "textvqa_cobra": "cobra"}
for _name, _prompt in TEXTVQA_WITH_OCR.items():
    also_known_as(_name, "textvqa", prompt=_prompt)

__all__ = [
    "ANSWERING_MODES",
    "DEMO_TASKS",
    "TEXTVQA_WITH_OCR",
    "Answer",
    "Benchmark",
    "Figures",
    "Judged",
    "Judgement",
    "Question",
    "also_known_as",
    "benchmark",
    "create",
    "create_all",
    "folder_of",
    "names",
]
