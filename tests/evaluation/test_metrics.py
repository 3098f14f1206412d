"""Metrics over ranks: uneven shares, none at all, and questions that two ranks were handed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from ablate.core.errors import UserError
from ablate.evaluation import benchmarks
from ablate.evaluation.benchmarks import Answer, Benchmark
from ablate.evaluation.metrics import BenchmarkMetric

Small = Callable[..., Benchmark]
PROBABILITIES = [0.9, 0.2, 0.6, 0.6, 0.1]


def test_figures_do_not_depend_on_the_order_of_answers(small: Small) -> None:
    benchmark = small("vsr")
    together, apart = BenchmarkMetric(benchmark), BenchmarkMetric(benchmark)
    ids = [question.id for question in benchmark.questions]
    answers = [Answer(probability=probability) for probability in PROBABILITIES]
    together.update(ids, answers)
    for row in (3, 0, 4, 1, 2):
        apart.update(ids[row : row + 1], answers[row : row + 1])
    assert together.compute() == apart.compute()
    assert together.compute()["overall"] == pytest.approx(60)
    assert together.compute()["n"] == together.compute()["n_expected"] == 5


def test_a_question_counts_once(small: Small) -> None:
    metric = BenchmarkMetric(small("gqa"))
    metric.update(["201", "201", "203"], [Answer("red"), Answer("red"), Answer("wrong")])
    assert metric.compute()["overall"] == 50
    assert metric.compute()["n"] == 2


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_incomplete_answer_sheet_is_partial(small: Small) -> None:
    metric = BenchmarkMetric(small("pope"))
    assert metric.compute() == {"n": 0, "n_expected": 12, "partial": True}
    metric.update(["random/1", "popular/1", "popular/2"], [Answer(probability=0.9)] * 3)
    figures = metric.compute()
    assert (figures["n"], figures["partial"]) == (3, True)
    assert figures["overall"] == pytest.approx((100 + 50) / 2)  # the mean over the splits that were answered


def test_an_unknown_question_is_refused(small: Small) -> None:
    with pytest.raises(UserError, match="gqa has no question 999"):
        BenchmarkMetric(small("gqa")).update(["201", "999"], [Answer("red"), Answer("red")])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets(small: Small) -> None:
    metric = BenchmarkMetric(small("gqa"))
    metric.update(["201"], [Answer("red")])
    metric.reset()
    assert metric.compute()["n"] == 0


def answers_to(benchmark: Benchmark) -> list[Answer]:
    """One answer to each question, some right and some wrong."""
    if benchmark.answering == "likelihood":
        return [Answer(probability=(7 * row % 10) / 9) for row in range(len(benchmark.questions))]
    return [Answer(each.answers[0] if row % 3 else "Yes.") for row, each in enumerate(benchmark.questions)]


def shares_of(n: int, how: str) -> list[list[int]]:
    """Which of n questions each of two ranks answers."""
    if how == "uneven":
        return [list(range(n - 1)), [n - 1]]
    if how == "idle":
        return [[], list(range(n))]
    # As DistributedSampler pads: ranks take turns, and the first questions are handed out again at the end.
    return [[*range(0, n, 2), 1], [*range(1, n, 2), 0]]


def _rank(rank: int, roots: dict[str, Path], rendezvous: Path, results: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for name, answering, how in CASES:
        benchmark = benchmarks.create(name, roots[name], answering=answering, expected=None)
        metric, answers = BenchmarkMetric(benchmark), answers_to(benchmark)
        for row in shares_of(len(answers), how)[rank]:
            metric.update([benchmark.questions[row].id], [answers[row]])
        found[name, answering, how] = metric.compute()
    torch.save(found, results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


KINDS = [
    ("vqav2", "generate"),
    ("gqa", "generate"),
    ("textvqa", "generate"),
    ("pope", "likelihood"),
    ("pope", "generate"),
    ("vizwiz", "generate"),
    ("vsr", "likelihood"),
    ("vsr", "generate"),
]
CASES = [(name, answering, how) for name, answering in KINDS for how in ("padded", "uneven", "idle")]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # on the idle rank
def test_two_ranks_agree_with_one_process_on_every_benchmark(roots: dict[str, Path], tmp_path: Path) -> None:
    """Every rank has the figures of one process: a padded sampler's repeats, uneven shares, and a rank with none."""
    arguments = (roots, tmp_path / "rendezvous", tmp_path)
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, answering, how in CASES:
        alone = BenchmarkMetric(benchmarks.create(name, roots[name], answering=answering, expected=None))
        answers = answers_to(alone.benchmark)
        alone.update([question.id for question in alone.benchmark.questions], answers)
        expected = alone.compute()
        assert expected["n"] == len(answers)
        assert 0 < expected["overall"] < 100
        assert ranks[0][name, answering, how] == ranks[1][name, answering, how] == expected
