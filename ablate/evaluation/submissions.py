"""The answers as the official servers and scorers take them: `ablate score` reads these files, from any model.

Each benchmark says what an entry is like (`Benchmark.result_entry`). Answers are as the model gave them: what a scorer
rewrites, it rewrites itself. In likelihood mode an answer is the likelier choice, and VSR's the probability of True.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablate.core.files import atomic_file
from ablate.evaluation.benchmarks import Answer, Benchmark, Question


def write_submission(
    folder: Path, benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[str, Answer]
) -> Path:
    """Write `<benchmark>.json` (one list) or `.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [benchmark.result_entry(question, answers[question.id]) for question in questions]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    as_lines = benchmark.results_are_lines
    path = folder / f"{benchmark.name}.{'jsonl' if as_lines else 'json'}"
    with atomic_file(path) as file:
        text = "".join(f"{line}\n" for line in lines) if as_lines else f"[{f',{chr(10)} '.join(lines)}]\n"
        file.write(text.encode())
    return path
