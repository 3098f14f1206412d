"""TextVQA (Singh et al., 2019, arXiv 1904.08920), validation split, version 0.5.1: https://textvqa.org."""

from collections.abc import Mapping
from pathlib import Path

from ablate.errors import UserError
from ablate.evaluation import normalise
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import (
    SHORT_ANSWER,
    Benchmark,
    Comparison,
    Question,
    plain_body,
    read_entries,
    soft_accuracy,
)
from ablate.evaluation.files import Images, check_fields, find_file, human_answers, image_id, listed, read_json_lines

ANNOTATIONS = "TextVQA_0.5.1_val.json"
OCR = "llava_textvqa_val_v051_ocr.jsonl"
OCR_LINE = "Reference OCR token: "
SCHEMA = {"question_id": int, "question": str, "image_id": str, "answers": list}


@benchmark("textvqa")
class TextVQA(Benchmark):
    """Soft accuracy over ten humans' answers, both sides through the EvalAI processor; every scorer agrees on it.

    Prompts: `plain` is the question alone. `llava` and `cobra` add the words that an OCR system read (LLaVA's file
    `llava_textvqa_val_v051_ocr.jsonl`), after the question and before it: they measure something else.
    """

    title, split = "TextVQA", "val"
    modes = ("official", "lmms_eval", "vlm_evaluation")
    prompts = ("plain", "llava", "cobra")
    image_folders = ("train_images", "images", ".")
    official_questions = 5_000

    def read_questions(self, images: Images) -> list[Question]:
        path, document = read_entries(self.root, [ANNOTATIONS], (".",))
        check_fields(document, {"data": list}, str(path))
        with_ocr = self.prompt in ("llava", "cobra")
        ocr = self._read_ocr() if with_ocr else {}
        questions, without_ocr = [], []
        for number, entry in enumerate(document["data"]):
            check_fields(entry, SCHEMA, f"{path}, data[{number}]")
            where = f"{path}, data[{number}] (question_id {entry['question_id']})"
            image, text = f"{entry['image_id']}.jpg", entry["question"]
            key = (entry["image_id"], text.lower())
            if with_ocr and key not in ocr:
                without_ocr.append(entry["question_id"])
                continue
            questions.append(
                Question(
                    id=str(entry["question_id"]),
                    image=images.path(image, where),
                    image_id=image_id(image),
                    text=text,
                    body=self._body(text, ocr.get(key, "")),
                    answers=human_answers(entry["answers"], where),
                )
            )
        if without_ocr:
            raise UserError(f"{self.root / OCR} has no line for these questions of {path}: {listed(without_ocr)}.")
        return questions

    def _body(self, question: str, ocr: str) -> str:
        if self.prompt == "llava":
            return f"{question.capitalize()}\n{OCR_LINE}{ocr}\n{SHORT_ANSWER}"
        if self.prompt == "cobra":
            return f"{OCR_LINE}{ocr}\n{question.capitalize()}\n{SHORT_ANSWER}"
        return plain_body(question)

    def _read_ocr(self) -> Mapping[tuple[str, str], str]:
        """(image id, question in lower case) -> the OCR words. The file's question_id is an image's: not unique."""
        path = find_file(self.root, [OCR])
        found: dict[tuple[str, str], str] = {}
        for number, entry in read_json_lines(path):
            where = f"{path}, line {number}"
            check_fields(entry, {"question_id": str, "text": str}, where)
            question, words = _split_ocr(entry["text"], where)
            found[entry["question_id"], question.lower()] = words
        return found

    def comparison(self, question: Question) -> Comparison:
        return Comparison(normalise.evalai, [normalise.evalai(answer) for answer in question.answers])

    def agreement(self, matches: int) -> float:
        return soft_accuracy(matches)


def _split_ocr(text: str, where: Path | str) -> tuple[str, str]:
    """Question and OCR words of `question\\nReference OCR token: a, b\\nAnswer ...` (the words may be missing)."""
    lines = text.split("\n")
    words = [line.removeprefix(OCR_LINE.rstrip()).strip() for line in lines if line.startswith(OCR_LINE.rstrip())]
    rest = [line for line in lines if not line.startswith(OCR_LINE.rstrip()) and line != SHORT_ANSWER]
    if len(words) != 1 or not rest:
        raise UserError(f"{where}: expected a question and one line that starts with {OCR_LINE!r}, got {text[:80]!r}.")
    return "\n".join(rest), words[0]
