"""How many seeds and questions a difference needs, from the variance components of runs that are there (a pilot)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ablate.core.errors import UserError
from ablate.evaluation.statistics.families import MEAN, Analysis
from ablate.evaluation.statistics.seeds import apart_level

TARGET = 0.8


@dataclass(frozen=True)
class Components:
    """Variances of one comparison of two rows, each with one run on all of the pilot's questions.

    Attributes:
        images: of the difference, for any number of seeds; falls with the number of images.
        both: (seed x image) of one run; falls with images and seeds.
        seeds: of one run's score; falls with seeds alone.
        n_questions, n_images: of the pilot.
        df: degrees of freedom of `seeds`.
    """

    images: float
    both: float
    seeds: float
    n_questions: int
    n_images: int
    df: float

    def variance(self, seeds: int, share: float) -> float:
        """Of a difference with so many seeds, on this share of the pilot's images (above 1: on more of their kind)."""
        return self.images / share + 2 * self.both / share / seeds + 2 * self.seeds / seeds


@dataclass(frozen=True)
class Plan:
    """A table that could be run: `power` is the chance that it finds the difference; `cost` in the pilot's seconds."""

    seeds: int
    share: float
    questions: int
    power: float
    cost: float


def components(analysis: Analysis, pairs: Sequence[tuple[str, str]], column: str = MEAN) -> Components:
    """The mean components over these pairs of rows.

    Raises:
        UserError: where no pair has two seeds in both rows: one seed says nothing of others.
    """
    known = [
        each
        for each in analysis.compare(pairs, [column]).values()
        if each.covers_seeds and np.isfinite(each.components["images"])
    ]
    if not known:
        raise UserError(
            f"No two rows have two or more seeds each on {column}, so nothing is known of how much seeds matter. "
            "Run the pilot with at least two seeds, better three."
        )
    both, seeds, df = analysis.pools[pairs[0][0]].of_column(column)
    alone = [max(0.0, each.components["images"] - each.components["seeds_x_images"]) for each in known]
    return Components(
        images=float(np.mean(alone)),
        both=both,
        seeds=max(0.0, seeds - both),
        n_questions=known[0].n_questions,
        n_images=known[0].n_clusters,
        df=df,
    )


def power(found: Components, difference: float, seeds: int, share: float, rows: int, comparisons: int) -> float:
    """The chance that a table finds a true difference, with the critical value of so many comparisons by Bonferroni,
    which the table's own is never above, and a noncentral t. Where one of the two rows stands apart by chance
    (see `seeds`), as with two seeds it mostly does, its own variance has to do.

    Args:
        difference: a fraction of 1.
        rows: of the table, the baseline among them: their seeds are pooled.
    """
    if seeds < 2:
        return 0.0
    variance = found.variance(seeds, share)
    if variance <= 0:
        return float(difference > 0)
    one_row = (found.both / share + found.seeds) / seeds
    images = (found.images / share) ** 2 / max(1.0, found.n_images * share - 1)

    def with_df(runs: float) -> float:
        critical = stats.t.isf(0.025 / comparisons, df := variance**2 / (runs + images))
        return float(stats.nct.sf(critical, df, difference / np.sqrt(variance)))

    pooled = with_df((2 * one_row) ** 2 / (rows * (seeds - 1)))
    own = with_df(one_row**2 / (seeds - 1) + one_row**2 / max(1, (rows - 1) * (seeds - 1)))
    neither_apart = (1 - apart_level(seeds == 2, seeds - 1)) ** 2
    return neither_apart * pooled + (1 - neither_apart) * min(pooled, own)


def plans(
    found: Components,
    difference: float,
    rows: int,
    comparisons: int,
    seconds: Mapping[str, float],
    seeds: Iterable[int] = range(2, 13),
    shares: Iterable[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
) -> list[Plan]:
    """Every combination of seeds and questions.

    Args:
        seconds: "train" and "eval" of one run on all of the pilot's questions.
    """
    return [
        Plan(
            count,
            share,
            round(found.n_questions * share),
            power(found, difference, count, share, rows, comparisons),
            rows * count * (seconds["train"] + seconds["eval"] * share),
        )
        for share in shares
        for count in seeds
    ]


def cheapest(options: Iterable[Plan], target: float = TARGET) -> Plan | None:
    """The plan that reaches the power at the least cost; None if none does."""
    enough = [plan for plan in options if plan.power >= target]
    return min(enough, key=lambda plan: (plan.cost, plan.seeds, plan.share), default=None)
