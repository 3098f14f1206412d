"""TextVQA (Singh et al., 2019, arXiv 1904.08920), validation split, versions 0.5.1 and 0.5: https://textvqa.org."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ablate.core.errors import UserError
from ablate.evaluation import normalise
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    Question,
    soft_accuracy,
)
from ablate.evaluation.files import (
    Images,
    check_fields,
    find_file,
    human_answers,
    image_id,
    listed,
    read_document,
    read_records,
    the_list_in,
)

ANNOTATIONS = ("TextVQA_0.5.1_val.json", "TextVQA_0.5_val.json")  # the second is the older release
OCR = "llava_textvqa_val_v051_ocr.jsonl"
OCR_LINE = "Reference OCR token:"
LAST_LINE = "Answer the question using a single word or phrase."
SCHEMA = {"question_id": int, "question": str, "image_id": str, "answers": list}


@benchmark("textvqa")
class TextVQA(Benchmark):
    """Soft accuracy over ten humans' answers, both sides through the EvalAI processor; every scorer agrees on it.

    The prompt `official` is the question alone. `llava` and `cobra` add the words that an OCR system read (LLaVA's file
    `llava_textvqa_val_v051_ocr.jsonl`), after the question and before it: they measure something else.
    """

    title, split = "TextVQA", "val"
    default_prompt = "{question}\nAnswer the question using a single word or phrase."
    modes = ("official", "evalai", "llava", "lmms_eval", "vlm_evaluation")  # one and the same, under all its names
    placeholders = ("question", "Question", "ocr")
    image_folders = ("train_images", "images", ".")
    official_questions, official_images = 5_000, 3_166
    result_fields: ClassVar = {"question_id": (int, str), "answer": str}

    def read_questions(self, images: Images) -> list[Question]:
        path = self.find(ANNOTATIONS)
        document = read_document(path)
        entries: Any = document.get("data") if isinstance(document, dict) else None
        if entries is None:
            entries = the_list_in(document, SCHEMA)
        if not isinstance(entries, list):
            check_fields(document, {"data": list}, str(path))
        if isinstance(document, dict):
            self.check_split(document.get("dataset_type"), str(path))
        checking = self._problems.collect and (self.root / OCR).is_file()
        with_ocr = "{ocr}" in self.prompt_text or checking
        ocr = self._read_ocr() if with_ocr else {}
        questions = []
        for number, entry in enumerate(entries):
            with self._problems:
                questions.append(self._question(entry, f"{path}, data[{number}]", ocr, images))
        if with_ocr:
            self._check_ocr(questions, ocr)
        return questions

    def _check_ocr(self, questions: Sequence[Question], ocr: Mapping[tuple[str, str], str]) -> None:
        missing = [each.id for each in questions if (each.image.stem, each.text.lower()) not in ocr]
        if missing:
            self._problems.add(
                f"{self.root / OCR} has no line for these questions: {listed(missing)}. "
                "Lines are found by image and question."
            )

    def _question(
        self, entry: dict[str, Any], where: str, ocr: Mapping[tuple[str, str], str], images: Images
    ) -> Question:
        check_fields(entry, SCHEMA, where)
        where = f"{where} (question_id {entry['question_id']})"
        image, text = f"{entry['image_id']}.jpg", entry["question"]
        return Question(
            id=str(entry["question_id"]),
            image=images.path(image, where),
            image_id=image_id(image),
            text=text,
            body=self.body(text, ocr=ocr.get((entry["image_id"], text.lower()), "")),
            answers=human_answers(entry["answers"], where),
        )

    def _read_ocr(self) -> Mapping[tuple[str, str], str]:
        """(image id, question in lower case) -> the OCR words. The file's question_id is an image's: not unique."""
        path = find_file(self.root, [OCR])
        found: dict[tuple[str, str], str] = {}
        schema = {"question_id": str, "text": str}
        for where, entry in read_records(path, schema, self._problems, lines=True):
            with self._problems:
                check_fields(entry, schema, where)
                question, words = _split_ocr(entry["text"], where)
                key = entry["question_id"], question.lower()
                if found.setdefault(key, words) != words:
                    raise UserError(f"{where}: other words than a line before has for the same image and question.")
        return found

    def comparison(self, question: Question) -> Comparison:
        return Comparison(normalise.evalai, [normalise.evalai(answer) for answer in question.answers])

    def agreement(self, matches: int) -> float:
        return soft_accuracy(matches)


@benchmark("textvqa_llava")
class TextVQALLaVA(TextVQA):
    """TextVQA with the OCR words after the question, as LLaVA asks it: in addition to the plain one, from the same
    folder.
    """

    folder, always_asked = "textvqa", "llava"


@benchmark("textvqa_cobra")
class TextVQACobra(TextVQA):
    """TextVQA with the OCR words before the question, as Cobra and ML-Mamba ask it."""

    folder, always_asked = "textvqa", "cobra"


def _split_ocr(text: str, where: str) -> tuple[str, str]:
    """Question and OCR words of `question\\nReference OCR token: a, b\\nAnswer ...` (the words may be missing)."""
    lines = text.split("\n")
    words = [line.removeprefix(OCR_LINE).strip() for line in lines if line.startswith(OCR_LINE)]
    rest = [line for line in lines if not line.startswith(OCR_LINE) and line != LAST_LINE]
    if len(words) != 1 or not rest:
        raise UserError(f"{where}: expected a question and one line that starts with {OCR_LINE!r}, got {text[:80]!r}.")
    return "\n".join(rest), words[0]
