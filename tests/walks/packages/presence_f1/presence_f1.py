"""A benchmark that is scored over all answers together: F1 of "yes" on whether something is there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ablate.evaluation.benchmarks import Answer, Benchmark, Question, benchmark
from ablate.evaluation.files import Images

SCHEMA = {"id": int, "image": str, "thing": str, "present": bool}


@benchmark("presence_f1")
class PresenceF1(Benchmark):
    """Is it there? F1 of the answers "yes", over the whole set."""

    title, split, metric, corpus = "Presence", "all", "F1", True
    choices = ("Yes", "No")
    default_prompt = "Is there a {question} in the image? Yes or no?"
    result_fields: ClassVar = {"id": (int, str), "answer": str}

    def read_questions(self, images: Images) -> list[Question]:
        def question(where: str, entry: dict[str, Any]) -> Question:
            return Question(
                id=str(entry["id"]),
                image=images.path(entry["image"], where),
                image_id=entry["image"],
                text=entry["thing"],
                body=self.body(entry["thing"]),
                answers=("yes" if entry["present"] else "no",),
            )

        return self.each(self.find(["presence.json"]), SCHEMA, question)

    def statistics(self, question: Question, answer: Answer) -> Sequence[float]:
        return question.answers[0] == "yes", self.answer_text(question, answer).strip().lower() == "yes"

    def corpus_score(self, statistics: np.ndarray) -> float:
        present, said = statistics.astype(bool).T
        return 2 * (present & said).sum() / max(1, present.sum() + said.sum())

    @classmethod
    def example(cls, folder: Path) -> None:
        entries = []
        for number in range(8):
            Image.new("RGB", (16, 16), "white" if number % 2 else "black").save(folder / f"{number}.png")
            entries.append({"id": number, "image": f"{number}.png", "thing": "light", "present": bool(number % 2)})
        (folder / "presence.json").write_text(json.dumps(entries))
