"""Ask a model a benchmark's questions and put the results together.

Work is done in *windows*: the questions of some consecutive images, sorted by length and cut into batches. So an image
is encoded once for all of its questions, only one window's features are in memory, and batches have little padding.
Which questions make a batch, and which images are encoded together, depends on the questions alone: an evaluation that
was interrupted, or that several processes share (each takes some windows), has the same batches as a single
uninterrupted process, and gives the same files.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ablate.core.errors import UserError
from ablate.core.files import known_sha256
from ablate.evaluation.answers import PredictionFile
from ablate.evaluation.baselines import Baseline, baselines
from ablate.evaluation.benchmarks import Answer, Benchmark, Figures, Question
from ablate.evaluation.files import LEAVE_OUT, ImageProblem, image_problem, left_out_text
from ablate.evaluation.statistics import Estimate
from ablate.runs.config import EvaluationConfig
from datamodules import IGNORE_INDEX
from datamodules.batches.collate import Batch, Row, collate
from datamodules.images.decode import read_image
from datamodules.images.feature_cache import FeatureStore
from datamodules.text.conversation import ConversationEncoder, PromptTemplate
from datamodules.text.tokenizer import Tokenizer

BATCHES_IN_WINDOW = 8

# task, questions answered, questions asked
Progress = Callable[[str, int, int], None]
Transform = Callable[[Image.Image], Tensor]


class VisionLanguageModel(Protocol):
    """What is asked of a vision-language model here; `ablate.model.VLM` is one."""

    def encode_images(self, batch: Batch) -> Tensor: ...

    def generate(self, batch: Batch, *, max_new_tokens: int, eos_id: int) -> list[list[int]]: ...

    def first_token_probabilities(self, batch: Batch, token_ids: list[int]) -> Tensor: ...

    def answer_log_likelihood(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class BenchmarkResult:
    """A model's score on a benchmark, in percent, with what it takes to judge it.

    `estimate` is of this one run: its interval speaks of other images, not of other seeds. `details`: every figure that
    the benchmark reports, and how it was asked. `left_out`: images that could not be used, with their questions.
    `incomplete`: a whole part of the benchmark was missing. `corpus`: the score is a metric of all answers together,
    and its interval a bootstrap over images.
    """

    score: float
    metric: str
    n: int
    n_expected: int
    estimate: Estimate
    baselines: Mapping[str, Baseline]
    details: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[ImageProblem] = ()
    incomplete: bool = False
    corpus: bool = False

    @property
    def partial(self) -> bool:
        return self.n < self.n_expected or bool(self.left_out) or self.incomplete

    def to_dict(self) -> dict[str, Any]:
        """As in result.json: plain JSON, finite numbers."""
        estimate = self.estimate
        return {
            "score": self.score,
            "metric": self.metric,
            "n": self.n,
            "n_expected": self.n_expected,
            "partial": self.partial,
            **({"corpus": True} if self.corpus else {}),
            "low": 100 * estimate.low,
            "high": 100 * estimate.high,
            "baselines": {name: baseline.score for name, baseline in self.baselines.items()},
            "details": {
                **self.details,
                "n_images": estimate.n_clusters,
                "se": 100 * estimate.se if math.isfinite(estimate.se) else None,
                "baseline_answers": {name: baseline.answer for name, baseline in self.baselines.items()},
                **({"left_out": [asdict(each) for each in self.left_out]} if self.left_out else {}),
            },
        }


@dataclass(frozen=True)
class Inputs:
    """How a question and its image become a model's input.

    Attributes:
        transforms: the encoder's preprocessing, one for each of its towers.
        num_visual_tokens: tokens that an image becomes.
        features: frozen features by image hash; images that it lacks are encoded.
    """

    tokenizer: Tokenizer
    template: PromptTemplate
    transforms: Sequence[Transform]
    num_visual_tokens: int
    features: FeatureStore | None = None


def evaluate(
    vlm: VisionLanguageModel, benchmarks: Sequence[Benchmark], inputs: Inputs, config: EvaluationConfig, **asking: Any
) -> dict[str, BenchmarkResult]:
    """Ask `vlm` every question that the folder has no answer to yet, and score all answers: `ask`, then `score`."""
    ask(vlm, benchmarks, inputs, config, **asking)
    return score(benchmarks, folder=asking["folder"], limit=config.limit)


def ask(
    vlm: VisionLanguageModel,
    benchmarks: Sequence[Benchmark],
    inputs: Inputs,
    config: EvaluationConfig,
    *,
    folder: Path,
    model_id: str = "",
    precision: str = "float32",
    device: torch.device | str = "cpu",
    part: int = 0,
    parts: int = 1,
    progress: Progress = lambda task, done, total: None,
) -> None:
    """Ask `vlm` every question that `folder` has no answer to yet.

    Args:
        vlm: in evaluation mode, on `device`.
        config: `batch_size`, `max_new_tokens` and `limit` of it are read. With a limit, scores are partial.
        folder: where the answers go (see `predictions.py`).
        model_id: what sets this model apart from others, such as a hash of its weights; answers of one are never taken
            for another's.
        precision: "float32" or "bfloat16" (under autocast); answers of one are never taken for the other's.
        part, parts: ask only every `parts`-th window of all benchmarks together, beginning with window `part`.
        progress: called with the number of answers so far, before the first batch and after each.

    Raises:
        UserError: questions or images that cannot be read, answers in `folder` of another model or to other prompts, or
            a model that has diverged. What was answered before is kept.
    """
    encoder = ConversationEncoder(inputs.tokenizer, inputs.template, inputs.num_visual_tokens)
    device = torch.device(device)
    images = _Images(vlm, inputs.transforms, inputs.features, device, config.batch_size)
    settings = {
        "model": model_id,
        "template": asdict(inputs.template),
        "max_new_tokens": config.max_new_tokens,
        "limit": config.limit,
        "precision": precision,
    }
    seen = 0  # windows of the benchmarks before
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        for benchmark in benchmarks:
            file = PredictionFile(folder, benchmark, settings, part=part)
            answer = _asker(vlm, benchmark, encoder, config.max_new_tokens)
            questions = benchmark.questions[: config.limit]
            planned = list(windows(questions, BATCHES_IN_WINDOW * config.batch_size))
            mine = planned[(part - seen) % parts :: parts]
            seen += len(planned)
            done = sum(question.id in file.answers for question in questions)
            progress(benchmark.name, done, len(questions))
            for window in mine:
                for size in _ask_window(window, answer, images, encoder, file, config.batch_size):
                    done += size
                    progress(benchmark.name, done, len(questions))


def score(benchmarks: Sequence[Benchmark], *, folder: Path, limit: int | None = None) -> dict[str, BenchmarkResult]:
    """Score the answers that `ask` has put in `folder`, and put them in order there.

    Returns:
        the results by the benchmarks' names, in their order.

    Raises:
        UserError: questions without an answer; in a `partial` benchmark those whose image cannot be decoded may be.
    """
    results = {}
    for benchmark in benchmarks:
        file = PredictionFile(folder, benchmark)
        questions = benchmark.questions[:limit]
        unusable = _unusable(questions, file.answers) if benchmark.partial else {}
        kept = benchmark.reweighted([question for question in questions if question.image not in unusable])
        left_out = [*benchmark.left_out, *unusable.values()]
        if not kept:
            raise UserError(f"No question of {benchmark.name} has an image that can be used. {left_out_text(left_out)}")
        file.finish(kept)
        results[benchmark.name] = summarise(benchmark, kept, file.answers, left_out)
    return results


def _unusable(questions: Sequence[Question], answers: Mapping[str, Answer]) -> dict[Path, ImageProblem]:
    """The images that cannot be decoded, of questions without an answer."""
    ids: dict[Path, list[str]] = {}
    for question in questions:
        if question.id not in answers:
            ids.setdefault(question.image, []).append(question.id)
    problems = {path: image_problem(path) for path in ids}
    return {path: ImageProblem(path.name, *found, tuple(ids[path])) for path, found in problems.items() if found}


def summarise(
    benchmark: Benchmark,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    left_out: Sequence[ImageProblem] = (),
) -> BenchmarkResult:
    """Score the answers to `questions` and hold them against the baselines. `left_out`: see `BenchmarkResult`."""
    judged = benchmark.judge_all(questions, [answers[question.id] for question in questions])
    figures: Figures = benchmark.report(judged)
    return BenchmarkResult(
        score=benchmark.score(judged),
        metric=benchmark.metric,
        n=len(questions),
        n_expected=benchmark.n_expected,
        estimate=benchmark.estimate(judged),
        baselines=baselines(benchmark, questions),
        details={
            "benchmark": benchmark.title,
            "split": benchmark.split,
            "mode": benchmark.mode,
            **({"mode_follows": benchmark.follows[benchmark.mode]} if benchmark.mode in benchmark.follows else {}),
            "answering": benchmark.answering,
            "prompt": benchmark.prompt,
            "prompt_text": benchmark.prompt_text,
            **benchmark.digests,
            "figures": figures,
        },
        left_out=left_out,
        incomplete=benchmark.incomplete,
        corpus=benchmark.corpus,
    )


# Questions, and rows of a prompt and perhaps an answer for each -> a batch on the device, with their images' features.
Batched = Callable[[Sequence[Question], Sequence[Row]], Batch]
# Questions, their prompts' token ids, and how to make batches of them -> their answers.
Ask = Callable[[Sequence[Question], Sequence[list[int]], Batched], list[Answer]]


def _asker(vlm: VisionLanguageModel, benchmark: Benchmark, encoder: ConversationEncoder, max_new_tokens: int) -> Ask:
    """How questions are answered in the benchmark's answering mode."""
    if benchmark.answering == "generate":
        return _generator(vlm, encoder, max_new_tokens)
    own = any(question.choices for question in benchmark.questions)
    tokens = [] if own else [encoder.answer_ids(choice)[:-1] for choice in benchmark.choices or ()]
    if len({tuple(ids) for ids in tokens}) < len(tokens):
        choices = ", ".join(map(repr, benchmark.choices or ()))
        raise UserError(f"{benchmark.name}: two of its choices are the same tokens: {choices}.")
    if tokens and all(len(ids) == 1 for ids in tokens):
        return _by_first_token(vlm, benchmark, [ids[0] for ids in tokens])
    return _by_whole_text(vlm, benchmark, encoder)


def _generator(vlm: VisionLanguageModel, encoder: ConversationEncoder, max_new_tokens: int) -> Ask:
    tokenizer = encoder.tokenizer

    def generate(questions: Sequence[Question], prompts: Sequence[list[int]], batched: Batched) -> list[Answer]:
        batch = batched(questions, _prompts(questions, prompts))
        generated = vlm.generate(batch, max_new_tokens=max_new_tokens, eos_id=tokenizer.eos_id)
        return [Answer(tokenizer.decode(ids, skip_special=True).strip()) for ids in generated]

    return generate


def _by_first_token(vlm: VisionLanguageModel, benchmark: Benchmark, tokens: list[int]) -> Ask:
    def likelihood(questions: Sequence[Question], prompts: Sequence[list[int]], batched: Batched) -> list[Answer]:
        batch = batched(questions, _prompts(questions, prompts))
        return _likeliest(benchmark, questions, vlm.first_token_probabilities(batch, tokens).tolist())

    return likelihood


def _by_whole_text(vlm: VisionLanguageModel, benchmark: Benchmark, encoder: ConversationEncoder) -> Ask:
    """The probability of a choice among the others is that of its text and end token. One pass for each choice."""

    def likelihood(questions: Sequence[Question], prompts: Sequence[list[int]], batched: Batched) -> list[Answer]:
        choices = [benchmark.choices_of(question) for question in questions]
        if none := [question.id for question, offered in zip(questions, choices, strict=True) if len(offered) < 2]:
            raise UserError(f"{benchmark.name}: these questions have no choices to compare: {', '.join(none[:20])}.")
        likelihoods = [[-math.inf] * len(offered) for offered in choices]
        for place in range(max(map(len, choices))):
            asked = [row for row, offered in enumerate(choices) if place < len(offered)]
            rows = []
            for row in asked:
                ids = encoder.answer_ids(choices[row][place])
                labels = [IGNORE_INDEX] * len(prompts[row]) + ids
                rows.append(Row(questions[row].id, prompts[row] + ids, labels))
            found = vlm.answer_log_likelihood(batched([questions[row] for row in asked], rows))
            for row, value in zip(asked, found.tolist(), strict=True):
                likelihoods[row][place] = value
        return _likeliest(benchmark, questions, [_softmax(values) for values in likelihoods])

    return likelihood


def _prompts(questions: Sequence[Question], prompts: Sequence[list[int]]) -> list[Row]:
    return [Row(question.id, ids, []) for question, ids in zip(questions, prompts, strict=True)]


def _softmax(values: Sequence[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).softmax(dim=0).tolist()


def _likeliest(
    benchmark: Benchmark, questions: Sequence[Question], probabilities: Sequence[Sequence[float]]
) -> list[Answer]:
    """Answers out of the probabilities of each question's choices."""
    if bad := [q.id for q, row in zip(questions, probabilities, strict=True) if not all(map(math.isfinite, row))]:
        raise UserError(
            f"{benchmark.name}: the model's probabilities are not numbers, at questions {', '.join(bad)}. Its training "
            "has diverged, or its weights are damaged."
        )
    return [
        Answer(probability=row[0])
        if benchmark.probability_key and not question.choices
        else Answer(probabilities=tuple(row))
        for question, row in zip(questions, probabilities, strict=True)
    ]


def _ask_window(
    window: Sequence[Question],
    ask: Ask,
    images: "_Images",
    encoder: ConversationEncoder,
    file: PredictionFile,
    batch_size: int,
) -> Iterator[int]:
    """Ask a window's questions that have no answer yet, and keep the answers; yields the size of each batch."""
    if all(question.id in file.answers for question in window):
        return
    images.begin(window)
    task = file.benchmark.name
    prompts = {
        question.id: encoder.prompt_ids(question.body, has_image=True, key=f"{task}:{question.id}")
        for question in window
    }

    def batched(questions: Sequence[Question], rows: Sequence[Row]) -> Batch:
        batch = collate(rows, pad_id=encoder.tokenizer.pad_id)
        if not any(row.labels for row in rows):
            del batch["labels"]  # a prompt has none
        return images.add(batch, questions)

    for planned in batches(window, lambda question: len(prompts[question.id]), batch_size):
        if not (unanswered := [question for question in planned if question.id not in file.answers]):
            continue
        if batch := images.usable(unanswered, file.benchmark):
            file.append(zip(batch, ask(batch, [prompts[each.id] for each in batch], batched), strict=True))
        yield len(unanswered)


def windows(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Consecutive images with all of their questions: at most `size` images, in the order of their first question."""
    by_image: dict[Path, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    groups = list(by_image.values())
    for start in range(0, len(groups), size):
        yield [question for group in groups[start : start + size] for question in group]


def batches(
    questions: Sequence[Question], length: Callable[[Question], int], size: int
) -> Iterator[Sequence[Question]]:
    """Batches of questions of about one length, the longest first: if memory is short, it is at once."""
    ordered = sorted(questions, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


class _Images:
    """The features of the images of a window: from the store, or computed once, always with the same neighbours."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        transforms: Sequence[Transform],
        store: FeatureStore | None,
        device: torch.device,
        batch_size: int,
    ):
        self._vlm, self._transforms, self._store, self._device = vlm, transforms, store, device
        self._batch_size = batch_size
        self._chunks: dict[Path, list[Question]] = {}  # image -> a question about each image that is encoded with it
        self._held: dict[Path, Tensor] = {}  # (h, w, c) each
        self._bad: set[Path] = set()  # cannot be decoded

    def begin(self, window: Sequence[Question]) -> None:
        """Forget the images of the last window; these are those of the next."""
        self._held.clear()
        by_image = {question.image: question for question in reversed(window)}
        firsts = [by_image[image] for image in dict.fromkeys(question.image for question in window)]
        chunks = [firsts[start : start + self._batch_size] for start in range(0, len(firsts), self._batch_size)]
        self._chunks = {question.image: chunk for chunk in chunks for question in chunk}

    def usable(self, questions: Sequence[Question], benchmark: Benchmark) -> list[Question]:
        """Those of the window's questions whose image can be decoded; its features are held from now on.

        Raises:
            UserError: one cannot, and the benchmark is not `partial`.
        """
        for question in questions:
            if question.image not in self._held and question.image not in self._bad:
                chunk = {each.image: each for each in self._chunks[question.image]}
                self._held |= self._features(chunk, benchmark)
        return [question for question in questions if question.image in self._held]

    def add(self, batch: Batch, questions: Sequence[Question]) -> Batch:
        """The batch on the device, with the features (n, h, w, c) of its (usable) questions' images."""
        moved = {name: value.to(self._device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        return moved | {"features": torch.stack([self._held[question.image] for question in questions])}

    def _features(self, wanted: Mapping[Path, Question], benchmark: Benchmark) -> dict[Path, Tensor]:
        """Of the images that can be decoded: out of the store if it has all of them, else computed."""
        stored = self._stored(wanted)
        images: dict[Path, Any] = {
            path: self._read(path, wanted[path], benchmark) for path in wanted if path not in stored
        }
        good = [path for path in wanted if path in stored or images[path] is not None]
        if not good:
            return {}
        if self._store is not None and set(good) <= stored.keys():
            hashes = [stored[path] for path in good]
            return dict(zip(good, self._encode({"features": self._store.get(hashes).to(self._device)}), strict=True))
        decoded = [images[path] if path in images else read_image(path) for path in good]
        towers = [
            torch.stack([transform(image) for image in decoded]).to(self._device) for transform in self._transforms
        ]
        return dict(zip(good, self._encode({"images": towers}), strict=True))

    def _stored(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The hashes of the images that the store has."""
        found: dict[Path, str] = {}
        if self._store is not None:
            for path in paths:
                with suppress(UserError):  # it cannot be read: `_read` says so
                    if (digest := known_sha256(path)) in self._store:
                        found[path] = digest
        return found

    @torch.inference_mode()
    def _encode(self, batch: Batch) -> Sequence[Tensor]:
        return self._vlm.encode_images(batch).unbind()

    def _read(self, path: Path, question: Question, benchmark: Benchmark) -> Image.Image | None:
        """None for an image that cannot be decoded, in a `partial` benchmark."""
        try:
            return read_image(path)
        except UserError as error:
            if not benchmark.partial:
                raise UserError(f"{benchmark.name}, question {question.id}: {error} {LEAVE_OUT}") from None
            self._bad.add(path)
            return None
