"""Scoring as many answers as VQAv2 val has, synthetic: ours beside a plain loop that follows the official script.

Times are of the processor (one core), whatever else the machine does. The plain loop scores every tenth question, and
its time is scaled up; the scores that both give must be the same.
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from ablate.evaluation import benchmarks, normalise
from ablate.evaluation.baselines import baselines
from ablate.evaluation.benchmarks import Answer, Question, vqav2

QUESTIONS, IMAGES, SHARE = 214_354, 40_504, 10
GOAL_SECONDS, GOAL_RATIO = 20.0, 10.0
MARKS = ';/[]"{}()=+\\_-><@`,?!'
VOCABULARY = "dog cat red blue left right man woman tennis frisbee t-shirt pizza bus train 1 2 3 two three on off north"
WORDS = VOCABULARY.split()


def answers(rng: random.Random) -> list[str]:
    """Ten humans who mostly agree: common answers, rare ones, and now and then marks, articles and contractions."""
    kind = rng.random()
    if kind < 0.4:
        pool = ["yes", "no"]
    elif kind < 0.95:
        pool = rng.choices(WORDS, k=3)
    else:
        pool = [f"the {rng.choice(WORDS)}, {rng.choice(WORDS)}.", f"it's a {rng.randrange(5_000)}", "doesnt say"]
    return rng.choices(pool, weights=[8, *[1] * (len(pool) - 1)], k=10)


def make() -> tuple[list[Question], list[str]]:
    rng = random.Random(0)
    questions, predictions = [], []
    for number in range(QUESTIONS):
        truth = tuple(answers(rng))
        image = f"{number % IMAGES:012d}"
        types = {"answer_type": "other", "question_type": f"type {number % 65}"}
        questions.append(Question(str(number), Path(f"{image}.jpg"), image, "?", "?", truth, types))
        predictions.append(rng.choice(truth) if rng.random() < 0.7 else rng.choice(WORDS))
    return questions, predictions


def plain_punctuation(text: str) -> str:
    out = text
    for mark in MARKS:
        if mark + " " in text or " " + mark in text or re.search(r"(\d)(\,)(\d)", text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32)


def plain_digit_article(text: str) -> str:
    words = []
    for word in text.lower().split():
        word = normalise.NUMBERS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(word)
    for place, word in enumerate(words):
        if word in normalise.CONTRACTIONS:
            words[place] = normalise.CONTRACTIONS[word]
    return " ".join(words)


def plain_score(prediction: str, truths: tuple[str, ...]) -> float:
    """The official script's loop (2021), one question."""
    result = prediction.replace("\n", " ").replace("\t", " ").strip()
    people = [
        {"answer": text.replace("\n", " ").replace("\t", " ").strip(), "answer_id": number}
        for number, text in enumerate(truths)
    ]
    if len({person["answer"] for person in people}) > 1:
        for person in people:
            person["answer"] = plain_digit_article(plain_punctuation(person["answer"]))
        result = plain_digit_article(plain_punctuation(result))
    accuracies = []
    for person in people:
        others = [other for other in people if other != person]
        matching = [other for other in others if other["answer"] == result]
        accuracies.append(min(1, len(matching) / 3))
    return sum(accuracies) / len(accuracies)


def write_official(folder: Path, questions: list[Question], predictions: list[str]) -> Path:
    """The questions as VQAv2's two files in `folder`, and the predictions as its results file."""
    asked = [{"question_id": int(q.id), "image_id": int(q.image_id), "question": q.text} for q in questions]
    annotations = [
        {
            "question_id": int(question.id),
            "image_id": int(question.image_id),
            **question.types,
            "multiple_choice_answer": question.answers[0],
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": number}
                for number, text in enumerate(question.answers, start=1)
            ],
        }
        for question in questions
    ]
    results = [{"question_id": int(q.id), "answer": text} for q, text in zip(questions, predictions, strict=True)]
    (folder / vqav2.QUESTIONS).write_text(json.dumps({"questions": asked}))
    (folder / vqav2.ANNOTATIONS).write_text(json.dumps({"annotations": annotations}))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "results.json"


def from_files(questions: list[Question], predictions: list[str], mode: str) -> tuple[float, float]:
    """Seconds of `ablate score vqav2 --json`, reading included, and its score."""
    with tempfile.TemporaryDirectory() as folder:
        results = write_official(Path(folder), questions, predictions)
        command = [sys.executable, "-m", "ablate.cli", "score", "vqav2", "--annotations", folder]
        command += ["--predictions", str(results), "--mode", mode, "--json"]
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = subprocess.run(command, check=True, capture_output=True).stdout
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
        return seconds, json.loads(printed)["scores"]["overall"]


def main() -> None:
    questions, predictions = make()
    benchmark = benchmarks.create("vqav2", ".", mode="official_2021", expected=QUESTIONS)
    benchmark.__dict__["questions"] = questions  # in place of the official files

    start = time.process_time()
    judged = benchmark.judge_all(questions, [Answer(text) for text in predictions])
    figures = benchmark.report(judged)
    ours = time.process_time() - start

    start = time.process_time()
    constant = baselines(benchmark)["constant"]
    extra = time.process_time() - start

    start = time.process_time()
    some = [
        plain_score(text, question.answers)
        for question, text in zip(questions[::SHARE], predictions[::SHARE], strict=True)
    ]
    plain = SHARE * (time.process_time() - start)

    assert all(abs(one - other) < 1e-9 for one, other in zip(judged.scores[::SHARE].tolist(), some, strict=True))
    whole, score = from_files(questions, predictions, "official_2021")
    assert score == figures["overall"]
    print(f"{QUESTIONS:,} questions x 10 answers, mode official_2021, score {figures['overall']:.2f}, one core")
    print(f"ours, with every breakdown   {ours:6.2f} s   goal < {GOAL_SECONDS:.0f} s")
    print(f"constant and majority        {extra:6.2f} s   ({constant.answer}: {constant.score:.2f})")
    print(f"plain loop (1/{SHARE} timed)      {plain:6.2f} s   {plain / ours:.1f}x   goal >= {GOAL_RATIO:.0f}x")
    print(f"ablate score from files      {whole:6.2f} s   reading, baselines and the interval included")


if __name__ == "__main__":
    main()
