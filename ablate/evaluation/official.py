"""Score an official results file, of any model: no model is loaded, and no image has to be there.

    benchmark = benchmark_for("vqav2", "annotations/", mode="official_2021")
    scored = score(benchmark, read_results(benchmark, "results.json"))

What the files look like is the benchmarks' own to say (`Benchmark.result_fields`). The predictions that `ablate eval`
writes are read too, and other packages' logs (`logs.py`).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ablate.core.errors import UserError, unknown_name
from ablate.evaluation import benchmarks, logs
from ablate.evaluation.baselines import Baseline, baselines
from ablate.evaluation.benchmarks import Answer, Benchmark, Figures, Judged
from ablate.evaluation.files import check_fields, listed, read_records
from ablate.evaluation.statistics import Estimate

MOST_LISTED = 100


def benchmark_for(name: str, annotations: Path | str, mode: str | None = None) -> Benchmark:
    """The benchmark that a results file is scored with.

    Args:
        annotations: the folder with the official files, or the file with the annotations.
        mode: a scoring mode, or (POPE, VSR) an answering mode: "likelihood", "generate". None: the benchmark's own.

    Raises:
        UserError: an unknown benchmark or mode; the message lists the choices.
    """
    options = {"images": False, "partial": True, "asks": False}
    plain = benchmarks.create(name, annotations, **options)
    choices = mode_names(plain)
    mode = mode or choices[0]
    if mode not in choices:
        raise unknown_name(f"mode of {name}", mode, choices)
    if len(plain.answering_modes) == 1:
        return benchmarks.create(name, annotations, mode=mode, **options)
    if mode in plain.answering_modes:
        return benchmarks.create(name, annotations, answering=mode, **options)
    return benchmarks.create(name, annotations, answering=plain.results_answering, mode=mode, **options)


def mode_names(benchmark: Benchmark) -> tuple[str, ...]:
    """What `mode` may be, the default first."""
    if len(benchmark.answering_modes) == 1:
        return benchmark.modes
    ordered = sorted(benchmark.answering_modes, key=lambda each: each != benchmark.results_answering)
    return (*ordered, *benchmark.modes)


def read_results(benchmark: Benchmark, path: Path) -> dict[str, Answer]:
    """The answers in a results file, by question id: one to every question.

    POPE's three splits may come alone: a split without any answer is left out, and the score is partial.

    Raises:
        UserError: a file that cannot be read, entries that are not as they should be, and missing, unknown or repeated
            ids: all of them are counted, and the first `MOST_LISTED` of each kind listed.
    """
    own = _is_own(path)
    records = read_records(path, benchmark.result_fields, also=logs.FIELDS, lines=own or benchmark.results_are_lines)
    kind = "" if own else logs.kind_of(benchmark, records)
    read = _read_own if own else _read_official
    wrong: list[str] = []
    found: list[tuple[str, Answer]] = []
    rows: list[logs.Row] = []
    for number, (where, entry) in enumerate(records):
        try:
            if kind:
                rows.append(logs.read_row(kind, entry, where, number))
            else:
                found.append(read(benchmark, entry, where))
        except UserError as error:
            wrong.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    if wrong:
        more = f"\n... and {len(wrong) - MOST_LISTED:,} more" if len(wrong) > MOST_LISTED else ""
        raise UserError("\n".join(wrong[:MOST_LISTED]) + more)
    if kind:
        found = logs.join(benchmark, kind, rows, path)
    repeated = [qid for qid, count in Counter(qid for qid, _ in found).items() if count > 1]
    _check_ids(benchmark, path, [qid for qid, _ in found], repeated)
    return dict(found)


def source_of(benchmark: Benchmark, path: Path) -> str:
    """Whose file `read_results` reads there: "lmms-eval", "LLaVA", "POPE", "Ablate" or "official results"."""
    if _is_own(path):
        return "Ablate"
    records = read_records(path, benchmark.result_fields, also=logs.FIELDS, lines=benchmark.results_are_lines)
    return logs.kind_of(benchmark, records) or "official results"


class Part(NamedTuple):
    """A part of the questions: how many, their mean score in percent, and its interval, in [0, 1]."""

    n: int
    score: float
    estimate: Estimate

    def interval(self) -> dict[str, float]:
        """In percent."""
        return {"low": 100 * self.estimate.low, "high": 100 * self.estimate.high}


@dataclass(frozen=True)
class Scored:
    """Scores in percent.

    Attributes:
        judged: the answered questions and how they were judged.
        figures: every figure of the benchmark.
        estimate: the overall score with its interval, in [0, 1].
    """

    benchmark: Benchmark
    mode: str
    judged: Judged
    figures: Figures
    estimate: Estimate
    baselines: Mapping[str, Baseline]

    @property
    def n(self) -> int:
        return len(self.judged.questions)

    @property
    def partial(self) -> bool:
        return self.n < self.benchmark.n_expected

    @property
    def follows(self) -> str:
        """Which releases the mode follows; "" where that makes no difference."""
        return self.benchmark.follows.get(self.mode, "")

    @property
    def whole(self) -> Part:
        return Part(self.n, self.benchmark.score(self.judged), self.estimate)

    @cached_property
    def parts(self) -> dict[str, dict[str, Part]]:
        """By breakdown and its value."""
        return {
            kind: {value: _part(self.benchmark, judged) for value, judged in self.judged.by(kind).items()}
            for kind in self.judged.kinds()
        }

    def to_dict(self) -> dict[str, Any]:
        """What `ablate score --json` prints. `counts` and `intervals` have the names that the scores have."""
        named: dict[str, Part | Mapping[str, Part]] = {"overall": self.whole}
        for kind, parts in self.parts.items():
            nested = isinstance(self.figures.get(kind), dict)  # otherwise each value is a separate figure
            named |= {kind: parts} if nested else parts
        interval = self.whole.interval() | {"confidence": 100 * self.estimate.confidence}
        return {
            "benchmark": self.benchmark.name,
            "mode": self.mode,
            "n": self.n,
            "n_expected": self.benchmark.n_expected,
            "partial": self.partial,
            "scores": {"overall": self.figures["overall"], "interval": interval, **self.figures},
            "baselines": {name: baseline.score for name, baseline in self.baselines.items()},
            "counts": _of_each(named, lambda part: part.n),
            "intervals": _of_each(named, Part.interval),
            "split": self.benchmark.split,
        }


def _of_each(named: Mapping[str, Part | Mapping[str, Part]], value: Callable[[Part], Any]) -> dict[str, Any]:
    return {
        name: value(part) if isinstance(part, Part) else {each: value(inner) for each, inner in part.items()}
        for name, part in named.items()
    }


def score(benchmark: Benchmark, answers: Mapping[str, Answer], mode: str = "") -> Scored:
    """Score answers (by question id); questions without one are left out. `mode`: how results call the mode."""
    questions = benchmark.reweighted([question for question in benchmark.questions if question.id in answers])
    judged = benchmark.judge_all(questions, (answers[question.id] for question in questions))
    return Scored(
        benchmark=benchmark,
        mode=mode or benchmark.mode,
        judged=judged,
        figures=benchmark.report(judged),
        estimate=benchmark.estimate(judged),
        baselines=baselines(benchmark, questions),
    )


def _part(benchmark: Benchmark, judged: Judged) -> Part:
    return Part(len(judged.questions), benchmark.score(judged), benchmark.estimate(judged))


def _is_own(path: Path) -> bool:
    """Does the file begin as those of `ablate.evaluation.answers` do?"""
    try:
        with open(path, "rb") as file:
            first = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"id", "prediction", "score"} <= first.keys()


def _read_own(benchmark: Benchmark, entry: dict[str, Any], where: str) -> tuple[str, Answer]:
    check_fields(entry, {"id": str, "prediction": str}, where)
    if "probabilities" in entry:
        check_fields(entry, {"probabilities": list}, where)
        return entry["id"], Answer(probabilities=tuple(entry["probabilities"]))
    if benchmark.answering == "likelihood":
        check_fields(entry, {benchmark.probability_key or "probabilities": (float, int)}, where)
        return entry["id"], Answer(probability=entry[benchmark.probability_key])
    return entry["id"], Answer(entry["prediction"])


def _read_official(benchmark: Benchmark, entry: dict[str, Any], where: str) -> tuple[str, Answer]:
    answer = benchmark.result_answer(entry, where)
    return benchmark.result_id(entry), answer


def _check_ids(benchmark: Benchmark, path: Path, answered: Iterable[str], repeated: Iterable[str]) -> None:
    known = {question.id for question in benchmark.questions}
    missing = benchmark.unanswered(set(answered))
    problems = {
        "without an answer": missing,
        "not in the annotations": set(answered) - known,
        "answered more than once": set(repeated),
    }
    if not any(problems.values()):
        return
    said = [f"{len(ids):,} {what}: {listed(ids, MOST_LISTED)}" for what, ids in problems.items() if ids]
    if not known & set(answered):
        said.append("Not one of its ids is known: is it of another split, or of another benchmark?")
    raise UserError(
        f"{path} does not answer the {len(known):,} questions of {benchmark.file or benchmark.root} once each.\n"
        + "\n".join(said)
    )
