"""The benchmarks by name.

    create("vqav2", "data/vqav2").questions

Each file of this folder registers one with `@benchmark("name")`; other packages offer theirs through the entry-point
group `ablate.benchmarks`, whose values name modules to import. A set of one's own in a benchmark's official layout is
another name at another root: `create("gqa", root, name="my_gqa", expected=None)`. The demo's six tasks are just that,
under the names in `DEMO_TASKS`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.core.errors import UserError, unknown_name
from ablate.core.registry import Registry
from ablate.evaluation.benchmarks.base import ANSWERING_MODES, Answer, Benchmark, Figures, Judged, Judgement, Question

registry: Registry[type[Benchmark]] = Registry(
    "benchmark", base=Benchmark, given=("root",), package=__name__, entry_points="ablate.benchmarks"
)
_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {}  # name -> the benchmark that it is, with other options


def benchmark(name: str) -> Callable[[type[Benchmark]], type[Benchmark]]:
    """Register a class under `name`, once."""

    def register(cls: type[Benchmark]) -> type[Benchmark]:
        cls.name = name
        return registry.register(name)(cls)

    return register


def also_known_as(name: str, of: str, **options: Any) -> None:
    """Give the benchmark `of`, with other options (`expected=None`, ...), a name of its own."""
    if name in _ALIASES:
        raise UserError(f'The benchmark "{name}" is registered already. Give one of them another name.')
    _ALIASES[name] = of, options


def names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted({*registry.names(), *_ALIASES}))


def create(name: str, root: Path | str, **options: Any) -> Benchmark:
    """The benchmark `name` with its files at `root`; options as of `Benchmark`.

    Raises:
        UserError: an unknown name or option value; the message lists the choices.
    """
    of, changed = _ALIASES.get(name, (name, {}))
    if of not in registry.names():
        raise unknown_name("benchmark", name, names())
    return registry.get(of)(root, **({"name": name} if changed else {}), **{**changed, **options})


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
    "registry",
]
