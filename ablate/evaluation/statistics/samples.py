"""What one row scored on one task or on the mean over tasks, reduced to what variances need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ablate.evaluation.statistics.design import Floats, Scores, image_df, sums


@dataclass(frozen=True)
class Frame:
    """The images of a column."""

    images: NDArray
    squares: Floats
    df: float
    n_questions: int
    estimable: bool

    @classmethod
    def of(cls, design) -> Frame:
        return cls(design.images, design.squares, design.df, len(design.share), design.estimable)


@dataclass(frozen=True)
class Sample:
    """What one row scored on one column.

    Attributes:
        seeds: (runs,).
        means: (runs,).
        influence: (runs, images), see `Design.influence`.
    """

    seeds: tuple[int, ...]
    means: Floats
    influence: Floats
    frame: Frame

    @cached_property
    def centre(self) -> Floats:
        return self.influence.mean(axis=0)

    @cached_property
    def mean(self) -> float:
        return float(self.means.mean())

    @property
    def images(self) -> float:
        """Variance over images of the mean of the runs."""
        return float(np.square(self.centre).sum())

    @cached_property
    def both(self) -> float:
        """Variance of one run's mean through (seed x image)."""
        return float(np.square(self.influence - self.centre).sum()) / max(1, len(self.seeds) - 1)

    @cached_property
    def between(self) -> float:
        """Variance of the runs' means."""
        return float(self.means.var(ddof=1)) if len(self.seeds) > 1 else 0.0


class Frames:
    """Frames by design, so that rows which answered the same questions share one."""

    def __init__(self) -> None:
        self._single: dict[int, tuple[object, Frame]] = {}
        self._means: dict[tuple[int, ...], tuple[list, Frame, list]] = {}

    def sample(self, scores: Scores) -> Sample:
        design = scores.design
        if id(design) not in self._single:
            self._single[id(design)] = (design, Frame.of(design))
        frame = self._single[id(design)][1]
        influence = design.influence(scores.values) if design.estimable else np.zeros((len(scores.seeds), 1))
        return Sample(scores.seeds, design.means(scores.values), influence, frame)

    def mean(self, parts: Sequence[Sample]) -> Sample:
        """The mean over tasks, each counting the same. Image names that occur in two tasks are the same image."""
        key = tuple(id(part.frame) for part in parts)
        if key not in self._means:
            names, place = np.unique(
                np.concatenate([part.frame.images.astype(str) for part in parts]), return_inverse=True
            )
            places = np.split(place, np.cumsum([len(part.frame.images) for part in parts])[:-1])
            each = [sums(where, part.frame.squares, len(names)) for part, where in zip(parts, places, strict=True)]
            squares = sum(each[1:], each[0])
            frame = Frame(
                names,
                squares,
                image_df(squares),
                sum(part.frame.n_questions for part in parts),
                all(part.frame.estimable for part in parts),
            )
            self._means[key] = ([part.frame for part in parts], frame, places)
        _, frame, places = self._means[key]
        seeds = parts[0].seeds
        influence = np.zeros((len(seeds), len(frame.images)))
        means = np.zeros(len(seeds))
        for part, where in zip(parts, places, strict=True):
            order = [part.seeds.index(seed) for seed in seeds]
            influence[:, where] += part.influence[order] / len(parts)
            means += part.means[order] / len(parts)
        return Sample(seeds, means, influence, frame)
