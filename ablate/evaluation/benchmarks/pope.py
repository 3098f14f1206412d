"""POPE (Li et al., 2023, arXiv 2305.10355), object presence on COCO val2014: https://github.com/RUCAIBox/POPE."""

import re
from collections import Counter
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ablate.core.errors import UserError
from ablate.evaluation import metrics
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Answer, Benchmark, Comparison, Figures, Judged, Question
from ablate.evaluation.files import Images, check_choice, check_fields, image_id

SPLITS = ("random", "popular", "adversarial")
SPLIT_SIZE, OLD_RANDOM_SIZE = 3_000, 2_910  # an older release has fewer in random
SCHEMA = {"question_id": int, "image": str, "text": str, "label": str}


def first_sentence_yes_or_no(text: str) -> str:
    """The official reading of a free answer: "no" if a word before the first full stop is No, no or not, else "yes".

    To the letter: "NO", "No!", "cannot" and "" read as yes; "Yes, not sure" reads as no.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def whole_answer(text: str) -> str:
    """lmms-eval's reading: the answer itself, in lower case. What is neither yes nor no is wrong."""
    return text.lower().strip()


@benchmark("pope")
class POPE(Benchmark):
    """Is there a <thing> in the image? Half of the answers are yes.

    The score is the mean of the three splits' accuracies, as Cobra and ML-Mamba report; LLaVA's is the mean of their
    F1, which the figures always have too.

    `lmms_eval` judges as lmms-eval does; the figures by split are POPE's own (lmms-eval leaves answers that are neither
    yes nor no out of its recall, and its yes ratio is the labels').
    """

    title, split = "POPE", "random, popular, adversarial"
    default_prompt = "{question}\nAnswer the question using a single word or phrase."
    modes = ("official", "lmms_eval")
    answering_modes = ("likelihood", "generate")
    choices = ("Yes", "No")
    image_folders = ("val2014", "images", ".")
    official_questions, official_images = 3 * SPLIT_SIZE, 500
    results_are_lines = True
    result_fields: ClassVar = {"question_id": (int, str), "split": str, "answer": str}

    def read_questions(self, images: Images) -> list[Question]:
        questions = []
        for split, path in self._files().items():
            with self._problems:
                questions += self.each(path, SCHEMA, partial(self._question, split, images), lines=True)
        return questions

    def _files(self) -> dict[str, Path]:
        """The file of each split; with `partial`, of those that there are."""
        if self.file is not None:
            splits = [split for split in SPLITS if split in self.file.name]
            if len(splits) != 1:
                raise UserError(f"{self.file}: its name must say which split it is: {', '.join(SPLITS)}.")
            return {splits[0]: self.file}
        found, missing = {}, []
        for split in SPLITS:
            try:
                found[split] = self.find([f"coco_pope_{split}.json"], (".", "coco", "output/coco"))
            except UserError as error:
                missing.append(error)
        self.incomplete = bool(missing)
        if missing and not (self.partial and found):
            for each in missing:
                self._problems.add(str(each))
        return found

    def _question(self, split: str, images: Images, where: str, entry: dict[str, Any]) -> Question:
        check_choice(entry["label"], ("yes", "no"), "label", where)
        return Question(
            id=f"{split}/{entry['question_id']}",  # the files' own ids restart at 1
            image=images.path(entry["image"], where),
            image_id=image_id(entry["image"]),
            text=entry["text"],
            body=self.body(entry["text"]),
            answers=(entry["label"],),
            types={"split": split},
        )

    def unanswered(self, answered: Set[str]) -> set[str]:
        """Splits may come alone: the questions of a split that no answer is for are not asked for."""
        splits = {each.partition("/")[0] for each in answered} or set(SPLITS)
        return {each for each in super().unanswered(answered) if each.partition("/")[0] in splits}

    def part_of(self, question: Question) -> str:
        return question.types["split"]

    def part_named(self, file: str) -> str:
        """lmms-eval's tasks are called pope_random, pope_pop and pope_adv."""
        words = re.split(r"[^a-z]+", file.lower())
        named = [split for split in SPLITS if split in file.lower() or split[:3] in words]
        return named[0] if len(named) == 1 else ""

    def result_id(self, entry: dict[str, Any]) -> str:
        return f"{entry['split']}/{entry['question_id']}"

    def result_answer(self, entry: dict[str, Any], where: str) -> Answer:
        """Text; in likelihood mode the likelier choice, or `p_yes`."""
        if self.answering == "likelihood" and "p_yes" in entry:
            check_fields(entry, self.result_fields | {"answer": (str, type(None)), "p_yes": (float, int)}, where)
            return Answer(probability=entry["p_yes"])
        check_fields(entry, self.result_fields, where)
        check_choice(entry["split"], SPLITS, "split", where)
        if self.answering == "likelihood":
            check_choice(entry["answer"].lower(), ("yes", "no"), "answer", where)
        return Answer(entry["answer"])

    def result_entry(self, question: Question, answer: Answer) -> dict[str, Any]:
        split, _, number = question.id.partition("/")
        return {"question_id": int(number), "split": split, "answer": self.answer_text(question, answer)}

    def parts_expected(self, questions: Sequence[Question]) -> dict[str, int]:
        old = sum(question.types["split"] == "random" for question in questions) == OLD_RANDOM_SIZE
        return dict.fromkeys(SPLITS, SPLIT_SIZE) | ({"random": OLD_RANDOM_SIZE} if old else {})

    def expected_of_release(self, questions: Sequence[Question]) -> int:
        return sum(self.parts_expected(questions).values())

    def comparison(self, question: Question) -> Comparison:
        read = whole_answer if self.mode == "lmms_eval" else first_sentence_yes_or_no
        return Comparison(read, list(question.answers))

    def positive(self, question: Question, normalised: str) -> float:
        return float(normalised == "yes")

    def weights(self, questions: Sequence[Question]) -> list[float]:
        """Such that each split counts the same."""
        sizes = Counter(question.types["split"] for question in questions)
        return [len(questions) / (len(sizes) * sizes[question.types["split"]]) for question in questions]

    def figures(self, judged: Judged) -> Figures:
        parts = judged.by("split")
        splits = [split for split in SPLITS if split in parts]
        figures: Figures = {split: yes_no_figures(parts[split]) for split in splits}
        mean = {name: float(np.mean([figures[split][name] for split in splits])) for name in figures[splits[0]]}
        return {"overall": mean["accuracy"], "mean": mean, **figures} | self.breakdowns(judged)


def yes_no_figures(judged: Judged) -> Figures:
    """Accuracy, precision, recall, F1 and the share of yes, in percent; positive = yes. What is 0 / 0 is 0."""
    is_yes = np.array([question.answers[0] == "yes" for question in judged.questions])
    said_yes = judged.positives >= 0.5
    return {
        "accuracy": 100 * float(judged.scores.mean()),
        "precision": 100 * metrics.precision(is_yes, said_yes),
        "recall": 100 * metrics.recall(is_yes, said_yes),
        "f1": 100 * metrics.f1(is_yes, said_yes),
        "yes_ratio": 100 * float(said_yes.mean()),
    }
