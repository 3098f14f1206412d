"""torchmetrics for the benchmarks: each question has one slot, so that none can count twice, on any number of ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics import Metric

from ablate.core.errors import UserError
from ablate.evaluation.benchmarks import Answer, Benchmark, Figures, Judged

UNANSWERED = -1.0


class BenchmarkMetric(Metric):
    """The figures of one benchmark, from answers that arrive in any order, on any rank.

    The state is one slot per question, put together over ranks by maximum. So ranks may have different numbers of
    questions, or none, and a question that a padded sampler hands to two ranks counts once.

    `compute` gives the benchmark's figures in percent, with `n` (questions answered), `n_expected` (of the whole set)
    and `partial`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: torch.Tensor
    positives: torch.Tensor

    def __init__(self, benchmark: Benchmark, **kwargs):
        super().__init__(**kwargs)
        self.benchmark = benchmark
        self._slots = {question.id: slot for slot, question in enumerate(benchmark.questions)}
        empty = torch.full((len(self._slots),), UNANSWERED, dtype=torch.float64)
        self.add_state("scores", default=empty, dist_reduce_fx="max")
        self.add_state("positives", default=empty.clone(), dist_reduce_fx="max")

    def update(self, ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Take in answers (n) to the questions of these ids (n).

        Raises:
            UserError: an id that the benchmark does not have.
        """
        if strangers := [each for each in ids if each not in self._slots]:
            raise UserError(f"{self.benchmark.name} has no question {', '.join(strangers[:20])}.")
        slots = [self._slots[each] for each in ids]
        questions = self.benchmark.questions
        judged = self.benchmark.judge_all([questions[slot] for slot in slots], answers)
        device = self.scores.device
        self.scores[slots] = torch.from_numpy(judged.scores).to(device)
        self.positives[slots] = torch.from_numpy(judged.positives).to(device).nan_to_num(nan=UNANSWERED)

    def judged(self) -> Judged:
        """The answered questions, in the benchmark's order."""
        scores, positives = self.scores.cpu().numpy(), self.positives.cpu().numpy()
        answered = np.flatnonzero(scores != UNANSWERED)
        positives = np.where(positives == UNANSWERED, np.nan, positives)
        questions = self.benchmark.reweighted([self.benchmark.questions[slot] for slot in answered])
        return Judged(questions, scores[answered], positives[answered])

    def compute(self) -> Figures:
        judged = self.judged()
        n, n_expected = len(judged.questions), self.benchmark.n_expected
        figures = self.benchmark.report(judged) if n else {}
        return figures | {"n": n, "n_expected": n_expected, "partial": n < n_expected}
