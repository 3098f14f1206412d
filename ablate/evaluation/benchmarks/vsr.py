"""Visual Spatial Reasoning (Liu et al., 2023, arXiv 2205.00363), zero-shot test split:
https://github.com/cambridgeltl/visual-spatial-reasoning."""

import string
from typing import Any, ClassVar

import numpy as np

from ablate.evaluation import metrics
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Answer, Benchmark, Comparison, Figures, Judged, Question
from ablate.evaluation.files import Images, check_choice, check_fields, image_id, read_records

ANNOTATIONS = "test.jsonl"
SCHEMA = {"image": str, "caption": str, "label": int, "relation": str}


def true_or_false(text: str) -> str:
    """The first word of a free answer without case and punctuation: "true", "false", or something that is wrong."""
    words = text.lower().split()
    return words[0].strip(string.punctuation) if words else ""


@benchmark("vsr")
class VSR(Benchmark):
    """Is the statement about where things are true? Answering True always scores 51.47 on the official split."""

    title, split = "VSR", "zero-shot test"
    default_prompt = (
        'Based on the image, is this statement "True" or "False"? {caption}\nRespond with "True" or "False" directly.'
    )
    answering_modes = ("likelihood", "generate")
    choices = ("True", "False")
    image_folders = ("images", "train2017", "val2017", "trainval2017", ".")
    majority_type = "relation"
    official_questions, official_images = 1_222, 715
    placeholders = ("caption",)
    results_are_lines, results_answering = True, "likelihood"
    result_fields: ClassVar = {"index": (int, str), "answer": str}

    def read_questions(self, images: Images) -> list[Question]:
        path = self.find([ANNOTATIONS], (".", "zeroshot", "splits/zeroshot", "data/splits/zeroshot"))
        questions = []
        for row, (where, entry) in enumerate(read_records(path, SCHEMA, self._problems, lines=True)):
            with self._problems:
                questions.append(self._question(row, entry, where, images))
        return questions

    def _question(self, row: int, entry: dict[str, Any], where: str, images: Images) -> Question:
        check_fields(entry, SCHEMA, where)
        check_choice(entry["label"], (0, 1), "label", where)
        return Question(
            id=str(row),  # the release has no ids: the row, from 0
            image=images.path(entry["image"], where),
            image_id=image_id(entry["image"]),
            text=entry["caption"],
            body=self.body(entry["caption"]),
            answers=(self.choices[0] if entry["label"] else self.choices[1],),
            types={"relation": entry["relation"]},
        )

    def body(self, question: str, **others: str) -> str:
        return self.prompt_text.format(caption=question, **others)

    def result_answer(self, entry: dict[str, Any], where: str) -> Answer:
        """`p_true` in likelihood mode, `answer` in generate mode."""
        if self.answering == "generate":
            return super().result_answer(entry, where)
        check_fields(entry, {"index": (int, str), "p_true": (float, int)}, where)
        return Answer(probability=entry["p_true"])

    def result_entry(self, question: Question, answer: Answer) -> dict[str, Any]:
        if answer.probability is None:
            return super().result_entry(question, answer)
        return {"index": int(question.id), "p_true": answer.probability}

    def comparison(self, question: Question) -> Comparison:
        return Comparison(true_or_false, [answer.lower() for answer in question.answers])

    def positive(self, question: Question, normalised: str) -> float:
        return float(normalised == "true")

    def figures(self, judged: Judged) -> Figures:
        overall = judged.mean()
        figures: Figures = {"overall": overall, "accuracy": overall}
        is_true = np.array([question.answers[0] == self.choices[0] for question in judged.questions])
        if self.answering == "likelihood" and 0 < is_true.sum() < len(is_true):  # ranking needs both sides
            figures["roc_auc"] = 100 * metrics.roc_auc(is_true, judged.positives)
            figures["ap"] = 100 * metrics.average_precision(is_true, judged.positives)
        return figures | self.breakdowns(judged)
