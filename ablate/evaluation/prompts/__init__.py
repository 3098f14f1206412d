"""What is asked about a question: the benchmark's default, or a style from a YAML file, one text for each benchmark.

    evaluation.prompt=official            each benchmark's own (`Benchmark.default_prompt`); for the six it is what
                                          LLaVA-1.5, Cobra and ML-Mamba ask, TextVQA by its question alone
    evaluation.prompt=llava               ablate/evaluation/prompts/llava.yaml
    evaluation.prompt=my/prompts.yaml     one's own

Placeholders are in braces: `{question}` (POPE's "text" too), `{Question}` (with a capital first letter and the rest
small, as LLaVA writes TextVQA's), `{ocr}` in TextVQA, and `{caption}` in VSR; `{{` is a plain brace. A benchmark that
subclasses another is asked as that one is where a file does not name it. What the files that come with Ablate do not
name is asked its default. The chat format around all this is the model's and has its own files:
`datamodules/templates/`.
"""

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from string import Formatter

from ablate.core.config import read_yaml
from ablate.core.errors import UserError, unknown_name

HERE = Path(__file__).parent
DEFAULT = "official"
ALIASES = {"plain": DEFAULT}


def styles() -> tuple[str, ...]:
    """The names of the styles that come with Ablate, sorted."""
    return tuple(sorted([DEFAULT, *(path.stem for path in HERE.glob("*.yaml"))]))


def prompt_text(
    style: str, names: Sequence[str], placeholders: Sequence[str], benchmarks: Collection[str], default: str = ""
) -> str:
    """What `style` asks in a benchmark, with its placeholders.

    Args:
        style: one of `styles()`, or the path of a YAML file.
        names: what the file may call the benchmark: its own name, then those of the benchmarks that it is a kind of.
        placeholders: those that the benchmark can fill.
        benchmarks: every benchmark that a file may have a prompt for.
        default: the benchmark's own; "" = it has none.

    Raises:
        UserError: an unknown style, benchmark or placeholder (the message has the choices), or no prompt for this one.
    """
    path = None if style == DEFAULT else _find(style)
    texts = _read(path) if path else {}
    if unlisted := sorted(texts.keys() - set(benchmarks)):
        error = unknown_name("benchmark", unlisted[0], benchmarks)
        raise UserError(f"{path}: {error}")
    if (name := next((name for name in names if name in texts), None)) is not None:
        text, where = texts[name], f"{path}, {name}"
    elif path and path.parent != HERE:
        raise UserError(f"{path} has no prompt for {names[0]}; it has those of {', '.join(sorted(texts))}.")
    elif default:
        text, where = default, f"The default prompt of {names[0]}"
    else:
        raise UserError(f"The benchmark {names[0]} has no default_prompt: name a YAML file that has one for it.")
    _check(text, placeholders, where)
    return text


def _find(style: str) -> Path:
    path = Path(style)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"There is no prompt file {path}. Prompts by name: {', '.join(styles())}.")
        return path
    if style not in styles():
        raise unknown_name("prompt", style, styles())
    return HERE / f"{style}.yaml"


@cache
def _read(path: Path) -> dict[str, str]:
    texts = read_yaml(path)
    for benchmark, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{path}, {benchmark}: expected the prompt's text, got {text!r}.")
    return texts


def _check(text: str, placeholders: Sequence[str], where: str) -> None:
    choices = ", ".join(f"{{{name}}}" for name in placeholders)
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise UserError(f"{where}: {error}. A plain brace is written twice; placeholders are {choices}.") from None
    for name, spec, conversion in fields:
        if name not in placeholders:
            raise UserError(f"{where}: {unknown_name('placeholder', name, placeholders)}")
        if spec or conversion:
            raise UserError(f"{where}: {{{name}}} takes neither a format nor a conversion.")
    if not fields:
        raise UserError(f"{where}: the prompt has no placeholder, so every question would be the same. Use {choices}.")
