"""VizWiz-VQA (Gurari et al., 2018, arXiv 1802.08218), validation split: https://vizwiz.org."""

from functools import partial
from typing import Any, ClassVar

import numpy as np

from ablate.evaluation import metrics, normalise
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    Figures,
    Judged,
    Question,
    soft_accuracy,
)
from ablate.evaluation.files import Images, check_choice, human_answers, image_id

ANNOTATIONS = "val.json"
UNANSWERABLE = "unanswerable"
SCHEMA = {"image": str, "question": str, "answerable": int, "answer_type": str, "answers": list}


@benchmark("vizwiz")
class VizWiz(Benchmark):
    """Soft accuracy over ten humans' answers to questions of blind people, some of which have no answer.

    `official` and `vlm_evaluation`: predictions are rewritten, the ground truth is compared as it is. Contractions are
    not VQAv2's: the API restores "dont" with a typographic apostrophe, vlm-evaluation with a backtick, so that it
    matches no annotator's "don't" (`normalise.VIZWIZ_CONTRACTIONS`).
    `lmms_eval`: the EvalAI processor on both.
    """

    title, split = "VizWiz", "val"
    default_prompt = (
        "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    modes = ("official", "vlm_evaluation", "lmms_eval")
    image_folders = ("val", "images", ".")
    official_questions = official_images = 4_319  # one question an image
    result_fields: ClassVar = {"image": str, "answer": str}
    decimals = 2

    def read_questions(self, images: Images) -> list[Question]:
        path = self.find([ANNOTATIONS], (".", "Annotations", "annotations"))
        return self.each(path, SCHEMA, partial(self._question, images))

    def _question(self, images: Images, where: str, entry: dict[str, Any]) -> Question:
        where = f"{where} ({entry['image']})"
        check_choice(entry["answerable"], (0, 1), "answerable", where)
        return Question(
            id=entry["image"],  # the release has no other id
            image=images.path(entry["image"], where),
            image_id=image_id(entry["image"]),
            text=entry["question"],
            body=self.body(entry["question"]),
            answers=human_answers(entry["answers"], where),
            types={
                "answer_type": entry["answer_type"],
                "answerable": "answerable" if entry["answerable"] else UNANSWERABLE,
            },
        )

    def comparison(self, question: Question) -> Comparison:
        if self.mode == "lmms_eval":
            return Comparison(normalise.evalai, [normalise.evalai(answer) for answer in question.answers])
        rewrite = normalise.vizwiz if self.mode == "official" else normalise.vizwiz_vlm_evaluation
        return Comparison(rewrite, list(question.answers))

    def agreement(self, matches: int) -> float:
        return soft_accuracy(matches)

    def positive(self, question: Question, normalised: str) -> float:
        return float(normalised == UNANSWERABLE)

    def figures(self, judged: Judged) -> Figures:
        breakdowns = self.breakdowns(judged)
        is_unanswerable = np.array([question.types["answerable"] == UNANSWERABLE for question in judged.questions])
        return {
            "overall": judged.mean(),
            **breakdowns.pop("answerable"),
            **unanswerability(is_unanswerable, judged.positives),
            **breakdowns,
        }


def unanswerability(is_unanswerable: np.ndarray, said: np.ndarray) -> Figures:
    """Average precision and F1 of recognising the unanswerable, in percent; 0 where there is none."""
    return {
        "ap": 100 * metrics.average_precision(is_unanswerable, said),
        "f1": 100 * metrics.f1(is_unanswerable, said > 0.5),
    }
