"""A benchmark with four choices for each question: quiz.json and an image for each of its entries."""

import json
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ablate.evaluation.benchmarks import Benchmark, Question, benchmark
from ablate.evaluation.files import Images

SCHEMA = {"id": int, "image": str, "question": str, "choices": list, "answer": int}
COLOURS = ("red", "lime green", "blue", "very dark grey")


@benchmark("colour_quiz")
class ColourQuiz(Benchmark):
    """Which of four colours is it? The likeliest choice is the answer."""

    title, split = "Colour quiz", "all"
    answering_modes = ("likelihood", "generate")
    default_prompt = "{question} Answer with one of the colours."
    result_fields: ClassVar = {"id": (int, str), "answer": str}

    def read_questions(self, images: Images) -> list[Question]:
        def question(where: str, entry: dict[str, Any]) -> Question:
            return Question(
                id=str(entry["id"]),
                image=images.path(entry["image"], where),
                image_id=entry["image"],
                text=entry["question"],
                body=self.body(entry["question"]),
                answers=(entry["choices"][entry["answer"]],),
                choices=tuple(entry["choices"]),
            )

        return self.each(self.find(["quiz.json"]), SCHEMA, question)

    @classmethod
    def example(cls, folder: Path) -> None:
        entries = []
        for number in range(8):
            choices = [COLOURS[(number + shift) % 4] for shift in range(4)]
            name = f"{number}.png"
            Image.new("RGB", (16, 16), COLOURS[number % 4].split()[-1].replace("grey", "darkgrey")).save(folder / name)
            entries.append({"id": number, "image": name, "question": "Which colour?", "choices": choices, "answer": 0})
        (folder / "quiz.json").write_text(json.dumps(entries))
