"""Differences between rows of a table, with one simultaneous interval for each and a verdict that agrees with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ablate.errors import UserError
from ablate.evaluation.statistics.design import NO_VARIANCE, Floats, Scores, image_df, pair_questions
from ablate.evaluation.statistics.single import Estimate, Spread, degenerate_interval, summary

MEAN = "mean"
DRAWS = 10_000
APART = 0.08  # the level of the F test by which a row's seeds vary more than the others'
WILD = 3.0  # with two seeds nothing shows whether such a row's tasks move together, so they count as one
MOST_NORMALS = 40_000_000  # draws x comparisons: a table of hundreds of rows takes fewer draws, not minutes


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

    def equivalence(self, margin: float) -> str:
        """Which of the two one-sided tests against +-margin reject: "equivalent" (both), "not worse", "not better" or
        empty. The tests are the interval's, so at half of 1 - confidence each and adjusted over the family."""
        if margin <= 0:
            return ""
        above, below = self.low > -margin, self.high < margin
        return "equivalent" if above and below else "not worse" if above else "not better" if below else ""


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
            squares = sum(
                np.bincount(where, part.frame.squares, minlength=len(names))
                for part, where in zip(parts, places, strict=True)
            )
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


_NONE = Sample((), np.zeros(0), np.zeros((0, 0)), Frame(np.zeros(0), np.zeros(0), 0.0, 0, False))


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
        """Row -> the pool of its kind."""
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
            both, seeds, df = self.pools[row].of_score(row, column) if runs > 1 else (0.0, 0.0, 0.0)
            spread = Spread.of(sample.images, both / runs, seeds / runs, frame.df, df)
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
        found = {each.key: each.without_verdict(confidence) for each in contrasts}
        if inside:
            found |= Family(inside).comparisons(confidence)
        return found

    def _contrast(self, a: str, b: str, column: str) -> Contrast:
        x, y, unpaired = self.samples[a][column], self.samples[b][column], 0
        if x.frame is not y.frame:
            x, y, unpaired = self._restricted(a, b, column)
        pools = (self.pools[a], self.pools[b])
        parts = [(pool.of_column(column), len(each.seeds)) for pool, each in zip(pools, (x, y), strict=True)]
        both = sum(part[0] / runs for part, runs in parts)
        apart = [max(part[0], part[1]) / runs for part, runs in parts]
        seeds, df = sum(apart), parts[0][0][2]
        if pools[0] is not pools[1]:
            known = sum(part**2 / each[2] for part, (each, _) in zip(apart, parts, strict=True) if each[2] > 0)
            df = seeds**2 / known if known > 0 else min(each[2] for each, _ in parts)
        if unpaired:  # on fewer questions a run's mean has more (seed x image) noise than on all
            fewer = x.both / len(x.seeds) + y.both / len(y.seeds)
            both, seeds = fewer, max(0.0, seeds - both) + fewer
        images = float(np.square(x.centre - y.centre).sum()) if x.frame.estimable else float("inf")
        spread = Spread.of(images, both, seeds, x.frame.df, df)
        return Contrast(a, b, column, x, y, spread, pools, unpaired)

    def _restricted(self, a: str, b: str, column: str) -> tuple[Sample, Sample, int]:
        """Both rows on the questions that both have answered."""
        xs, ys, unpaired = {}, {}, 0
        for task in self.tasks if column == MEAN else (column,):
            xs[task], ys[task], left_out = pair_questions(self.scores[a][task], self.scores[b][task])
            ys[task].sharing(xs[task].design)  # weights and images are those of the first
            unpaired += left_out
        x, y = ([self._frames.sample(part) for part in parts.values()] for parts in (xs, ys))
        return (*(self._frames.mean(each) if column == MEAN else each[0] for each in (x, y)), unpaired)


def compare(a: Scores, b: Scores, confidence: float = 0.95) -> Comparison:
    """Is arm `a` better than arm `b`? One comparison, paired by question id, as a table of two rows would make it."""
    analysis = Analysis({"a": {"scores": a}, "b": {"scores": b}}, ["scores"])
    return analysis.compare([("a", "b")], ["scores"], confidence)["a", "b", "scores"]


# -- The seeds' variance ----------------------------------------------------------------------------------------------


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
        return cls(columns, both, between, level, df, _root(correlation), scale, scale_df, total or 1.0, apart)

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


def _root(matrix: Floats) -> Floats:
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


def _apart(scale: Mapping[str, float], df: Mapping[str, float]) -> frozenset[str]:
    """The rows whose seeds vary more than the other rows' by a one-sided F test at `APART`."""
    rows = [row for row in scale if df[row] > 0]
    found = set()
    for row in rows:
        rest = sum(df[other] for other in rows if other != row)
        if rest > 0:
            others = sum(df[other] * scale[other] for other in rows if other != row) / rest
            if stats.f.sf(scale[row] / max(others, 1e-12), df[row], rest) < APART:
                found.add(row)
    return frozenset(found)


# -- A family ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """Row a minus row b on one column."""

    a: str
    b: str
    column: str
    x: Sample
    y: Sample
    spread: Spread
    pools: tuple[Pool, Pool]
    n_unpaired: int

    @property
    def place(self) -> int:
        return self.pools[0].columns.index(self.column)

    @property
    def apart(self) -> bool:
        """Whether the seeds of one of the two vary more than those of their kind."""
        return self.a in self.pools[0].apart or self.b in self.pools[1].apart

    def parts(self, own: bool) -> tuple[float, float]:
        """The seeds' variance of either row's mean: pooled, or by the rows' own scales."""
        j = self.place

        def part(row: str, pool: Pool, sample: Sample) -> float:
            seeds = pool.scale[row] * pool.level[j] if own else pool.between[j]
            return float(max(seeds, pool.both[j])) / len(sample.seeds)

        return part(self.a, self.pools[0], self.x), part(self.b, self.pools[1], self.y)

    @property
    def own_df(self) -> float:
        """Satterthwaite's degrees of freedom with the rows' own scales."""
        parts, rows = self.parts(own=True), zip((self.a, self.b), self.pools, strict=True)
        known = sum(part**2 / pool.scale_df[row] for part, (row, pool) in zip(parts, rows, strict=True))
        known += self.spread.alone**2 / self.spread.df_images
        return (self.spread.alone + sum(parts)) ** 2 / known if known > 0 else self.spread.df_images

    @property
    def key(self) -> tuple[str, str, str]:
        return self.a, self.b, self.column

    @property
    def covers_seeds(self) -> bool:
        return min(len(self.x.seeds), len(self.y.seeds)) > 1

    @property
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


class Family:
    """Contrasts that are answered for together: the distribution of their largest |t|, by Monte Carlo.

    The draws have a fixed seed, so that the same scores always give the same table.
    """

    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts
        self.se = np.array([np.sqrt(each.spread.variance) for each in contrasts])
        self.own_se = np.array([np.sqrt(each.spread.alone + sum(each.parts(own=True))) for each in contrasts])
        self.draws = int(min(DRAWS, max(DRAWS // 10, MOST_NORMALS / len(contrasts))))
        self._draw()

    def _draw(self) -> None:
        """(draws,) the largest |t| with the pooled variance, and that of rows which stand apart with their own."""
        rng = np.random.default_rng(0)
        pools = dict.fromkeys(pool for each in self.contrasts for pool in each.pools)
        rows = {row: pool for each in self.contrasts for row, pool in zip(each.key, each.pools, strict=False)}
        columns = sorted({each.place for each in self.contrasts})
        pooled = {pool: _scales(pool.root, _fewest(pool, columns), self.draws, rng) for pool in pools}
        alike = {pool: self._chi(pool.common_df, rng) for pool in pools}
        images = self._image_noise(rng)
        images_df = {each.place: each.x.frame.df for each in self.contrasts}
        images_scale = {column: self._chi(images_df[column], rng) for column in columns}
        noise, apart = {}, {}
        for row, pool in rows.items():
            root = pool.root.astype(np.float32)
            noise[row] = rng.standard_normal((self.draws, len(root)), dtype=np.float32) @ root.T
            apart[row] = self._chi(pool.scale_df[row], rng) if row in pool.apart else alike[pool]
        self.largest, self.largest_own = np.zeros(self.draws, np.float32), np.zeros(self.draws, np.float32)
        for i, each in enumerate(self.contrasts):
            j, (a, b) = each.place, each.pools
            if self.se[i] == 0:  # see `degenerate_interval`: its quantile is that of a mean over images
                plain = rng.standard_normal(self.draws, dtype=np.float32) * images_scale[j]
                np.maximum(self.largest, np.abs(plain), out=self.largest)
                continue
            photo = np.float32(np.sqrt(each.spread.alone)) * images[:, i] * images_scale[j]
            ours, theirs = noise[each.a][:, j], noise[each.b][:, j]
            one, other = _factors(each)
            both = one * ours * pooled[a][:, j] - other * theirs * pooled[b][:, j]
            np.maximum(self.largest, np.abs(photo + both) / np.float32(self.se[i]), out=self.largest)
            if each.apart:
                one, other = (np.float32(np.sqrt(part)) for part in each.parts(own=True))
                # Of scale(row) x level(task), both factors are estimates.
                both = one * ours * apart[each.a] * pooled[a][:, j] - other * theirs * apart[each.b] * pooled[b][:, j]
                np.maximum(self.largest_own, np.abs(photo + both) / np.float32(self.own_se[i]), out=self.largest_own)
        self.largest.sort()
        self.largest_own.sort()

    def _chi(self, df: float, rng: np.random.Generator) -> NDArray[np.float32]:
        """(draws,) what a variance of so many degrees of freedom makes of a standard normal."""
        return np.sqrt(df / np.maximum(rng.chisquare(df, self.draws), 1e-30)).astype(np.float32)

    def _image_noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """(draws, contrasts) standard normal, correlated as the images make the contrasts."""
        frames = {id(each.x.frame): each.x.frame for each in self.contrasts}
        names = np.unique(np.concatenate([frame.images.astype(str) for frame in frames.values()]))
        place = {key: np.searchsorted(names, frame.images.astype(str)) for key, frame in frames.items()}
        influence = np.zeros((len(self.contrasts), len(names)))
        for line, each in zip(influence, self.contrasts, strict=True):
            line[place[id(each.x.frame)]] = each.x.centre - each.y.centre
        size = np.sqrt(np.square(influence).sum(axis=1, keepdims=True))
        influence /= np.where(size > 0, size, 1.0)
        root = influence if len(names) <= len(influence) else _root(influence @ influence.T)
        return rng.standard_normal((self.draws, root.shape[1]), dtype=np.float32) @ root.T.astype(np.float32)

    def comparisons(self, confidence: float) -> dict[tuple[str, str, str], Comparison]:
        if not 0 < confidence < 1:
            raise UserError(f"The confidence must lie between 0 and 1, got {confidence}.")
        critical = _critical(self.largest, confidence)
        found = {}
        for i, each in enumerate(self.contrasts):
            spread, difference, clusters = each.spread, each.difference, len(each.x.frame.images)
            quantile = spread.quantile(confidence)
            if self.se[i] == 0:
                low, high = degenerate_interval(difference, critical, clusters, -1.0, 1.0)
                marginal = degenerate_interval(difference, quantile, clusters, -1.0, 1.0)
                p_value = _p_value(self.largest, np.sqrt(abs(difference) * clusters))  # where the interval ends at 0
                half = max(high - difference, difference - low)
            else:
                half = critical * self.se[i]
                p_value = _p_value(self.largest, abs(difference) / self.se[i])
                if each.apart:
                    half = max(half, _critical(self.largest_own, confidence) * self.own_se[i])
                    p_value = max(p_value, _p_value(self.largest_own, abs(difference) / self.own_se[i]))
                low, high = difference - half, difference + half
                alone = quantile * self.se[i]
                if each.apart:
                    alone = max(alone, float(stats.t.ppf(0.5 + confidence / 2, each.own_df)) * self.own_se[i])
                marginal = (difference - alone, difference + alone)
            detectable = half + float(stats.t.ppf(0.8, spread.df)) * self.se[i]
            found[each.key] = each.comparison(low, high, p_value, marginal, detectable, confidence)
        return found


def _fewest(pool: Pool, columns: Sequence[int]) -> float:
    known = [pool.df[column] for column in columns if pool.df[column] > 0]
    return float(min(known, default=1.0))


def _factors(each: Contrast) -> tuple[np.float32, np.float32]:
    """Standard deviations of either row's part; their squares add up to `spread.seeds`."""
    one, other = each.parts(own=False)
    share = each.spread.seeds / (one + other) if one + other else 0.0
    return np.float32(np.sqrt(one * share)), np.float32(np.sqrt(other * share))


def _critical(largest: NDArray, confidence: float) -> float:
    """The value that exactly floor((1 - confidence) (draws + 1)) - 1 of the sorted draws exceed."""
    above = max(1, int(np.floor((1 - confidence) * (len(largest) + 1) + 1e-9)))
    return float(largest[-above])


def _p_value(largest: NDArray, observed: float) -> float:
    """The share of the sorted draws at or above what was observed, which counts as a draw: above `_critical`, and only
    there, it is at most 1 - confidence."""
    above = len(largest) - int(np.searchsorted(largest, observed, side="left"))
    return (1 + above) / (len(largest) + 1)


def _scales(root: Floats, df: float, draws: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(draws, columns): sqrt(truth / estimate) of pooled variances, whose errors are correlated as the columns are.

    The diagonal of a Wishart matrix, by Bartlett's decomposition where there are enough degrees of freedom for one.
    """
    n, whole, root = len(root), max(1, round(df)), root.astype(np.float32)
    if whole < n:
        factor = rng.standard_normal((draws, whole, n), dtype=np.float32) @ root.T
        squares = np.square(factor).sum(axis=1)
    else:
        lower = np.zeros((draws, n, n), np.float32)
        rows, columns = np.tril_indices(n, -1)
        lower[:, rows, columns] = rng.standard_normal((draws, len(rows)), dtype=np.float32)
        lower[:, range(n), range(n)] = np.sqrt(rng.chisquare(whole - np.arange(n), (draws, n)))
        squares = np.square(root @ lower).sum(axis=2)
    return np.sqrt(whole / np.maximum(squares, 1e-30))
