"""Metrics over ranks: uneven shares, none at all, and questions that two ranks were handed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from ablate.errors import UserError
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


def _rank(rank: int, root: Path, shares: list[list[int]], rendezvous: Path, results: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(shares))
    benchmark = benchmarks.create("vsr", root, expected=None)
    metric = BenchmarkMetric(benchmark)
    for row in shares[rank]:
        metric.update([benchmark.questions[row].id], [Answer(probability=PROBABILITIES[row])])
    torch.save(metric.compute(), results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([[0, 2, 4], [1, 3, 0]], id="padded"),  # what DistributedSampler does with 5 questions
        pytest.param([[0, 1, 2, 3, 4], []], id="one idle"),
    ],
)
def test_ranks_agree_with_one_process(shares: list[list[int]], roots: dict[str, Path], tmp_path: Path) -> None:
    arguments = (roots["vsr"], shares, tmp_path / "rendezvous", tmp_path)
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=len(shares), start_method="fork")
    alone = BenchmarkMetric(benchmarks.create("vsr", roots["vsr"], expected=None))
    alone.update([str(row) for row in range(5)], [Answer(probability=probability) for probability in PROBABILITIES])
    for rank in range(len(shares)):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == alone.compute()
