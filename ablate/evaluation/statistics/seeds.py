"""How much seeds matter: their variance, pooled over the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablate.evaluation.statistics.design import NO_VARIANCE, Floats
from ablate.evaluation.statistics.samples import Sample

LEVEL = 0.12  # of the F test by which a row stands apart, for one degree of freedom
PAIR_LEVEL = 0.45  # the same for rows of two seeds
ALONE = 0.15  # a p-value of that test below which an interval that stands alone takes the row's own variance
FAR = 0.01  # a p-value below which a row does not count in the variance of others
WILD = 3.0  # with two seeds nothing shows whether such a row's tasks move together, so they count as one


@dataclass(frozen=True, eq=False)
class Pool:
    """What the runs of all rows together say about seeds.

    Attributes:
        columns: names.
        both, between, df: (columns,) pooled variance of one run's mean through (seed x image), in all, and its degrees
            of freedom.
        alike, alike_df: (columns,) like `between` and `df`, without rows that are certainly unlike the others.
        level: (columns,) like `between`, with each row counting by its scale, so that one wild row does not set it.
        root: (columns, columns) root @ root.T is the correlation of the seeds' effects over the columns.
        scale: row -> the variance of its seeds over `level`, over all columns.
        scale_df: row -> the degrees of freedom of that.
        common_df: those of the scale that the rows not in `apart` have in common.
        apart: rows whose seeds vary more than the others'. The rest have one common scale.
        alone: those of them that count with their own variance in an interval that stands alone.
    """

    columns: tuple[str, ...]
    both: Floats
    between: Floats
    level: Floats
    df: Floats
    alike: Floats
    alike_df: Floats
    root: Floats
    scale: Mapping[str, float]
    scale_df: Mapping[str, float]
    common_df: float
    apart: frozenset[str]
    alone: frozenset[str]

    @classmethod
    def of(cls, samples: Mapping[str, Mapping[str, Sample]], columns: tuple[str, ...]) -> Pool:
        residuals = {row: _residual(found, columns) for row, found in samples.items()}
        squares = {row: np.square(residual).sum(axis=0) for row, residual in residuals.items()}
        freedom = {row: _freedom(found, columns) for row, found in samples.items()}
        df = sum(freedom.values(), np.zeros(len(columns)))
        between, both = sum(squares.values()) / np.maximum(df, 1), np.zeros(len(columns))
        for row, found in samples.items():
            both += freedom[row] * [found[column].both if column in found else 0.0 for column in columns]
        scale, level = _fit(squares, freedom, between)
        correlation = _correlation(residuals, scale)
        shared = _shared(correlation[1:, 1:], max(1.0, float(df.max())))
        scale_df = {row: _scale_df(residuals[row], freedom[row], scale[row], shared) for row in samples}
        unlike, pairs = _unlike(scale, scale_df), {row for row in samples if freedom[row].max() == 1}
        apart = {row for row, p_value in unlike.items() if p_value < apart_level(row in pairs, scale_df[row])}
        common = [row for row in samples if row not in apart and scale_df[row] > 0]
        if common:
            common_df = sum(scale_df[row] for row in common)
            scale |= dict.fromkeys(common, sum(scale_df[row] * scale[row] for row in common) / common_df)
            scale_df |= dict.fromkeys(common, common_df)
        scale_df |= dict.fromkeys(apart & pairs, 1.0)  # see `_scale_df`: nothing shows more
        near = [row for row in samples if unlike.get(row, 1.0) >= FAR]
        alike_df = sum((freedom[row] for row in near), np.zeros(len(columns)))
        return cls(
            columns=columns,
            both=both / np.maximum(df, 1),
            between=between,
            level=level,
            df=df,
            alike=sum((squares[row] for row in near), np.zeros(len(columns))) / np.maximum(alike_df, 1),
            alike_df=alike_df,
            root=root_of(correlation),
            scale=scale,
            scale_df=scale_df,
            common_df=common_df if common else 1.0,
            apart=frozenset(apart),
            alone=frozenset(row for row in apart if unlike[row] < ALONE),
        )

    def of_column(self, column: str) -> tuple[float, float, float]:
        j = self.columns.index(column)
        return float(self.both[j]), float(self.between[j]), float(self.df[j])

    def of_row(self, row: str, column: str) -> tuple[float, float]:
        """Variance over seeds of one run's mean, for this row alone, and its degrees of freedom."""
        j = self.columns.index(column)
        if row in self.alone or self.alike_df[j] == 0:
            return self.scale[row] * float(self.level[j]), self.scale_df[row]
        return float(self.alike[j]), float(self.alike_df[j])


def _residual(found: Mapping[str, Sample], columns: Sequence[str]) -> Floats:
    """(seeds, columns): each run's mean less the row's; 0 where there is a single run, or none."""
    seeds = sorted({seed for sample in found.values() for seed in sample.seeds})
    place = {seed: i for i, seed in enumerate(seeds)}
    residual = np.zeros((len(seeds), len(columns)))
    for j, column in enumerate(columns):
        if column in found and len(found[column].seeds) > 1:
            residual[[place[seed] for seed in found[column].seeds], j] = found[column].means - found[column].mean
    return residual


def _freedom(found: Mapping[str, Sample], columns: Sequence[str]) -> Floats:
    """(columns,): the degrees of freedom of one row's seeds."""
    return np.array([len(found[column].seeds) - 1.0 if column in found else 0.0 for column in columns])


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
        if (np.abs(scale - before) <= 1e-3 * scale).all():
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


def apart_level(pair: bool, df: float) -> float:
    """The level of the F test by which a row stands apart, for a pair of seeds or more, and so many degrees of freedom.

    What matters is how seldom a row that is truly wild goes unseen. Two seeds are alike by luck too often, so that
    there most rows have to stand alone; where many tasks do not share their seeds' effects, a low level misses nothing.
    """
    return PAIR_LEVEL if pair else LEVEL / max(df, 1.0)


def _unlike(scale: Mapping[str, float], df: Mapping[str, float]) -> dict[str, float]:
    """Row -> the p-value of a one-sided F test of whether its seeds vary more than the other rows'."""
    found = {}
    for row in (rows := [row for row in scale if df[row] > 0]):
        if rest := sum(df[other] for other in rows if other != row):
            others = sum(df[other] * scale[other] for other in rows if other != row) / rest
            found[row] = float(special.fdtrc(df[row], rest, scale[row] / max(others, 1e-12)))
    return found
