"""VQAv2 (Goyal et al., 2017, arXiv 1612.00837), validation split: https://visualqa.org."""

from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.evaluation import normalise
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Benchmark, Comparison, Question, plain_body, read_entries, soft_accuracy
from ablate.evaluation.files import Images, check_fields, human_answers, image_id, listed

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
FOLDERS = (".", "questions", "annotations")


@benchmark("vqav2")
class VQAv2(Benchmark):
    """Soft accuracy over ten humans' answers.

    Modes differ in what they rewrite, and published numbers in which one they used:
    `lmms_eval`: predictions and ground truth, always.
    `official_2021`: both, but neither where the ten humans agree to the letter ("Yes" against ten "yes" scores 0).
    `official_2016`: predictions wholly; ground truth's punctuation, unless the ten agree.
    `vlm_evaluation`: predictions wholly; ground truth's punctuation always. Reported by Cobra and ML-Mamba.
    """

    title, split = "VQAv2", "val"
    modes = ("lmms_eval", "official_2021", "official_2016", "vlm_evaluation")
    image_folders = ("val2014", "images", ".")
    majority_type = "question_type"
    official_questions = 214_354
    decimals = 2

    def read_questions(self, images: Images) -> list[Question]:
        path, entries = self._read(QUESTIONS, "questions", {"question_id": int, "image_id": int, "question": str})
        annotations_path, annotations = self._read(
            ANNOTATIONS,
            "annotations",
            {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "answers": list},
        )
        by_id = {annotation["question_id"]: (number, annotation) for number, annotation in enumerate(annotations)}
        ids = {entry["question_id"] for entry in entries}
        if ids != by_id.keys():
            raise UserError(
                f"{path} and {annotations_path} do not belong together: questions without annotation: "
                f"{listed(ids - by_id.keys()) or 'none'}; annotations without question: "
                f"{listed(by_id.keys() - ids) or 'none'}. Are they of one split?"
            )
        if len(by_id) < len(annotations):
            counts: dict[int, int] = {}
            for annotation in annotations:
                counts[annotation["question_id"]] = counts.get(annotation["question_id"], 0) + 1
            twice = [each for each, count in counts.items() if count > 1]
            raise UserError(f"{annotations_path}: these question ids occur more than once: {listed(twice)}.")
        return [self._question(entry, *by_id[entry["question_id"]], annotations_path, images) for entry in entries]

    def _read(self, name: str, key: str, schema: dict[str, Any]) -> tuple[Path, list[dict[str, Any]]]:
        path, document = read_entries(self.root, [name], FOLDERS)
        check_fields(document, {key: list}, str(path))
        for number, entry in enumerate(document[key]):
            check_fields(entry, schema, f"{path}, {key}[{number}]")
        return path, document[key]

    def _question(
        self, entry: dict[str, Any], number: int, annotation: dict[str, Any], path: Path, images: Images
    ) -> Question:
        where = f"{path}, annotations[{number}] (question_id {entry['question_id']})"
        if annotation["image_id"] != entry["image_id"]:
            raise UserError(f"{where}: image_id {annotation['image_id']}, but its question has {entry['image_id']}.")
        image = f"COCO_val2014_{entry['image_id']:012d}.jpg"
        return Question(
            id=str(entry["question_id"]),
            image=images.path(image, where),
            image_id=image_id(image),
            text=entry["question"],
            body=plain_body(entry["question"]),
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
        truths = [normalise.vqa(answer) for answer in answers]
        if len(set(truths)) == 1 and len({normalise.clean_whitespace(answer) for answer in set(answers)}) == 1:
            return Comparison(normalise.clean_whitespace, [normalise.clean_whitespace(answers[0])] * len(answers))
        return Comparison(normalise.vqa, truths)

    def agreement(self, matches: int) -> float:
        return soft_accuracy(matches)
