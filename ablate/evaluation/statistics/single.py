"""The score of one arm with its interval over images and, from two runs on, seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablate.core.errors import UserError
from ablate.evaluation.statistics.design import NO_VARIANCE, Scores

ENOUGH = 4.0  # degrees of freedom with which an estimate of the seeds' variance is not tiny by luck


@dataclass(frozen=True)
class Estimate:
    """A mean score with its interval. Everything is a fraction in [0, 1]; `components` are variances of the mean.

    `covers_seeds` is False where there is one run: then the interval speaks of other images, not of other seeds.
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    confidence: float
    n_questions: int
    n_clusters: int
    n_seeds: int
    components: Mapping[str, float] = field(default_factory=dict)

    @property
    def covers_seeds(self) -> bool:
        return self.n_seeds > 1


@dataclass(frozen=True)
class Spread:
    """Variance components of a mean over runs and images, as parts of that mean's variance.

    Attributes:
        images: of the scores averaged over the runs, which holds the (seed x image) part already.
        both: the (seed x image) part.
        seeds: of the runs' means, never below `both`, which it holds too.
        df_images, df_seeds: their degrees of freedom.
    """

    images: float
    both: float = 0.0
    seeds: float = 0.0
    df_images: float = 0.0
    df_seeds: float = 0.0

    @classmethod
    def of(cls, images: float, both: float, seeds: float, df_images: float, df_seeds: float) -> Spread:
        """`images` and `both` without rounding noise; `seeds` at least `both`, of which it is an estimate too."""
        images = images if images > NO_VARIANCE else 0.0
        both = both if both > NO_VARIANCE else 0.0
        return cls(images, both, max(both, seeds if seeds > NO_VARIANCE else 0.0), df_images, df_seeds)

    @classmethod
    def alone_of(cls, images: float, both: float, seeds: float, df_images: float, df_seeds: float) -> Spread:
        """For an interval that stands alone: `seeds` as it was estimated where it has degrees of freedom enough, for an
        estimate that is never below `both` is too high on average where seeds do not matter."""
        spread = cls.of(images, both, seeds, df_images, df_seeds)
        plain = cls(spread.images, spread.both, seeds, df_images, df_seeds)
        return plain if df_seeds >= ENOUGH and plain.variance > NO_VARIANCE else spread

    @cached_property
    def alone(self) -> float:
        """What images contribute, for any number of seeds."""
        return max(0.0, self.images - self.both)

    @cached_property
    def variance(self) -> float:
        return self.alone + self.seeds

    @cached_property
    def df(self) -> float:
        """Satterthwaite's. The seeds' part counts whole, so a small estimate of it by luck does not hide how few seeds
        there were."""
        if not np.isfinite(self.variance) or self.df_images <= 0:
            return 0.0
        parts = self.alone**2 / self.df_images + (self.seeds**2 / self.df_seeds if self.df_seeds > 0 else 0.0)
        return self.variance**2 / parts if parts > 0 else self.df_images

    def quantile(self, confidence: float) -> float:
        """Student's t quantile of a two-sided interval; infinite where there are no degrees of freedom."""
        if not 0 < confidence < 1:
            raise UserError(f"The confidence must lie between 0 and 1, got {confidence}.")
        return t_quantile(0.5 + confidence / 2, self.df)

    def as_dict(self) -> dict[str, float]:
        return {"images": self.images, "seeds": max(0.0, self.seeds - self.both), "seeds_x_images": self.both}


def score_interval(
    scores: ArrayLike,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of scores[runs, questions] and its interval: `estimate` of plain arrays."""
    return estimate(Scores(np.asarray(scores), clusters, weights, strata), confidence)


def estimate(scores: Scores, confidence: float = 0.95) -> Estimate:
    """The weighted mean score over questions and runs, with its interval over images and (from two runs on) seeds."""
    design, runs = scores.design, len(scores.seeds)
    means = design.means(scores.values)
    if not design.estimable:
        spread = Spread(float("inf"))
    else:
        influence = design.influence(scores.values)
        centre = influence.mean(axis=0)
        both = float(np.square(influence - centre).sum()) / (runs * max(1, runs - 1))
        seeds = float(means.var(ddof=1)) / runs if runs > 1 else 0.0
        spread = Spread.of(float(np.square(centre).sum()), both, seeds, design.df, runs - 1)
    mean = float(means.mean().clip(scores.values.min(), scores.values.max()))  # rounding may leave it
    return summary(mean, spread, confidence, scores.values.shape[1], len(design.images), runs)


def bootstrap(
    score: Callable[[np.ndarray], float],
    statistics: np.ndarray,
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A score of all answers together, with its interval over images drawn with replacement (Efron 1979).

    The variance is that of the score over the draws, times G / (G - 1) for G images; the interval is as for a mean.

    Args:
        score: of the statistics (answers, numbers) of any answers, in [0, 1].
        statistics: of these answers.
        clusters: the image of each answer, (answers,); an image's answers are drawn together.
    """
    images, image = np.unique(np.asarray(clusters), return_inverse=True)
    spread, number = Spread(float("inf")), len(images)
    if number > 1:
        answers = np.split(np.argsort(image, kind="stable"), np.cumsum(np.bincount(image))[:-1])
        draws = np.random.default_rng(seed).integers(number, size=(resamples, number))
        scores = [score(statistics[np.concatenate([answers[each] for each in draw])]) for draw in draws]
        spread = Spread.of(float(np.var(scores, ddof=1)) * number / (number - 1), 0.0, 0.0, number - 1, 0.0)
    return summary(score(statistics), spread, confidence, len(image), number, 1)


def mean_estimate(runs: Sequence[Estimate], confidence: float = 0.95) -> Estimate:
    """The mean of several runs' scores of the same answers together, with its interval over images and seeds.

    The images' part is the mean of the runs' own variances, as if all runs varied alike over images: at most too wide.
    """
    means, number = np.array([run.mean for run in runs]), min(run.n_clusters for run in runs)
    seeds = float(means.var(ddof=1)) / len(runs) if len(runs) > 1 else 0.0
    images = float(np.mean([run.se**2 for run in runs]))
    spread = Spread.of(images, 0.0, seeds, number - 1, len(runs) - 1) if np.isfinite(images) else Spread(images)
    return summary(float(means.mean()), spread, confidence, runs[0].n_questions, number, len(runs))


def summary(
    mean: float, spread: Spread, confidence: float, n_questions: int, n_clusters: int, n_seeds: int
) -> Estimate:
    """The estimate of a mean with this spread, its interval within [0, 1]."""
    low, high = bounded_interval(mean, spread.variance, spread.quantile(confidence), n_clusters, 0.0, 1.0)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        se=float(np.sqrt(spread.variance)),
        df=spread.df,
        confidence=confidence,
        n_questions=n_questions,
        n_clusters=n_clusters,
        n_seeds=n_seeds,
        components=spread.as_dict(),
    )


def macro(parts: Mapping[str, Scores]) -> Scores:
    """The mean over several benchmarks as one `Scores`: each benchmark counts the same, regardless of its size.

    Runs are matched by seed, so all benchmarks must have the same ones. Image ids that occur in two benchmarks are
    taken for the same image. Use the result in `estimate` and `compare` like any other.

    Raises:
        UserError: if the benchmarks' seeds differ.
    """
    if not parts:
        raise UserError("A mean over benchmarks needs at least one benchmark.")
    first = next(iter(parts.values()))
    for name, part in parts.items():
        if len(set(part.seeds)) != len(part.seeds) or sorted(part.seeds) != sorted(first.seeds):
            raise UserError(
                f"The mean over benchmarks needs the same seeds for each, once: {name} has {list(part.seeds)}, "
                f"{next(iter(parts))} has {list(first.seeds)}."
            )
    rows = [[part.seeds.index(seed) for seed in first.seeds] for part in parts.values()]
    return Scores(
        values=np.concatenate([part.values[row] for part, row in zip(parts.values(), rows, strict=True)], axis=1),
        clusters=np.concatenate([part.clusters.astype(str) for part in parts.values()]),
        weights=np.concatenate([part.weights / part.weights.sum() / len(parts) for part in parts.values()]),
        strata=np.concatenate([np.char.add(f"{name}/", part.strata.astype(str)) for name, part in parts.items()]),
        question_ids=np.concatenate(
            [np.char.add(f"{name}/", part.question_ids.astype(str)) for name, part in parts.items()]
        ),
        seeds=first.seeds,
    )


# -- Intervals --------------------------------------------------------------------------------------------------------


def t_quantile(probability: float, df: float) -> float:
    """Student's t quantile; infinite where there are no degrees of freedom."""
    return float(special.stdtrit(df, probability)) if df > 0 else float("inf")


def bounded_interval(
    mean: float, variance: float, quantile: float, n_clusters: int, lowest: float, highest: float
) -> tuple[float, float]:
    """Wilson's interval with an effective sample size, for a mean in [lowest, highest]."""
    if not np.isfinite(variance) or not np.isfinite(quantile):
        return lowest, highest
    span = highest - lowest
    p = (mean - lowest) / span
    room = p * (1 - p) * span**2
    if variance <= NO_VARIANCE * span**2 or room <= 0:
        return degenerate_interval(mean, quantile, n_clusters, lowest, highest)
    t2_over_n = quantile**2 * variance / room
    centre = (p + t2_over_n / 2) / (1 + t2_over_n)
    half = np.sqrt(t2_over_n * p * (1 - p) + t2_over_n**2 / 4) / (1 + t2_over_n)
    return float(max(lowest, lowest + span * (centre - half))), float(min(highest, lowest + span * (centre + half)))


def degenerate_interval(
    mean: float, quantile: float, n_clusters: int, lowest: float, highest: float
) -> tuple[float, float]:
    """Every image scored the same: the share of other images could still be u = t^2 / (G + t^2), Wilson's upper bound
    after none in G, and those could score anything. At 100 % this is Wilson's interval for G out of G."""
    unseen = quantile**2 / (n_clusters + quantile**2)
    return float(mean - unseen * (mean - lowest)), float(mean + unseen * (highest - mean))
