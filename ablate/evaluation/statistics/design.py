"""Scores of one arm, and how its questions, images and strata hang together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    # Given or None; arrays and a tuple once `__post_init__` has been.
    clusters: Any = None
    weights: Any = None
    strata: Any = None
    question_ids: Any = None
    seeds: Any = None

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

    @cached_property
    def design(self) -> Design:
        return Design.of(self)

    def same_questions(self, other: Scores) -> bool:
        """Whether both have the same questions, images, weights and strata, in the same order."""
        return all(
            mine is theirs or np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.question_ids, other.question_ids),
                (self.clusters, other.clusters),
                (self.weights, other.weights),
                (self.strata, other.strata),
            )
        )

    def sharing(self, design: Design) -> Scores:
        """These scores with a design that was worked out for the same questions: rows of a table share theirs."""
        self.__dict__["design"] = design
        return self

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


# -- Variance ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """How questions, images and strata hang together: all that the variance of a mean needs besides the scores.

    A *cell* is one image within one stratum. Its scale is the CR2 factor 1 / sqrt(1 - leverage), the leverage being the
    cell's share of its stratum (exact for equal weights).

    Attributes:
        share: (questions,) each question's part of the mean; sums to 1.
        images: (images,) their names, sorted.
        squares: (images,) the sum of the squared shares of each image's questions.
        order, starts: questions sorted by cell, and where each cell begins.
        cell_stratum, cell_image, cell_scale: (cells,).
        stratum_share: (strata,) sums to 1.
        df: degrees of freedom of the variance over images.
    """

    share: Floats
    images: NDArray
    squares: Floats
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    cell_stratum: NDArray[np.int64]
    cell_image: NDArray[np.int64]
    cell_share: Floats
    cell_scale: Floats
    stratum_share: Floats
    df: float

    @classmethod
    def of(cls, scores: Scores) -> Design:
        share = scores.weights / scores.weights.sum()
        _, stratum = np.unique(scores.strata, return_inverse=True)
        images, image = np.unique(scores.clusters, return_inverse=True)
        key = stratum * len(images) + image
        order = np.argsort(key, kind="stable")
        cells, starts, cell = np.unique(key[order], return_index=True, return_inverse=True)
        cell_stratum, cell_image = cells // len(images), cells % len(images)
        cell_share, stratum_share = sums(cell, share[order]), sums(stratum, share)
        with np.errstate(divide="ignore"):
            cell_scale = 1 / np.sqrt(1 - np.minimum(cell_share / stratum_share[cell_stratum], 1.0))
        squares = sums(image, np.square(share))
        return cls(
            share,
            images,
            squares,
            order,
            starts,
            cell_stratum,
            cell_image,
            cell_share,
            cell_scale,
            stratum_share,
            image_df(squares),
        )

    @cached_property
    def estimable(self) -> bool:
        """False where a stratum has a single image: nothing can be said of other images then."""
        return bool(np.isfinite(self.cell_scale).all())

    def means(self, values: Floats) -> Floats:
        """(runs, questions) -> (runs,): each run's weighted mean."""
        return values @ self.share

    def influence(self, values: Floats) -> Floats:
        """(runs, questions) -> (runs, images): what each image adds to each run's mean, beyond its stratum's level.

        Squared and summed over the images, it is the CR2 cluster-robust variance of that mean.
        """
        sums = np.add.reduceat((values * self.share)[:, self.order], self.starts, axis=1)
        if len(self.stratum_share) == 1:
            return (sums - sums.sum(axis=1, keepdims=True) * self.cell_share) * self.cell_scale
        runs = np.arange(len(values))[:, None]
        centre = np.zeros((len(values), len(self.stratum_share)))
        np.add.at(centre, (runs, self.cell_stratum), sums)
        residual = (sums - (centre / self.stratum_share)[:, self.cell_stratum] * self.cell_share) * self.cell_scale
        images = np.zeros((len(values), len(self.images)))
        np.add.at(images, (runs, self.cell_image), residual)
        return images


def sums(group: NDArray, values: Floats, groups: int = 0) -> Floats:
    """(n,) group numbers and values -> (at least `groups`,): the sum of the values of each group."""
    return np.bincount(group, values, minlength=groups).astype(np.float64, copy=False)


def image_df(squares: Floats) -> float:
    """Bell & McCaffrey's degrees of freedom of the CR2 variance of a mean, under independent questions.

    In closed form, with h_g the part of the mean's variance that comes from image g and p_g = h_g^2 / (1 - h_g):
    1 / (sum h^2 + (sum p)^2 - sum p^2). For G images of one size it is G - 1; unequal ones give fewer.

    Args:
        squares: (images,) proportional to h.
    """
    h = squares / squares.sum()
    if h.max() >= 1:
        return 0.0
    p = h**2 / (1 - h)
    return float(1 / (np.square(h).sum() + p.sum() ** 2 - np.square(p).sum()))


# -- Pairing ----------------------------------------------------------------------------------------------------------


def pair_questions(a: Scores, b: Scores) -> tuple[Scores, Scores, int]:
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
