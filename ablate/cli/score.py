"""Score an official results file, of any model: nothing is loaded but the file and the annotations.

ablate score vqav2 --predictions results.json --annotations /data/vqav2 --mode official_2021
ablate score pope --predictions answers.jsonl --annotations /data/pope --mode generate --json
ablate score pope --predictions samples_pope.jsonl --run runs/demo/mlp-s0-0123abcd

Results files: VQAv2 and TextVQA [{question_id, answer}], GQA [{questionId, prediction}], VizWiz [{image, answer}]; one
object a line (JSON Lines) POPE {question_id, split, answer} and VSR {index, p_true}, in generate mode {index, answer}.
The predictions/*.jsonl that `ablate eval` writes are read too, and so are POPE's own answer files ({question, answer}),
LLaVA's answer logs ({question_id, prompt, text}) and lmms-eval's samples_*.jsonl, where every row can be joined to its
question without doubt. POPE's ids restart in each split: the split is in the file's name (random, popular,
adversarial), or shows in the questions.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ablate.evaluation.official import Part, Scored

HELP = "score an official results file of any model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", metavar="BENCHMARK", help="vqav2, gqa, textvqa, pope, vizwiz, vsr or another")
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="the results file")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="PATH",
        help="the folder with the official files (no image is needed), or the file with the annotations itself "
        "(default with --run: in the run's evaluation.root)",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="whose scorer to follow; POPE, VSR: generate or likelihood (default: the first in docs/evaluation.md)",
    )
    parser.add_argument(
        "--run",
        dest="answered_by",
        type=Path,
        metavar="FOLDER",
        help="the run that gave these answers: its row of the table has the score too, marked as read (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(arguments: argparse.Namespace) -> int:
    from ablate.evaluation.files import collector_paused
    from ablate.evaluation.official import benchmark_for, mode_names, read_results, score

    name, file = arguments.benchmark, arguments.predictions
    annotations = _annotations(arguments, name)
    with collector_paused():
        mode = arguments.mode or (_mode_of_texts(name, annotations) if arguments.answered_by else None)
        benchmark = benchmark_for(name, annotations, mode)
        answers = read_results(benchmark, file)
        scored = score(benchmark, answers, mode or mode_names(benchmark)[0])
    if arguments.answered_by:
        from ablate.pipeline.evaluation_files import write_read_answers

        folder = write_read_answers(arguments.answered_by, benchmark, answers, file)
        print(f"The table has this score of {arguments.answered_by.name} from now on: {folder}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(scored.to_dict()))
    else:
        _print(scored)
    return 0


def _annotations(arguments: argparse.Namespace, name: str) -> Path:
    if arguments.annotations is not None:
        return arguments.annotations
    if arguments.answered_by is None:
        raise UserError(f"Give the folder with the files of {name}: --annotations PATH.")
    from ablate.pipeline.evaluation_files import folder_of_run

    return folder_of_run(arguments.answered_by, name)


def _mode_of_texts(name: str, annotations: Path) -> str | None:
    """Logs hold texts: lmms-eval's own rules where they are known, else those of free answers."""
    from ablate.evaluation.official import benchmark_for, mode_names

    modes = mode_names(benchmark_for(name, annotations))
    return next((mode for mode in ("lmms_eval", "generate") if mode in modes), None)


def _print(scored: "Scored") -> None:
    from rich.console import Console

    benchmark = scored.benchmark
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(f"{benchmark.title} · {benchmark.split} · mode {scored.mode} · {_count(scored)}", highlight=False)
    if scored.follows:
        console.print(f"Mode {scored.mode} follows {scored.follows}.", highlight=False)
    if scored.partial:
        console.print("This is a partial score: not to be compared with scores of the whole set.", style="yellow")
    for table in _tables(scored):
        console.print(table)
    shown = {value for parts in scored.parts.values() for value in parts} | {"overall", "accuracy"}
    for name, figure in scored.figures.items():
        if isinstance(figure, float) and name not in shown:
            console.print(f"{name}: {figure:.2f}", highlight=False)
    for name, baseline in scored.baselines.items():
        console.print(f"{name.capitalize()} answer ({baseline}): {baseline.score:.2f}", markup=False, highlight=False)


def _count(scored: "Scored") -> str:
    expected = scored.benchmark.n_expected
    return f"PARTIAL, {scored.n:,} of {expected:,} questions" if scored.partial else f"{scored.n:,} questions"


def _tables(scored: "Scored") -> "Iterator[Table]":
    """The score and every breakdown, with interval and N; then POPE's figures of each split."""
    from rich.table import Table

    table = Table(title="Scores (%)", title_justify="left")
    for column in ("part", "score", "95% interval", "N"):
        table.add_column(column, justify="left" if column == "part" else "right")

    def add(name: str, part: "Part") -> None:
        interval = f"{100 * part.estimate.low:.2f} to {100 * part.estimate.high:.2f}"
        table.add_row(name, f"{part.score:.2f}", interval, f"{part.n:,}")

    add("overall", scored.whole)
    for kind, parts in scored.parts.items():
        table.add_section()
        for value, part in parts.items():
            add(f"{kind}: {value}", part)
    yield table

    nested = {name: figures for name, figures in scored.figures.items() if isinstance(figures, dict)}
    if by_split := {name: figures for name, figures in nested.items() if name not in scored.parts}:
        table = Table(title="Figures by split (%)", title_justify="left")
        columns = list(next(iter(by_split.values())))
        for column in ("", *columns):
            table.add_column(column, justify="right" if column else "left")
        for name, figures in by_split.items():
            table.add_row(name, *(f"{figures[column]:.2f}" for column in columns))
        yield table
