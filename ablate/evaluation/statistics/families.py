"""Differences between rows of a table, with one simultaneous interval for each and a verdict that agrees with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ablate.core.errors import UserError
from ablate.evaluation.statistics.design import Floats, Scores, pair_questions
from ablate.evaluation.statistics.samples import Frames, Sample
from ablate.evaluation.statistics.seeds import Pool, root_of
from ablate.evaluation.statistics.single import Estimate, Spread, degenerate_interval, summary, t_quantile

MEAN = "mean"
DRAWS = 6_000
BLOCK = 250  # comparisons at a time: memory stays small for hundreds of rows
MOST_NORMALS = 40_000_000  # draws x comparisons: a table of hundreds of rows takes fewer draws, not minutes
MOST_KEPT = 2_000_000  # numbers of one set of base draws that is kept for the next table


@dataclass(frozen=True)
class Comparison:
    """The mean of a - b with its simultaneous interval, fractions of 1.

    Attributes:
        low, high: the simultaneous interval: all intervals of the family hold their truth together with `confidence`.
            It excludes 0 exactly where `p_value` <= 1 - confidence. (-1, 1) where seeds are not covered.
        p_value: of "no difference", adjusted over the family.
        se, df: of the difference, with the seeds' variance pooled over the rows.
        marginal: the interval of this comparison alone.
        detectable: the true difference that would have been found in 80 % of such tables.
        same_seeds: whether both rows have the same seeds. They count as independent either way.
        n_unpaired: questions that only one of the two answered, left out.
    """

    difference: float
    low: float
    high: float
    p_value: float
    se: float
    df: float
    confidence: float
    marginal: tuple[float, float]
    detectable: float
    n_questions: int
    n_clusters: int
    n_seeds: tuple[int, int]
    same_seeds: bool
    n_unpaired: int = 0
    components: Mapping[str, float] = field(default_factory=dict)

    @property
    def covers_seeds(self) -> bool:
        return min(self.n_seeds) > 1

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval excludes 0, else empty."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""

    def equivalence(self, margin: float) -> Literal["equivalent", "not worse", "not better", ""]:
        """Which of the two one-sided tests against +-margin reject: "equivalent" (both), "not worse", "not better" or
        empty. The tests are the interval's, so at half of 1 - confidence each and adjusted over the family."""
        if margin <= 0:
            return ""
        above, below = self.low > -margin, self.high < margin
        return "equivalent" if above and below else "not worse" if above else "not better" if below else ""


class Analysis:
    """The rows of one table, analysed together: see the package's docstring for the model.

    Args:
        scores: row -> task -> its scores.
        tasks: all of them; a row that has every task, with the same seeds, also has their mean.
        kinds: row -> what kind of row it is, such as blind: the seeds' variance is pooled over rows of one kind.
    """

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, Scores]],
        tasks: Sequence[str],
        kinds: Mapping[str, Hashable] | None = None,
    ) -> None:
        self.kinds = kinds or {}
        self.scores, self.tasks = dict(sorted(scores.items())), tuple(tasks)  # the draws do not depend on the order
        self.columns = (MEAN, *self.tasks)
        self._frames = Frames()
        known: dict[str, Scores] = {}
        for parts in self.scores.values():
            for task, part in parts.items():
                if part.same_questions(known.setdefault(task, part)):
                    part.sharing(known[task].design)
        self.samples = {row: self._samples(parts) for row, parts in self.scores.items()}

    def _samples(self, parts: Mapping[str, Scores]) -> dict[str, Sample]:
        found = {task: self._frames.sample(parts[task]) for task in self.tasks if task in parts}
        seeds = {tuple(sorted(sample.seeds)) for sample in found.values()}
        if found and len(found) == len(self.tasks) and len(seeds) == 1:
            found[MEAN] = self._frames.mean([found[task] for task in self.tasks])
        return found

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Row -> the pool that its seeds belong to."""
        members: dict[Hashable, list[str]] = {}
        for row in self.samples:
            members.setdefault(self.kinds.get(row), []).append(row)
        pools = {
            kind: Pool.of({row: self.samples[row] for row in rows}, self.columns) for kind, rows in members.items()
        }
        return {row: pools[kind] for kind, rows in members.items() for row in rows}

    def estimate(self, row: str, column: str, confidence: float = 0.95) -> Estimate:
        """A row's own score. The seeds' variance is the pooled one, or the row's own where it is clearly larger."""
        sample = self.samples[row][column]
        runs, frame = len(sample.seeds), sample.frame
        if not frame.estimable:
            spread = Spread(float("inf"))
        else:
            both = self.pools[row].of_column(column)[0] if runs > 1 else 0.0
            seeds, df = self.pools[row].of_row(row, column) if runs > 1 else (0.0, 0.0)
            spread = Spread.alone_of(sample.images, both / runs, seeds / runs, frame.df, df)
        mean = min(max(sample.mean, 0.0), 1.0)
        return summary(mean, spread, confidence, frame.n_questions, len(frame.images), runs)

    def compare(
        self, pairs: Iterable[tuple[str, str]], columns: Sequence[str] | None = None, confidence: float = 0.95
    ) -> dict[tuple[str, str, str], Comparison]:
        """(row, other row, column) -> comparison, for all pairs and columns that both have: one family.

        Comparisons in which a row has a single seed are not part of the family and say nothing.
        """
        contrasts = [
            self._contrast(a, b, column)
            for a, b in sorted(pairs)
            for column in (self.columns if columns is None else columns)
            if column in self.samples[a] and column in self.samples[b]
        ]
        inside = [each for each in contrasts if each.covers_seeds and each.spread.df > 0]
        answers = Family(inside).comparisons(confidence) if inside else {}
        return {each.key: answers.get(each.key) or each.without_verdict(confidence) for each in contrasts}

    def _contrast(self, a: str, b: str, column: str) -> Contrast:
        x, y, unpaired = self.samples[a][column], self.samples[b][column], 0
        if x.frame is not y.frame:
            x, y, unpaired = self._restricted(a, b, column)
        return Contrast(a, b, column, x, y, (self.pools[a], self.pools[b]), unpaired)

    def _restricted(self, a: str, b: str, column: str) -> tuple[Sample, Sample, int]:
        """Both rows on the questions that both have answered."""
        xs, ys, unpaired = {}, {}, 0
        for task in self.tasks if column == MEAN else (column,):
            xs[task], ys[task], left_out = pair_questions(self.scores[a][task], self.scores[b][task])
            ys[task].sharing(xs[task].design)  # weights and images are those of the first
            unpaired += left_out
        x, y = ([self._frames.sample(part) for part in parts.values()] for parts in (xs, ys))
        if column == MEAN:
            return self._frames.mean(x), self._frames.mean(y), unpaired
        return x[0], y[0], unpaired


def compare(a: Scores, b: Scores, confidence: float = 0.95) -> Comparison:
    """Is arm `a` better than arm `b`? One comparison, paired by question id, as a table of two rows would make it."""
    analysis = Analysis({"a": {"scores": a}, "b": {"scores": b}}, ["scores"])
    return analysis.compare([("a", "b")], ["scores"], confidence)["a", "b", "scores"]


# -- A family ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """Row a minus row b on one column."""

    a: str
    b: str
    column: str
    x: Sample
    y: Sample
    pools: tuple[Pool, Pool]
    n_unpaired: int = 0

    @cached_property
    def place(self) -> int:
        return self.pools[0].columns.index(self.column)

    @cached_property
    def apart(self) -> bool:
        """Whether the seeds of one of the two vary more than those of their kind."""
        return self.a in self.pools[0].apart or self.b in self.pools[1].apart

    @property
    def sides(self) -> tuple[tuple[str, Pool, Sample], tuple[str, Pool, Sample]]:
        return (self.a, self.pools[0], self.x), (self.b, self.pools[1], self.y)

    def part(self, variance: float, pool: Pool, sample: Sample) -> float:
        """What a row's runs add to the variance of the difference, if one run's mean has this variance over seeds.

        On fewer questions than the pool's, a run's mean has more (seed x image) noise.
        """
        beyond = variance - float(pool.both[self.place])
        return (beyond + (sample.both if self.n_unpaired else float(pool.both[self.place]))) / len(sample.seeds)

    @cached_property
    def both(self) -> float:
        """The (seed x image) part of the variance."""
        return sum(self.part(float(pool.both[self.place]), pool, sample) for _, pool, sample in self.sides)

    @cached_property
    def pooled_parts(self) -> tuple[float, float]:
        """The seeds' part of either row by the pooled variance, never below its (seed x image) part."""
        j = self.place
        first, second = (self.part(max(pool.between[j], pool.both[j]), pool, sample) for _, pool, sample in self.sides)
        return first, second

    @cached_property
    def own_parts(self) -> tuple[float, float]:
        """The same by the rows' own scales."""
        j = self.place
        first, second = (
            self.part(max(pool.scale[row] * pool.level[j], pool.both[j]), pool, sample)
            for row, pool, sample in self.sides
        )
        return first, second

    @cached_property
    def images(self) -> float:
        return float(np.square(self.x.centre - self.y.centre).sum()) if self.x.frame.estimable else float("inf")

    @cached_property
    def spread(self) -> Spread:
        """With the pooled variance of seeds."""
        dfs = [float(pool.df[self.place]) for pool in self.pools]
        df = dfs[0] if self.pools[0] is self.pools[1] else _satterthwaite(self.pooled_parts, dfs)
        return Spread.of(self.images, self.both, sum(self.pooled_parts), self.x.frame.df, df)

    @cached_property
    def alone(self) -> Spread:
        """For the interval of this comparison alone: a row that is clearly apart counts with its own variance, and does
        not count in that of the others."""
        known = [pool.of_row(row, self.column) for row, pool, _ in self.sides]
        parts = [self.part(each[0], pool, sample) for each, (_, pool, sample) in zip(known, self.sides, strict=True)]
        same = self.pools[0] is self.pools[1] and not {self.a, self.b} & self.pools[0].alone
        df = known[0][1] if same else _satterthwaite(parts, [each[1] for each in known])
        return Spread.alone_of(self.images, self.both, sum(parts), self.x.frame.df, df)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.a, self.b, self.column

    @property
    def covers_seeds(self) -> bool:
        return min(len(self.x.seeds), len(self.y.seeds)) > 1

    @cached_property
    def difference(self) -> float:
        return min(1.0, max(-1.0, self.x.mean - self.y.mean))  # rounding may leave it

    def comparison(
        self,
        low: float,
        high: float,
        p_value: float,
        marginal: tuple[float, float],
        detectable: float,
        confidence: float,
    ) -> Comparison:
        return Comparison(
            difference=self.difference,
            low=float(max(-1.0, low)),
            high=float(min(1.0, high)),
            p_value=p_value,
            se=float(np.sqrt(self.spread.variance)),
            df=self.spread.df,
            confidence=confidence,
            marginal=(max(-1.0, marginal[0]), min(1.0, marginal[1])),
            detectable=float(detectable),
            n_questions=self.x.frame.n_questions,
            n_clusters=len(self.x.frame.images),
            n_seeds=(len(self.x.seeds), len(self.y.seeds)),
            same_seeds=sorted(self.x.seeds) == sorted(self.y.seeds),
            n_unpaired=self.n_unpaired,
            components=self.spread.as_dict(),
        )

    def without_verdict(self, confidence: float) -> Comparison:
        return self.comparison(-1.0, 1.0, 1.0, (-1.0, 1.0), float("inf"), confidence)


def _satterthwaite(parts: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of estimated variances."""
    known = sum(part**2 / df for part, df in zip(parts, dfs, strict=True) if df > 0)
    return sum(parts) ** 2 / known if known > 0 else min(dfs)


class Family:
    """Contrasts that are answered for together: the distribution of their largest |t|, by Monte Carlo.

    One draw of a contrast's t, given the estimates (`se`^2 = images + seeds of a + seeds of b):

        t = (sqrt(images) z_i e_i[column] + (sqrt(seeds_a) z_a[column] - sqrt(seeds_b) z_b[column]) e_s[column]) / se

    z are standard normals: z_i correlated over the contrasts as the images make them, z_row over the columns as the
    seeds make them. e = sqrt(truth / estimate) is the error of an estimated variance, sqrt(df / chi^2); the seeds' are
    one for all rows of a pool (their variance is pooled) and correlated over the columns. For contrasts with a row that
    stands apart, there is a second t with the rows' own scales, each with an error of its own on top.

    The base draws have a fixed seed, so that the same scores always give the same table.
    """

    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts
        self.se = np.array([np.sqrt(each.spread.variance) for each in contrasts])
        self.apart = np.array([each.apart for each in contrasts])
        self.own_se = np.sqrt([each.spread.alone + sum(each.own_parts) for each in contrasts])
        self.draws = int(min(DRAWS, max(DRAWS // 10, MOST_NORMALS / len(contrasts))))
        self.largest, self.largest_own = np.zeros(self.draws, np.float32), np.zeros(self.draws, np.float32)
        self._draw()
        self.largest.sort()
        self.largest_own.sort()

    def _draw(self) -> None:
        """(draws,) the largest |t| with the pooled variance, and that of rows which stand apart with their own."""
        rows = {row: pool for each in self.contrasts for row, pool in zip(each.key, each.pools, strict=False)}
        line = {row: i for i, row in enumerate(rows)}
        seeds, own = self._seed_noise(rows)
        columns = np.array([each.place for each in self.contrasts])
        a = np.array([line[each.a] for each in self.contrasts])
        b = np.array([line[each.b] for each in self.contrasts])
        factors = np.sqrt([each.pooled_parts for each in self.contrasts]).astype(np.float32)
        own_factors = np.sqrt([each.own_parts for each in self.contrasts]).astype(np.float32)
        alone = np.sqrt([each.spread.alone for each in self.contrasts]).astype(np.float32)
        image_root = self._image_root()
        base, errors = _normals("images", image_root.shape[1], self.draws), self._image_errors()
        for block in np.array_split(np.arange(len(columns)), -(-len(columns) // BLOCK)):
            j = columns[block]
            photo = image_root[block] @ base
            photo *= errors[j]
            zero = self.se[block] == 0  # see `degenerate_interval`: its quantile is that of a mean over images
            photo *= np.where(zero, 1, alone[block])[:, None]
            both = factors[block, :1] * seeds[a[block], j] - factors[block, 1:] * seeds[b[block], j]
            _keep_largest(self.largest, photo + both, np.where(zero, 1, self.se[block]))
            if len(mine := np.flatnonzero(self.apart[block] & ~zero)):
                block, j = block[mine], j[mine]
                both = own_factors[block, :1] * own[a[block], j] - own_factors[block, 1:] * own[b[block], j]
                _keep_largest(self.largest_own, photo[mine] + both, self.own_se[block])

    def _seed_noise(self, rows: Mapping[str, Pool]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(rows, columns, draws) twice: z_row e_s, and z_row e_s with the error of the row's own scale."""
        pools, used = dict.fromkeys(rows.values()), sorted({each.place for each in self.contrasts})
        errors, scales = {}, {}
        for number, pool in enumerate(pools):
            errors[pool] = _wishart_errors(pool.root, _fewest(pool, used), self.draws, number)
            scales[pool] = _chi_errors(f"common{number}", pool.common_df, self.draws)
        noise = _normals("seeds", len(rows), len(next(iter(pools)).columns), self.draws)
        noise = np.stack([pool.root.astype(np.float32) @ z for z, pool in zip(noise, rows.values(), strict=True)])
        for line, pool in zip(noise, rows.values(), strict=True):
            line *= errors[pool]
        if not self.apart.any():
            return noise, noise
        own = np.stack(
            [
                _chi_errors(f"row{i}", pool.scale_df[row], self.draws) if row in pool.apart else scales[pool]
                for i, (row, pool) in enumerate(rows.items())
            ]
        )
        return noise, noise * own[:, None]

    def _image_errors(self) -> NDArray[np.float32]:
        """(columns, draws)."""
        df = {each.place: each.x.frame.df for each in self.contrasts}
        errors = np.ones((max(df) + 1, self.draws), np.float32)
        for column in df:
            errors[column] = _chi_errors(f"images{column}", df[column], self.draws)
        return errors

    def _image_root(self) -> NDArray[np.float32]:
        """(contrasts, n): root @ root.T is the correlation of the contrasts through their images."""
        frames = {id(each.x.frame): each.x.frame for each in self.contrasts}
        names, places = np.unique(
            np.concatenate([frame.images.astype(str) for frame in frames.values()]), return_inverse=True
        )
        ends = np.cumsum([len(frame.images) for frame in frames.values()])
        place = dict(zip(frames, np.split(places, ends[:-1]), strict=True))
        influence = np.zeros((len(self.contrasts), len(names)))
        for line, each in zip(influence, self.contrasts, strict=True):
            line[place[id(each.x.frame)]] = each.x.centre - each.y.centre
        size = np.sqrt(np.square(influence).sum(axis=1, keepdims=True))
        nothing = size[:, 0] == 0
        influence /= np.where(size > 0, size, 1.0)
        root = influence if len(names) <= len(influence) else root_of(influence @ influence.T)
        # Where no image differs, a contrast still has a quantile of its own, independent of the others.
        alone = np.eye(len(influence))[:, nothing]
        return np.concatenate([root, alone], axis=1).astype(np.float32)

    def comparisons(self, confidence: float) -> dict[tuple[str, str, str], Comparison]:
        if not 0 < confidence < 1:
            raise UserError(f"The confidence must lie between 0 and 1, got {confidence}.")
        critical, critical_own = _critical(self.largest, confidence), _critical(self.largest_own, confidence)
        found = {}
        for i, each in enumerate(self.contrasts):
            spread, difference, clusters = each.spread, each.difference, len(each.x.frame.images)
            se = self.se[i]
            if se == 0:
                low, high = degenerate_interval(difference, critical, clusters, -1.0, 1.0)
                marginal = degenerate_interval(difference, spread.quantile(confidence), clusters, -1.0, 1.0)
                p_value = _p_value(self.largest, np.sqrt(abs(difference) * clusters))  # where the interval ends at 0
                half = max(high - difference, difference - low)
            else:
                half = critical * se
                p_value = _p_value(self.largest, abs(difference) / se)
                if each.apart:
                    half = max(half, critical_own * self.own_se[i])
                    p_value = max(p_value, _p_value(self.largest_own, abs(difference) / self.own_se[i]))
                low, high = difference - half, difference + half
                alone = each.alone.quantile(confidence) * np.sqrt(each.alone.variance)
                marginal = (difference - alone, difference + alone)
            detectable = half + t_quantile(0.8, spread.df) * se
            found[each.key] = each.comparison(low, high, p_value, marginal, detectable, confidence)
        return found


def _fewest(pool: Pool, columns: Sequence[int]) -> float:
    known = [pool.df[column] for column in columns if pool.df[column] > 0]
    return float(min(known, default=1.0))


def _keep_largest(largest: NDArray[np.float32], differences: NDArray[np.float32], se: Floats) -> None:
    """Puts the largest |difference| / se of each draw in `largest`, where it is above what is there."""
    np.abs(differences, out=differences)
    differences /= se.astype(np.float32)[:, None]
    np.maximum(largest, differences.max(axis=0), out=largest)


def _critical(largest: NDArray, confidence: float) -> float:
    """The value that exactly floor((1 - confidence) (draws + 1)) - 1 of the sorted draws exceed."""
    above = max(1, int(np.floor((1 - confidence) * (len(largest) + 1) + 1e-9)))
    return float(largest[-above])


def _p_value(largest: NDArray, observed: float) -> float:
    """The share of the sorted draws at or above what was observed, which counts as a draw: above `_critical`, and only
    there, it is at most 1 - confidence."""
    above = len(largest) - int(np.searchsorted(largest, observed, side="left"))
    return (1 + above) / (len(largest) + 1)


# -- Draws ------------------------------------------------------------------------------------------------------------
# A set of draws depends on its name and shape alone, so that a table does not depend on the tables before it.


def _normals(name: str, *shape: int) -> NDArray[np.float32]:
    """Standard normals, not to be written to."""
    return (_kept_normals if np.prod(shape) <= MOST_KEPT else _new_normals)(name, *shape)


def _generator(name: str, *shape: float) -> np.random.Generator:
    return np.random.default_rng([*name.encode(), *(round(1000 * each) for each in shape)])


def _new_normals(name: str, *shape: int) -> NDArray[np.float32]:
    normals = _generator(name, *shape).standard_normal(shape, dtype=np.float32)
    normals.flags.writeable = False
    return normals


_kept_normals = lru_cache(maxsize=16)(_new_normals)


@lru_cache(maxsize=256)
def _chi_errors(name: str, df: float, draws: int) -> NDArray[np.float32]:
    """(draws,) sqrt(truth / estimate) of a variance of so many degrees of freedom."""
    return np.sqrt(df / np.maximum(_generator(name).chisquare(df, draws), 1e-30)).astype(np.float32)


def _wishart_errors(root: Floats, df: float, draws: int, number: int) -> NDArray[np.float32]:
    """(columns, draws): sqrt(truth / estimate) of pooled variances, whose errors are correlated as the columns are: the
    diagonal of a Wishart matrix."""
    n, whole = len(root), max(1, round(df))
    base = _wishart_base(f"pool{number}", n, whole, draws)
    squares = np.square((root.astype(np.float32) @ base.reshape(n, -1)).reshape(base.shape)).sum(axis=1)
    return np.sqrt(whole / np.maximum(squares, 1e-30))


@lru_cache(maxsize=16)
def _wishart_base(name: str, n: int, df: int, draws: int) -> NDArray[np.float32]:
    """(n, min(n, df), draws): base @ base.T is a Wishart matrix; by Bartlett's decomposition where df allows it."""
    rng = _generator(name, n, df, draws)
    if df < n:
        return rng.standard_normal((n, df, draws), dtype=np.float32)
    lower = np.zeros((n, n, draws), np.float32)
    rows, columns = np.tril_indices(n, -1)
    lower[rows, columns] = rng.standard_normal((len(rows), draws), dtype=np.float32)
    lower[range(n), range(n)] = np.sqrt(rng.chisquare((df - np.arange(n))[:, None], (n, draws)))
    return lower
