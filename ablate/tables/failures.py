"""One page of the wrong answers of several runs, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.core.errors import UserError
from ablate.runs.folder import RunFiles

if TYPE_CHECKING:
    from ablate.evaluation.failures import Written


@dataclass(frozen=True)
class _Source:
    """Predictions on disk, and what is known about them."""

    run: str
    connector: str
    blind: bool
    predictions: Path
    evaluation: dict[str, Any]  # benchmarks, root
    scores: dict[str, Any]


def write_failures(folders: Sequence[Path], out: Path) -> "Written":
    """Write the page of all runs in `folders`.

    Raises:
        UserError: a folder without predictions.
    """
    from ablate.evaluation.failures import Answered, write_page
    from ablate.evaluation.files import read_records

    sources = [source for folder in folders for source in _sources(folder)]
    names = _names(sources)
    runs, images = [], {}
    for source, name in zip(sources, names, strict=True):
        tasks = source.evaluation["benchmarks"]
        records = {
            task: [record for _, record in read_records(source.predictions / f"{task}.jsonl", ["id"], lines=True)]
            for task in tasks
        }
        partial = {
            task: f"{score['n']:,} of {score['n_expected']:,}"
            for task, score in source.scores.items()
            if score["partial"]
        }
        runs.append(Answered(name, source.connector, records, partial))
        for task in tasks:
            images |= {key: path for key, path in _images(task, source.evaluation).items() if key not in images}
    return write_page(out, runs, images)


def _sources(folder: Path) -> list[_Source]:
    from ablate.core.files import read_json
    from ablate.tables import collect

    written = read_json(RunFiles(folder).scores)
    if isinstance(written, dict) and "provenance" in written:
        header = written["provenance"]
        return [
            _Source(
                header["run"],
                header["connector"],
                header["blind"],
                RunFiles(folder).predictions,
                header["evaluation"],
                written["scores"],
            )
        ]
    finished = [run for run in collect([folder]) if run.state == "finished" and run.scores]
    if not finished:
        raise UserError(f"No run in {folder} has been evaluated to its end: nothing is known about its failures.")
    keys = ("benchmarks", "root")
    return [
        _Source(
            run.run_id,
            run.connector,
            run.blind,
            RunFiles(run.folder).predictions,
            {key: run.settings[f"evaluation.{key}"] for key in keys},
            dict(run.scores),
        )
        for run in finished
    ]


def _names(sources: Sequence[_Source]) -> list[str]:
    """The connector's name where that tells the runs apart, else the run's, else its folder."""
    candidates = [
        [f"{source.connector}{' (blind)' * source.blind}" for source in sources],
        [source.run for source in sources],
        [str(source.predictions.parent) for source in sources],
    ]
    return next((names for names in candidates if len(set(names)) == len(names)), candidates[-1])


def _images(task: str, evaluation: dict[str, Any]) -> dict[tuple[str, str], Path]:
    """Where the images of a task's questions are; nothing if the benchmark's files have gone."""
    from ablate.evaluation import benchmarks

    try:  # with no prompt, since some need more files
        folder = benchmarks.folder_of(task, evaluation["root"])
        questions = benchmarks.create(task, folder, images=False, partial=True, prompt=None, asks=False).questions
    except UserError:
        return {}
    return {(task, question.id): question.image for question in questions}
