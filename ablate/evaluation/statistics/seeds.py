"""How much seeds matter: their variance, pooled over the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablate.evaluation.statistics.design import NO_VARIANCE, Floats
from ablate.evaluation.statistics.samples import Sample

LEVEL, FALL = 0.3, 1.65
WILD = 3.0  # with two seeds nothing shows whether such a row's tasks move together, so they count as one


@dataclass(frozen=True, eq=False)
class Pool:
    """What the runs of all rows together say about seeds.

    Attributes:
        columns: names.
        both, between, df: (columns,) pooled variance of one run's mean through (seed x image), in all, and its degrees
            of freedom.
        level: (columns,) like `between`, with each row counting by its scale, so that one wild row does not set it.
        root: (columns, columns) root @ root.T is the correlation of the seeds' effects over the columns.
        scale: row -> the variance of its seeds over `level`, over all columns.
        scale_df: row -> the degrees of freedom of that.
        common_df: those of the scale that the rows not in `apart` have in common.
        apart: rows whose seeds vary more than the others'. The rest have one common scale.
    """

    columns: tuple[str, ...]
    both: Floats
    between: Floats
    level: Floats
    df: Floats
    root: Floats
    scale: Mapping[str, float]
    scale_df: Mapping[str, float]
    common_df: float
    apart: frozenset[str]

    @classmethod
    def of(cls, samples: Mapping[str, Mapping[str, Sample]], columns: tuple[str, ...]) -> Pool:
        count = len(columns)
        both, squares, df = np.zeros(count), np.zeros(count), np.zeros(count)
        residuals: dict[str, Floats] = {}
        for row, found in samples.items():
            seeds = sorted({seed for sample in found.values() for seed in sample.seeds})
            place = {seed: i for i, seed in enumerate(seeds)}
            residual = np.zeros((len(seeds), count))
            for j, column in enumerate(columns):
                if column in found and len(found[column].seeds) > 1:
                    sample = found[column]
                    residual[[place[seed] for seed in sample.seeds], j] = sample.means - sample.mean
                    df[j] += len(sample.seeds) - 1
                    both[j] += (len(sample.seeds) - 1) * sample.both
            residuals[row] = residual
            squares += np.square(residual).sum(axis=0)
        safe = np.maximum(df, 1)
        between, both = squares / safe, both / safe
        freedom = {
            row: np.array([max(0, len(found[column].seeds) - 1) if column in found else 0 for column in columns])
            for row, found in samples.items()
        }
        scale, level = _fit({row: np.square(each).sum(axis=0) for row, each in residuals.items()}, freedom, between)
        correlation = _correlation(residuals, scale)
        shared = _shared(correlation[1:, 1:], max(1.0, float(df.max())))
        scale_df = {row: _scale_df(residuals[row], freedom[row], scale[row], shared) for row in samples}
        apart = _apart(scale, scale_df)
        alike = [row for row in samples if row not in apart and scale_df[row] > 0]
        total = sum(scale_df[row] for row in alike)
        if alike:
            common = sum(scale_df[row] * scale[row] for row in alike) / total
            scale |= dict.fromkeys(alike, common)
            scale_df |= dict.fromkeys(alike, total)
        return cls(columns, both, between, level, df, root_of(correlation), scale, scale_df, total or 1.0, apart)

    def of_column(self, column: str) -> tuple[float, float, float]:
        j = self.columns.index(column)
        return float(self.both[j]), float(self.between[j]), float(self.df[j])

    def of_score(self, row: str, column: str) -> tuple[float, float, float]:
        both, seeds, df = self.of_column(column)
        own = self.scale[row] * float(self.level[self.columns.index(column)])
        return (both, own, self.scale_df[row]) if row in self.apart else (both, seeds, df)


def _correlation(residuals: Mapping[str, Floats], scale: Mapping[str, float]) -> Floats:
    """(columns, columns): of the seeds' effects; rows count alike, however much their seeds vary."""
    stacked = np.concatenate([each / np.sqrt(scale[row] or 1.0) for row, each in residuals.items()])
    size = np.sqrt(np.square(stacked).sum(axis=0))
    correlation = (stacked / np.where(size > 0, size, 1.0)).T @ (stacked / np.where(size > 0, size, 1.0))
    np.fill_diagonal(correlation, 1.0)
    return correlation


def root_of(matrix: Floats) -> Floats:
    """root @ root.T is the matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _fit(
    squares: Mapping[str, Floats], freedom: Mapping[str, NDArray], level: Floats
) -> tuple[dict[str, float], Floats]:
    """The model variance(row, column) = scale(row) x level(column), by maximum likelihood (a gamma model, log link)."""
    rows = list(squares)
    size, df = np.array([squares[row] for row in rows]), np.array([freedom[row] for row in rows], dtype=np.float64)
    scale, level = np.ones(len(rows)), np.maximum(level, NO_VARIANCE)
    for _ in range(50):
        before = scale
        scale = np.maximum((size / level).sum(axis=1), 1e-6) / np.maximum(df.sum(axis=1), 1)
        scale[df.sum(axis=1) == 0] = 1.0
        level = np.maximum((size / scale[:, None]).sum(axis=0), NO_VARIANCE) / np.maximum(df.sum(axis=0), 1)
        if np.allclose(scale, before, rtol=1e-3):
            break
    return dict(zip(rows, scale.tolist(), strict=True)), level


def _shared(correlation: Floats, df: float) -> float:
    """The mean squared correlation of different columns, without what chance adds to it. 1: they move as one."""
    apart = ~np.eye(len(correlation), dtype=bool)
    if not apart.any() or df <= 1:
        return 1.0
    return float(np.clip((df * np.square(correlation[apart]).mean() - 1) / (df - 1), 0.0, 1.0))


def _scale_df(residual: Floats, freedom: NDArray, scale: float, shared: float) -> float:
    """Degrees of freedom of a row's scale: as many tasks as it has count as n / (1 + (n - 1) r^2) independent ones."""
    used, seeds = freedom[1:] > 0, int(freedom.max())
    tasks = int(used.sum())
    if tasks < 2:
        return float(seeds)
    if seeds > 1:  # a row whose seeds vary more may also share more of it
        size = np.sqrt(np.square(residual[:, 1:][:, used]).sum(axis=0))
        unit = residual[:, 1:][:, used] / np.where(size > 0, size, 1.0)
        shared = max(shared, _shared(unit.T @ unit, seeds))
    elif scale > WILD:
        shared = 1.0
    return seeds * tasks / (1 + (tasks - 1) * shared)


def apart_level(df: float) -> float:
    """The level of the F test by which a row stands apart, for so many degrees of freedom of its scale.

    What matters is how seldom a row that is truly wild goes unseen. With two seeds (1 degree of freedom) that asks for a
    high level, and costs power; with many tasks that do not share their seeds' effects nothing is missed at a low one.
    """
    return LEVEL * max(df, 1.0) ** -FALL


def _apart(scale: Mapping[str, float], df: Mapping[str, float]) -> frozenset[str]:
    """The rows whose seeds vary more than the other rows' by a one-sided F test at `apart_level`."""
    rows = [row for row in scale if df[row] > 0]
    found = set()
    for row in rows:
        rest = sum(df[other] for other in rows if other != row)
        if rest > 0:
            others = sum(df[other] * scale[other] for other in rows if other != row) / rest
            if special.fdtrc(df[row], rest, scale[row] / max(others, 1e-12)) < apart_level(df[row]):
                found.add(row)
    return frozenset(found)
