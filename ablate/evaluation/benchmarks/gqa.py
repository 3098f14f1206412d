"""GQA (Hudson & Manning, 2019, arXiv 1902.09506), testdev balanced: https://cs.stanford.edu/people/dorarad/gqa."""

import string
from typing import Any, ClassVar

from ablate.core.errors import UserError
from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.base import Benchmark, Comparison, Figures, Judged, Question
from ablate.evaluation.files import Images, check_fields, image_id, read_document

QUESTIONS = "testdev_balanced_questions.json"
SCHEMA = {"question": str, "imageId": str, "answer": str, "types": dict}
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _as_is(text: str) -> str:
    return text


def _bare(text: str) -> str:
    return text.translate(_WITHOUT_PUNCTUATION).lower()


def _llava(text: str) -> str:
    return text.rstrip(".").lower()


@benchmark("gqa")
class GQA(Benchmark):
    """Exact match with one answer. The official scorer compares as is; the peers normalise first, each differently.

    `lmms_eval`: lower case and no punctuation, predictions and ground truth.
    `llava`: predictions lose trailing full stops and become lower case.
    `vlm_evaluation`: predictions lose all punctuation and become lower case, so that "t-shirt" can never be right.
    `official`: nothing.
    """

    title, split = "GQA", "testdev_balanced"
    default_prompt = "{question}\nAnswer the question using a single word or phrase."
    modes = ("lmms_eval", "llava", "vlm_evaluation", "official")
    majority_type = "detailed"
    official_questions, official_images = 12_578, 398
    result_fields: ClassVar = {"questionId": (str, int), "prediction": str}

    def read_questions(self, images: Images) -> list[Question]:
        path = self.find([QUESTIONS], (".", "questions", "questions1.2"))
        entries = read_document(path)
        if not isinstance(entries, dict):
            raise UserError(
                f"{path}: expected an object {{question id: question}}, got a {type(entries).__name__}, which does not "
                f"say the questions' ids: use the release's own {QUESTIONS}."
            )
        questions = []
        for qid, entry in entries.items():
            with self._problems:
                questions.append(self._question(qid, entry, f'{path}, entry "{qid}"', images))
        return questions

    def _question(self, qid: str, entry: dict[str, Any], where: str, images: Images) -> Question:
        check_fields(entry, SCHEMA, where)
        types = entry["types"]
        check_fields(types, {"structural": str, "semantic": str, "detailed": str}, f"{where}, types")
        image = f"{entry['imageId']}.jpg"
        return Question(
            id=qid,
            image=images.path(image, where),
            image_id=image_id(image),
            text=entry["question"],
            body=self.body(entry["question"]),
            answers=(entry["answer"],),
            types={
                "open_or_binary": "open" if types["structural"] == "query" else "binary",
                "structural": types["structural"],
                "semantic": types["semantic"],
                "detailed": types["detailed"],
            },
        )

    def comparison(self, question: Question) -> Comparison:
        [answer] = question.answers
        if self.mode == "lmms_eval":
            return Comparison(_bare, [_bare(answer)])
        rewrite = {"llava": _llava, "vlm_evaluation": _bare, "official": _as_is}[self.mode]
        return Comparison(rewrite, [answer])

    def figures(self, judged: Judged) -> Figures:
        breakdowns = self.breakdowns(judged)
        overall = judged.mean()
        return {"overall": overall, "accuracy": overall, **breakdowns.pop("open_or_binary"), **breakdowns}
