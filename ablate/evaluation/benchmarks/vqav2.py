"""VQAv2 (Goyal et al., 2017, arXiv 1612.00837), validation split: https://visualqa.org."""

from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar

from ablate.core.errors import UserError
from ablate.evaluation import normalise
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Benchmark, Comparison, Question, refuse_duplicates, soft_accuracy
from ablate.evaluation.files import (
    Images,
    check_fields,
    find_file,
    human_answers,
    image_id,
    listed,
    read_document,
    the_list_in,
)

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
FOLDERS = (".", "questions", "annotations")
QUESTION = {"question_id": int, "image_id": int, "question": str}
ANNOTATION = {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "answers": list}

# Modes that look at whether the ten humans agree: predictions where they do, predictions elsewhere, ground truth
# elsewhere.
_UNLESS_UNANIMOUS = {
    "official_2021": (normalise.clean_whitespace, normalise.vqa, normalise.vqa),
    "lmms_eval_2025_07": (normalise.clean_whitespace, normalise.vqa_lmms_eval, normalise.vqa_lmms_eval),
    "lmms_eval_2024": (normalise.evalai, normalise.evalai_and_vqa_lmms_eval, normalise.vqa_lmms_eval),
}


@benchmark("vqav2")
class VQAv2(Benchmark):
    """Soft accuracy over ten humans' answers.

    Modes differ in what they rewrite, and published numbers in which one they used:
    `lmms_eval`: predictions and ground truth, always (since 2025-08-11; releases 0.5.0 to 0.7).
    `lmms_eval_2025_07`: lmms-eval from 2025-07-15 to then (releases 0.3.5, 0.4.0), as `official_2021`.
    `lmms_eval_2024`: lmms-eval before (releases to 0.3.0): predictions by the EvalAI processor; where the ten humans do
    not agree to the letter, the ground truth too, and predictions once more.
    `official_2021`: both, but neither where the ten humans agree to the letter ("Yes" against ten "yes" scores 0).
    `official_2016`: predictions wholly; ground truth's punctuation, unless the ten agree.
    `vlm_evaluation`: predictions wholly; ground truth's punctuation always. Reported by Cobra and ML-Mamba.
    """

    title, split = "VQAv2", "val"
    default_prompt = "{question}\nAnswer the question using a single word or phrase."
    modes = ("lmms_eval", "official_2021", "official_2016", "vlm_evaluation", "lmms_eval_2025_07", "lmms_eval_2024")
    follows: ClassVar = {
        "lmms_eval": "lmms-eval 0.5.0 to 0.7, the rules since 2025-08-11",
        "lmms_eval_2025_07": "lmms-eval 0.3.5 and 0.4.0, the rules from 2025-07-15 to 2025-08-10",
        "lmms_eval_2024": "lmms-eval up to 0.3.0, the rules before 2025-07-15",
    }
    image_folders = ("val2014", "images", ".")
    majority_type = "question_type"
    official_questions, official_images = 214_354, 40_504
    result_fields: ClassVar = {"question_id": (int, str), "answer": str}
    decimals = 2

    def read_questions(self, images: Images) -> list[Question]:
        annotations_path, annotations, asked = self.root, {}, {}
        with self._problems:
            annotations_path = self.find([ANNOTATIONS], FOLDERS)
            annotations = self._read(annotations_path, "annotations", ANNOTATION)
        by_id = {annotation["question_id"]: number for number, annotation in annotations.items()}
        with self._problems:
            if (path := self._questions_file()) is not None:
                entries = self._read(path, "questions", QUESTION)
                asked = {entry["question_id"]: entry for entry in entries.values()}
                self._check_join(path, asked.keys(), annotations_path, by_id.keys())
        questions = []
        for qid in asked or by_id:  # in the order of the questions file
            if (number := by_id.get(qid)) is None:
                continue
            where = f"{annotations_path}, annotations[{number}] (question_id {qid})"
            with self._problems:
                questions.append(self._question(asked.get(qid), annotations[number], where, images))
        return questions

    def _questions_file(self) -> Path | None:
        """None: to score answers, the annotations are enough."""
        alone = self.file is not None or not self._check_images
        if alone and not any((self.root / folder / QUESTIONS).is_file() for folder in FOLDERS):
            return None
        return find_file(self.root, [QUESTIONS], FOLDERS)

    def _read(self, path: Path, key: str, schema: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """The sound entries of the file's list, by their place in it."""
        document = read_document(path)
        entries = document.get(key) if isinstance(document, dict) else None
        if entries is None:
            entries = the_list_in(document, schema)
        if not isinstance(entries, list):
            check_fields(document, {key: list}, str(path))
        if isinstance(document, dict):
            self.check_split(document.get("data_subtype"), str(path))
        sound = {}
        for number, entry in enumerate(entries):
            with self._problems:
                check_fields(entry, schema, f"{path}, {key}[{number}]")
                sound[number] = entry
        with self._problems:
            refuse_duplicates((str(entry["question_id"]) for entry in sound.values()), str(path))
        return sound

    def _check_join(self, questions: Path, asked: Set[int], annotations: Path, annotated: Set[int]) -> None:
        if asked != annotated:
            self._problems.add(
                f"{questions} and {annotations} do not belong together: questions without annotation: "
                f"{listed(asked - annotated) or 'none'}; annotations without question: "
                f"{listed(annotated - asked) or 'none'}. Are they of one split?"
            )

    def _question(
        self, entry: dict[str, Any] | None, annotation: dict[str, Any], where: str, images: Images
    ) -> Question:
        if entry is not None and annotation["image_id"] != entry["image_id"]:
            raise UserError(f"{where}: image_id {annotation['image_id']}, but its question has {entry['image_id']}.")
        image = f"COCO_val2014_{annotation['image_id']:012d}.jpg"
        text = entry["question"] if entry is not None else ""
        return Question(
            id=str(annotation["question_id"]),
            image=images.path(image, where),
            image_id=image_id(image),
            text=text,
            body=self.body(text),
            answers=human_answers(annotation["answers"], where),
            types={"answer_type": annotation["answer_type"], "question_type": annotation["question_type"]},
        )

    def comparison(self, question: Question) -> Comparison:
        answers = question.answers
        if self.mode == "lmms_eval":
            return Comparison(normalise.vqa_lmms_eval, [normalise.vqa_lmms_eval(answer) for answer in answers])
        if self.mode == "vlm_evaluation":
            return Comparison(normalise.vqa, [normalise.vqa_punctuation(answer) for answer in answers])
        if self.mode == "official_2016":
            unanimous = len(set(answers)) == 1
            truths = list(answers) if unanimous else [normalise.vqa_punctuation(answer) for answer in answers]
            return Comparison(normalise.vqa, truths)
        unanimous = len({normalise.clean_whitespace(answer) for answer in set(answers)}) == 1
        alone, rewrite, rewrite_truth = _UNLESS_UNANIMOUS[self.mode]
        if unanimous:
            return Comparison(alone, [normalise.clean_whitespace(answers[0])] * len(answers))
        return Comparison(rewrite, [rewrite_truth(answer) for answer in answers])

    def agreement(self, matches: int) -> float:
        return soft_accuracy(matches)
