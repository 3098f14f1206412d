"""Visual Spatial Reasoning (Liu et al., 2023, arXiv 2205.00363), zero-shot test split:
https://github.com/cambridgeltl/visual-spatial-reasoning."""

import string

import numpy as np

from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Benchmark, Comparison, Figures, Judged, Question
from ablate.evaluation.files import Images, check_choice, check_fields, find_file, image_id, read_json_lines

ANNOTATIONS = "test.jsonl"
SCHEMA = {"image": str, "caption": str, "label": int, "relation": str}
BODY = 'Based on the image, is this statement "True" or "False"? {caption}\nRespond with "True" or "False" directly.'


def true_or_false(text: str) -> str:
    """The first word of a free answer without case and punctuation: "true", "false", or something that is wrong."""
    words = text.lower().split()
    return words[0].strip(string.punctuation) if words else ""


@benchmark("vsr")
class VSR(Benchmark):
    """Is the statement about where things are true? Answering True always scores 51.47 on the official split."""

    title, split = "VSR", "zero-shot test"
    answering_modes = ("likelihood", "generate")
    choices = ("True", "False")
    image_folders = ("images", "train2017", "val2017", "trainval2017", ".")
    majority_type = "relation"
    official_questions = 1_222

    def read_questions(self, images: Images) -> list[Question]:
        path = find_file(self.root, [ANNOTATIONS])
        questions = []
        for row, (number, entry) in enumerate(read_json_lines(path)):
            where = f"{path}, line {number}"
            check_fields(entry, SCHEMA, where)
            check_choice(entry["label"], (0, 1), "label", where)
            questions.append(
                Question(
                    id=str(row),  # the release has no ids: the row, from 0
                    image=images.path(entry["image"], where),
                    image_id=image_id(entry["image"]),
                    text=entry["caption"],
                    body=BODY.format(caption=entry["caption"]),
                    answers=(self.choices[0] if entry["label"] else self.choices[1],),
                    types={"relation": entry["relation"]},
                )
            )
        return questions

    def comparison(self, question: Question) -> Comparison:
        return Comparison(true_or_false, [answer.lower() for answer in question.answers])

    def bare_body(self, question: Question) -> str:
        return f"{question.text} True or False?"

    def positive(self, question: Question, normalised: str) -> float:
        return float(normalised == "true")

    def figures(self, judged: Judged) -> Figures:
        figures: Figures = {"overall": judged.mean()}
        is_true = np.array([question.answers[0] == self.choices[0] for question in judged.questions])
        if self.answering == "likelihood" and 0 < is_true.sum() < len(is_true):  # ranking needs both sides
            from sklearn.metrics import average_precision_score, roc_auc_score

            figures["auc_roc"] = 100 * float(roc_auc_score(is_true, judged.positives))
            figures["average_precision"] = 100 * float(average_precision_score(is_true, judged.positives))
        return figures | self.breakdowns(judged)
