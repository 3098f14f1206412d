"""Is the difference real? Intervals and tests for scores of several runs over one set of questions.

**What varies.** A score is measured on a sample of images, each with some questions, and by runs that differ in their
seed. Every run answers the same questions, so the two samples are *crossed*: score of run s on question q is

    y[s, q] = mean + image effect + seed effect + (seed x image) effect

and images and seeds are both random draws (Clark, 1973; Owen, 2007; Miller, 2024, section 3). The variance of the mean
over S runs is then estimated by the crossed ANOVA, which for unequal clusters is two-way cluster-robust variance
(Cameron, Gelbach & Miller, 2011):

    V = V_images + max(0, V_seeds - V_both)

- `V_images`: cluster-robust over images, of the scores averaged over the runs. Questions of one photo are answered
  alike and are not independent. The bias-reduced form CR2 of Bell & McCaffrey (2002), with their degrees of freedom.
- `V_seeds`: the variance of the runs' means, over S. The runs share their questions, so which questions were drawn does
  not enter it; only the (seed x image) part does, which `V_images` has already counted:
- `V_both`: that part, from the doubly centred scores.

Degrees of freedom are Satterthwaite's (1946). With three seeds and a large seed effect they approach two, and the
interval is as wide as that deserves. How often a 95 % interval holds the truth, simulated (200,000 draws, normal
effects, 150 images, V_both a fifth of V_images), by the true ratio of the seeds' part to V_images:

    ratio     0     0.1   0.3   1     3     10
    2 seeds  96.1  95.7  95.1  92.8  89.6  87.6
    3 seeds  96.0  95.6  95.1  94.0  92.7  92.3
    5 seeds  95.6  95.5  95.1  94.7  94.3  94.2

So use three seeds or more where a claim rests on it. **One run says nothing about seeds**: its interval covers the
sampling of images alone, and `Estimate.covers_seeds` is False.

**Bounds.** Scores live in [0, 1], so intervals are Wilson's (1927) with the t quantile and the effective sample size
mean * (1 - mean) / V (Korn & Graubard, 1998): they cannot leave the bounds, and near the middle equal mean +- t * se.
Where every image scores the same (100 %, say), V is 0 but the interval is not: see `_degenerate_interval`.

**Differences** use the same machinery on the per-question differences of two arms: what both find hard cancels out.

**Several benchmarks at once** (`macro`): the questions of all of them, weighted so that each benchmark counts the same,
centred within each. Seed effects that are shared across benchmarks, and photos that two benchmarks share, are then
counted as what they are.

References: Clark, J. Verb. Learn. Verb. Behav. 12 (1973). Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1 (2007).
Cameron, Gelbach, Miller, J. Bus. Econ. Stat. 29 (2011). Bell & McCaffrey, Survey Methodology 28 (2002). Satterthwaite,
Biometrics Bull. 2 (1946). Wilson, JASA 22 (1927). Korn & Graubard, Survey Methodology 24 (1998). Holm, Scand. J. Stat.
6 (1979). Miller, Adding error bars to evals, arXiv 2411.00640 (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ablate.core.errors import UserError

Floats = NDArray[np.float64]

NO_VARIANCE = 1e-20  # rounding leaves this much where all scores are alike; one question of a million differs by more


# -- What is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The scores of one arm (a connector, say): one row a run, one column a question.

    Attributes:
        values: (runs, questions) float64 in [0, 1].
        clusters: (questions,) the image of each question: questions of one image are not independent.
        weights: (questions,) > 0; a run's score is the weighted mean. None: all alike.
        strata: (questions,) the part of a fixed design that each question belongs to (the benchmark, in `macro`).
            Differences between strata are not sampling noise. None: one stratum.
        question_ids: (questions,) unique; what `compare` pairs by. None: by position.
        seeds: (runs,) the seed of each run; what `compare` pairs runs by. None: 0, 1, ...
    """

    values: Floats
    clusters: NDArray | None = None
    weights: Floats | None = None
    strata: NDArray | None = None
    question_ids: NDArray | None = None
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        values = np.atleast_2d(np.asarray(self.values, dtype=np.float64))
        if values.ndim != 2 or values.size == 0:
            raise UserError(f"Scores must be (runs, questions) with at least one of each, got shape {values.shape}.")
        if not np.isfinite(values).all():
            raise UserError("Scores must be finite numbers: a run with unanswered questions cannot be compared.")
        runs, questions = values.shape
        columns = {
            "clusters": np.arange(questions) if self.clusters is None else np.asarray(self.clusters),
            "weights": np.ones(questions) if self.weights is None else np.asarray(self.weights, dtype=np.float64),
            "strata": np.zeros(questions, dtype=np.int64) if self.strata is None else np.asarray(self.strata),
            "question_ids": np.arange(questions) if self.question_ids is None else np.asarray(self.question_ids),
        }
        for name, column in columns.items():
            if column.shape != (questions,):
                raise UserError(f"{name} must have one entry for each of {questions} questions, got {column.shape}.")
            object.__setattr__(self, name, column)
        if not (np.isfinite(self.weights) & (self.weights > 0)).all():
            raise UserError("Weights must be positive numbers.")
        seeds = tuple(range(runs)) if self.seeds is None else tuple(self.seeds)
        if len(seeds) != runs:
            raise UserError(f"seeds must have one entry for each of {runs} runs, got {len(seeds)}.")
        object.__setattr__(self, "seeds", seeds)
        object.__setattr__(self, "values", values)

    def take(self, columns: NDArray, rows: Sequence[int] | None = None) -> Scores:
        """These questions (and runs) alone, in this order."""
        rows = range(len(self.seeds)) if rows is None else rows
        return Scores(
            self.values[np.asarray(rows)][:, columns],
            self.clusters[columns],
            self.weights[columns],
            self.strata[columns],
            self.question_ids[columns],
            tuple(self.seeds[row] for row in rows),
        )


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
class Comparison:
    """The mean of a - b with its interval and the two-sided p-value of "no difference".

    `paired_seeds`: both arms have the same seeds, and run s of one was compared with run s of the other.
    `n_unpaired`: questions that only one of the two answered, left out.
    """

    difference: float
    low: float
    high: float
    p_value: float
    se: float
    df: float
    confidence: float
    n_questions: int
    n_clusters: int
    n_seeds: tuple[int, int]
    paired_seeds: bool
    n_unpaired: int
    components: Mapping[str, float] = field(default_factory=dict)

    @property
    def covers_seeds(self) -> bool:
        return min(self.n_seeds) > 1


def score_interval(
    scores: ArrayLike,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of scores[runs, questions] and its interval: `estimate` of plain arrays."""
    return estimate(Scores(scores, clusters, weights, strata), confidence)


def estimate(scores: Scores, confidence: float = 0.95) -> Estimate:
    """The weighted mean score over questions and runs, with its interval over images and (from two runs on) seeds."""
    design = _Design.of(scores)
    parts = _components(design, [scores.values], [1.0])
    mean = float(
        design.means(scores.values).mean().clip(scores.values.min(), scores.values.max())
    )  # rounding may leave it
    low, high = _bounded_interval(mean, parts.variance, parts.quantile(confidence), design.n_clusters, 0.0, 1.0)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        se=float(np.sqrt(parts.variance)),
        df=parts.df,
        confidence=confidence,
        n_questions=scores.values.shape[1],
        n_clusters=design.n_clusters,
        n_seeds=len(scores.seeds),
        components=parts.as_dict(),
    )


def compare(a: Scores, b: Scores, confidence: float = 0.95) -> Comparison:
    """Is arm `a` better than arm `b`? Paired by question id, and by seed where both have the same seeds.

    Weights, images and strata are those of `a`. With different seeds (or numbers of runs) the two seed effects are
    independent, and their variances add up, as in Welch's test.
    """
    a, b, n_unpaired = _pair_questions(a, b)
    design = _Design.of(a)
    paired = len(set(a.seeds)) == len(a.seeds) and sorted(a.seeds) == sorted(b.seeds)
    if paired:
        order = [b.seeds.index(seed) for seed in a.seeds]
        parts = _components(design, [a.values - b.values[order]], [1.0])
    else:
        parts = _components(design, [a.values, b.values], [1.0, -1.0])
    difference = float(design.means(a.values).mean() - design.means(b.values).mean())
    quantile = parts.quantile(confidence)
    low, high = _difference_interval(difference, parts.variance, quantile, design.n_clusters)
    return Comparison(
        difference=difference,
        low=low,
        high=high,
        p_value=_p_value(difference, parts, design.n_clusters),
        se=float(np.sqrt(parts.variance)),
        df=parts.df,
        confidence=confidence,
        n_questions=a.values.shape[1],
        n_clusters=design.n_clusters,
        n_seeds=(len(a.seeds), len(b.seeds)),
        paired_seeds=paired,
        n_unpaired=n_unpaired,
        components=parts.as_dict(),
    )


def macro(parts: Mapping[str, Scores]) -> Scores:
    """The mean over several benchmarks as one `Scores`: each benchmark counts the same, whatever its size.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjustment: reject where the result is <= alpha, and the chance that any of the rejected
    hypotheses is true is at most alpha, however the tests depend on one another. Same order as given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


# -- Variance ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Design:
    """How questions, images and strata hang together: all that the variance of a mean needs besides the scores.

    `share` (questions,) sums to 1. A *cell* is one image within one stratum; `cell` (questions,) is the cell of each
    question, `cell_cluster` (cells,) the image of each cell, and `cell_scale` (cells,) the CR2 factor
    1 / sqrt(1 - leverage), the leverage being the cell's share of its stratum (exact for equal weights).
    """

    share: Floats
    stratum: NDArray[np.int64]
    n_strata: int
    n_clusters: int
    cell: NDArray[np.int64]
    cell_cluster: NDArray[np.int64]
    cell_scale: Floats
    df: float

    @classmethod
    def of(cls, scores: Scores) -> _Design:
        share = scores.weights / scores.weights.sum()
        _, stratum = np.unique(scores.strata, return_inverse=True)
        _, cluster = np.unique(scores.clusters, return_inverse=True)
        n_strata, n_clusters = int(stratum.max()) + 1, int(cluster.max()) + 1
        cells, cell = np.unique(stratum * n_clusters + cluster, return_inverse=True)
        cell_stratum, cell_cluster = cells // n_clusters, cells % n_clusters
        leverage = np.bincount(cell, share) / np.bincount(stratum, share)[cell_stratum]
        with np.errstate(divide="ignore"):
            cell_scale = 1 / np.sqrt(1 - np.minimum(leverage, 1.0))
        return cls(share, stratum, n_strata, n_clusters, cell, cell_cluster, cell_scale, _cluster_df(share, cluster))

    @property
    def estimable(self) -> bool:
        """False where a stratum has a single image: nothing can be said of other images then."""
        return bool(np.isfinite(self.cell_scale).all())

    @cached_property
    def _stratum_share(self) -> Floats:
        return np.bincount(self.stratum, self.share)

    def means(self, values: Floats) -> Floats:
        """(runs, questions) -> (runs,): each run's weighted mean."""
        return values @ self.share

    def cluster_variance(self, values: Floats) -> float:
        """The CR2 cluster-robust variance of the weighted mean of values (questions,)."""
        centre = np.bincount(self.stratum, self.share * values) / self._stratum_share
        residual = self.share * (values - centre[self.stratum])
        cell_sums = np.bincount(self.cell, residual) * self.cell_scale
        return float(np.square(np.bincount(self.cell_cluster, cell_sums)).sum())


def _cluster_df(share: Floats, cluster: NDArray[np.int64]) -> float:
    """Bell & McCaffrey's degrees of freedom of the CR2 variance of a mean, under independent questions.

    In closed form, with h_g the part of the mean's variance that comes from image g and p_g = h_g^2 / (1 - h_g):
    1 / (sum h^2 + (sum p)^2 - sum p^2). For G images of one size it is G - 1; unequal ones give fewer.
    """
    h = np.bincount(cluster, np.square(share))
    h = h / h.sum()
    if h.max() >= 1:
        return 0.0
    p = h**2 / (1 - h)
    return float(1 / (np.square(h).sum() + p.sum() ** 2 - np.square(p).sum()))


@dataclass(frozen=True)
class _Components:
    images: float
    seeds: float  # V_seeds - V_both, not below 0
    both: float
    df: float

    @property
    def variance(self) -> float:
        return self.images + self.seeds

    def quantile(self, confidence: float) -> float:
        """Student's t quantile of a two-sided interval; infinite where there are no degrees of freedom."""
        if not 0 < confidence < 1:
            raise UserError(f"The confidence must lie between 0 and 1, got {confidence}.")
        return float(stats.t.ppf(0.5 + confidence / 2, self.df)) if self.df > 0 else float("inf")

    def as_dict(self) -> dict[str, float]:
        return {"images": self.images, "seeds": self.seeds, "seeds_x_images": self.both}


def _components(design: _Design, arms: Sequence[Floats], signs: Sequence[float]) -> _Components:
    """Variance components of sum_i sign_i * (mean of arm i); arms (runs_i, questions) share questions, not seeds."""
    if not design.estimable:
        return _Components(float("inf"), 0.0, 0.0, 0.0)
    averaged = sum(sign * values.mean(axis=0) for sign, values in zip(signs, arms, strict=True))
    images = design.cluster_variance(averaged)
    images = images if images > NO_VARIANCE else 0.0
    seeds, both, spread, fewest = 0.0, 0.0, images**2 / design.df, design.df
    for values in arms:
        runs = len(values)
        if runs == 1:
            continue  # nothing to learn about seeds from this arm
        arm_seeds = float(design.means(values).var(ddof=1)) / runs
        residual = values - values.mean(axis=0)
        arm_both = sum(design.cluster_variance(row) for row in residual) / (runs * (runs - 1))
        both += arm_both
        if arm_seeds > arm_both * (1 + 1e-9) + NO_VARIANCE:  # not by rounding alone
            seeds += arm_seeds - arm_both
            spread += arm_seeds**2 / (runs - 1) + arm_both**2 / ((runs - 1) * design.df)
            fewest = min(fewest, runs - 1)
    # Satterthwaite's formula for a difference can fall below the degrees of freedom of all its parts; the truth cannot.
    df = max(fewest, (images + seeds) ** 2 / spread) if spread > 0 else design.df
    return _Components(images, seeds, both, df)


# -- Intervals --------------------------------------------------------------------------------------------------------


def _bounded_interval(
    mean: float, variance: float, quantile: float, n_clusters: int, lowest: float, highest: float
) -> tuple[float, float]:
    """Wilson's interval with an effective sample size, for a mean in [lowest, highest]."""
    if not np.isfinite(variance) or not np.isfinite(quantile):
        return lowest, highest
    span = highest - lowest
    p = (mean - lowest) / span
    room = p * (1 - p) * span**2
    if variance <= NO_VARIANCE * span**2 or room <= 0:
        return _degenerate_interval(mean, quantile, n_clusters, lowest, highest)
    t2_over_n = quantile**2 * variance / room
    centre = (p + t2_over_n / 2) / (1 + t2_over_n)
    half = np.sqrt(t2_over_n * p * (1 - p) + t2_over_n**2 / 4) / (1 + t2_over_n)
    return float(max(lowest, lowest + span * (centre - half))), float(min(highest, lowest + span * (centre + half)))


def _degenerate_interval(
    mean: float, quantile: float, n_clusters: int, lowest: float, highest: float
) -> tuple[float, float]:
    """Every image scored the same: the share of other images could still be u = t^2 / (G + t^2), Wilson's upper bound
    after none in G, and those could score anything. At 100 % this is Wilson's interval for G out of G."""
    unseen = quantile**2 / (n_clusters + quantile**2)
    return float(mean - unseen * (mean - lowest)), float(mean + unseen * (highest - mean))


def _difference_interval(difference: float, variance: float, quantile: float, n_clusters: int) -> tuple[float, float]:
    if not np.isfinite(variance) or not np.isfinite(quantile):
        return -1.0, 1.0
    if variance <= NO_VARIANCE:
        return _degenerate_interval(difference, quantile, n_clusters, -1.0, 1.0)
    half = quantile * float(np.sqrt(variance))
    return max(-1.0, difference - half), min(1.0, difference + half)


def _p_value(difference: float, parts: _Components, n_clusters: int) -> float:
    if not np.isfinite(parts.variance) or abs(difference) < 1e-12:
        return 1.0
    if parts.variance <= NO_VARIANCE:
        return 2.0 ** (1 - n_clusters)  # the sign test: every image on the same side
    return float(2 * stats.t.sf(abs(difference) / np.sqrt(parts.variance), parts.df))


# -- Pairing ----------------------------------------------------------------------------------------------------------


def _pair_questions(a: Scores, b: Scores) -> tuple[Scores, Scores, int]:
    for arm in (a, b):
        if len(np.unique(arm.question_ids)) != len(arm.question_ids):
            raise UserError("Question ids must be unique: two scores of one question cannot both be paired.")
    common, in_a, in_b = np.intersect1d(a.question_ids, b.question_ids, assume_unique=True, return_indices=True)
    if len(common) == 0:
        raise UserError("The two arms share no question id, so nothing can be compared. Were they evaluated alike?")
    n_unpaired = len(a.question_ids) + len(b.question_ids) - 2 * len(common)
    if n_unpaired == 0 and np.array_equal(a.question_ids, b.question_ids):
        return a, b, 0
    return a.take(in_a), b.take(in_b), n_unpaired
