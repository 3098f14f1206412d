"""Tables of simulated runs with a known truth: how often they claim what is false, and find what is true.

The scores are right or wrong answers, and the tables are made by `Analysis`, as the ablation table's are. Run as a
program, it prints the figures of BENCHMARKS.md: python tests/evaluation/test_simulated_tables.py [TABLES [GROUP ...]].
"""

import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ablate.evaluation.statistics import MEAN, Analysis, Scores
from ablate.evaluation.statistics.power import components
from ablate.evaluation.statistics.power import power as planned

ROWS, TASKS, MARGIN = 6, 6, 0.03
NAMES = [f"task{task}" for task in range(TASKS)]
PAIRS = [(f"row{row}", "row0") for row in range(1, ROWS)]


@dataclass(frozen=True)
class Setting:
    """`move`: standard deviation of a run's score over seeds. `better`: (row, task or None for all, by how much).
    `wild`: row -> how many times the others' its seeds' standard deviation is."""

    seeds: int = 3
    move: float = 0.06
    shared: bool = True
    images: int = 100
    per: int = 3
    better: tuple = ()
    wild: dict = field(default_factory=dict)
    alike: float = 1.0  # scales what images do to one row and to one run

    def __str__(self) -> str:
        over = "" if not self.move else " shared" if self.shared else " separate"
        wild = "".join(f", row {row} x{factor:g}" for row, factor in self.wild.items())
        better = "".join(
            f", row {row} +{100 * by:.1f}{'' if task is None else ' on one'}" for row, task, by in self.better
        )
        return f"{self.seeds} seeds, {100 * self.move:g} points{over}, {self.images} x {self.per}{better}{wild}"

    def effects(self) -> np.ndarray:
        effects = np.zeros((ROWS, TASKS))
        for row, task, by in self.better:
            effects[row, slice(None) if task is None else task] = by
        return effects

    def truth(self, row: str, column: str) -> float:
        effects = self.effects()[int(row[3:])] - self.effects()[0]
        return float(effects.mean() if column == MEAN else effects[NAMES.index(column)])


class Tables:
    """Draws tables of one setting."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.rng = setting, np.random.default_rng(seed)
        count = setting.images * setting.per
        image = np.repeat(np.arange(setting.images), setting.per)
        self.like = [Scores(np.zeros((1, count)), np.char.add(f"{name}/", image.astype(str))) for name in NAMES]

    def answers(self) -> np.ndarray:
        """(rows, seeds, tasks, questions) of 0 and 1."""
        s, normal = self.setting, self.rng.normal
        factor = np.array([s.wild.get(row, 1.0) for row in range(ROWS)])[:, None, None]
        seed = np.broadcast_to(normal(0, 1, (ROWS, s.seeds, 1 if s.shared else TASKS)), (ROWS, s.seeds, TASKS))
        chance = (
            0.5
            + s.effects()[:, None, :, None]
            + (s.move * factor * seed)[..., None]
            + normal(0, 0.15, (TASKS, s.images))
            + s.alike * normal(0, 0.1, (ROWS, 1, TASKS, s.images))
            + s.alike * normal(0, 0.08, (ROWS, s.seeds, TASKS, s.images))
        )
        right = self.rng.random((*chance.shape, s.per), dtype=np.float32) < chance[..., None]
        return right.reshape(*chance.shape[:3], -1).astype(np.float64)

    def analysis(self) -> Analysis:
        rows = {}
        for row, answers in enumerate(self.answers()):
            rows[f"row{row}"] = {
                name: Scores(answers[:, task], like.clusters, like.weights, like.strata, like.question_ids).sharing(
                    like.design
                )
                for task, (name, like) in enumerate(zip(NAMES, self.like, strict=True))
            }
        return Analysis(rows, NAMES)


def measure(setting: Setting, tables: int, seed: int = 1) -> dict[str, float]:
    """Shares of tables (or, for marginal intervals, of intervals)."""
    draw = Tables(setting, seed)
    counts = dict.fromkeys(("false", "joint", "marginal", "scores", "equal"), 0.0)
    for _ in range(tables):
        analysis = draw.analysis()
        found = [(setting.truth(a, column), each) for (a, _, column), each in analysis.compare(PAIRS).items()]
        counts["false"] += any((e.low > 0 and t <= 0) or (e.high < 0 and t >= 0) for t, e in found)
        counts["joint"] += all(e.low <= t <= e.high for t, e in found)
        counts["marginal"] += np.mean([e.marginal[0] <= t <= e.marginal[1] for t, e in found])
        counts["equal"] += any(abs(t) >= MARGIN - 1e-9 and e.equivalence(MARGIN) == "equivalent" for t, e in found)
        scores = [(analysis.estimate(f"row{row}", c), row, c) for row in range(ROWS) for c in (MEAN, NAMES[0])]
        counts["scores"] += np.mean([e.low <= 0.5 + setting.truth(f"row{row}", c) <= e.high for e, row, c in scores])
    return {name: count / tables for name, count in counts.items()}


def power(setting: Setting, single: bool, tables: int) -> tuple[float, float]:
    """How often the table finds that row 3 is better, and how often an oracle does: it knows the true variances and
    correlations, and is a max-z test. The difference is one that the oracle finds in about 80 % of tables."""
    draw, column = Tables(setting, 9), 1 if single else 0
    null = []
    for _ in range(1000):
        scores = draw.answers().mean(axis=(1, 3))
        means = np.concatenate([scores.mean(axis=1, keepdims=True), scores], axis=1)
        null.append((means[1:] - means[0]).ravel())
    deviation = np.std(null, axis=0)
    normal = np.random.default_rng(5).multivariate_normal(
        np.zeros(len(deviation)), np.corrcoef(null, rowvar=False), 20_000
    )
    critical = np.quantile(np.abs(normal).max(axis=1), 0.95)
    error = np.sqrt(np.square(deviation.reshape(ROWS - 1, TASKS + 1)[:, column]).mean())
    setting = replace(setting, better=((3, 0 if single else None, (critical + 0.84) * error),))
    draw, found, oracle = Tables(setting, 2), 0, 0
    for _ in range(tables):
        each = draw.analysis().compare(PAIRS)["row3", "row0", NAMES[0] if single else MEAN]
        found += each.low > 0
        oracle += each.difference > critical * error
    return found / tables, oracle / tables


def bound(setting: Setting, single: bool, draws: int = 40_000) -> tuple[float, float]:
    """The power of an exact max-t test that knows all correlations, and that all rows' seeds vary alike, but not how
    much; and the oracle's. No test that has to estimate the seeds' variance from these rows can do better."""
    draw, rng, null = Tables(setting, 9), np.random.default_rng(0), []
    for _ in range(1000):
        scores = draw.answers().mean(axis=(1, 3))
        means = np.concatenate([scores.mean(axis=1, keepdims=True), scores], axis=1)
        null.append((means[1:] - means[0]).ravel())
    correlation = np.corrcoef(null, rowvar=False)
    normal = rng.multivariate_normal(np.zeros(len(correlation)), correlation, draws)
    critical = np.quantile(np.abs(normal).max(axis=1), 0.95)
    df = ROWS * (setting.seeds - 1)
    tasks = rng.chisquare(df, (draws, 1 if setting.shared else TASKS)) / df
    ratio = np.sqrt(np.concatenate([tasks.mean(axis=1, keepdims=True), np.broadcast_to(tasks, (draws, TASKS))], axis=1))
    ratio = np.tile(ratio, ROWS - 1)
    exact = np.quantile(np.abs(normal / ratio).max(axis=1), 0.95)
    place = 2 * (1 + TASKS) + single
    shifted = normal[:, place] + critical + 0.84
    return float(np.mean(shifted / ratio[:, place] > exact)), float(np.mean(shifted > critical))


MOVES = [(0.0, True), (0.06, True), (0.06, False), (0.18, True), (0.18, False)]
NULL = [
    Setting(seeds, move, shared, images, per)
    for images, per in ((100, 3), (20, 15))
    for seeds in (2, 3, 5)
    for move, shared in MOVES
]
BETTER = [
    Setting(3, move, shared, better=better)
    for move, shared in MOVES
    for better in (((3, None, 0.15),), ((3, None, 0.15), (4, None, 0.1)), ((3, 0, 0.2),))
]
WILD = [
    Setting(seeds, 0.03, shared, wild={row: factor})
    for seeds in (2, 3, 5)
    for factor in (3.0, 10.0)
    for row in (0, 3)
    for shared in (True, False)
] + [Setting(seeds, 0.06, wild={0: 3.0}) for seeds in (3, 5)]
# As large as the margin: every "equivalent" about row 3 is false. Many images and small seed effects, or none is found.
EQUAL = [
    Setting(5, move, images=images, per=3, alike=0.2, better=((3, None, MARGIN),))
    for move in (0.0, 0.01)
    for images in (100, 800)
]


# A subset of the grid that takes a few minutes, held to the limits of the whole: 5 % and three standard errors of 1,000
# tables, 8 % with wild seeds. The draws are seeded.

SUBSET = [NULL[place] for place in (0, 1, 3, 6, 7, 8, 10, 11, 21)] + [BETTER[place] for place in (4, 5, 8)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", SUBSET, ids=str)
def test_tables_claim_what_is_false_as_rarely_as_promised(setting: Setting) -> None:
    found = measure(setting, 300)
    assert found["false"] <= 0.071
    assert found["joint"] >= 0.93
    # 93 to 97 %, and what 300 tables may miss: their intervals are not independent.
    assert 0.92 <= found["marginal"] <= 0.98
    assert 0.92 <= found["scores"] <= 0.98


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", [WILD[place] for place in (0, 2, 8, 12, 14, 16)], ids=str)
def test_wild_seeds_of_one_row_make_few_false_claims(setting: Setting) -> None:
    assert measure(setting, 300)["false"] <= 0.08


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_differences_as_large_as_the_margin_are_not_called_equal() -> None:
    found = measure(EQUAL[-1], 200)
    assert found["equal"] <= 0.071


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("setting", "least"), [(Setting(5, 0.06, shared=False), 0.8), (Setting(3, 0.06), 0.55)], ids=str
)
def test_true_differences_are_found(setting: Setting, least: float) -> None:
    found, oracle = power(setting, single=False, tables=300)
    assert found >= least * oracle


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_power_that_a_pilot_promises_is_the_table_s(seeds: int) -> None:
    """Over several pilots, for each knows its seeds' variance badly."""
    by = 0.15
    draw = Tables(Setting(seeds, 0.06, better=((3, None, by),)), 3)
    tables = [draw.analysis() for _ in range(60)]
    found = np.mean([each.compare(PAIRS)["row3", "row0", MEAN].low > 0 for each in tables])
    promised = np.mean(
        [planned(components(each, PAIRS), by, seeds, 1.0, ROWS, len(PAIRS) * (1 + TASKS)) for each in tables]
    )
    assert abs(promised - found) < 0.15


def test_a_simulated_table_is_analysed_whole() -> None:
    found = measure(Setting(3, 0.0, images=20), 2)
    assert set(found) == {"false", "joint", "marginal", "scores", "equal"}


def print_shares(settings: list[Setting], tables: int) -> None:
    for each in settings:
        text = "  ".join(f"{name} {value:.3f}" for name, value in measure(each, tables).items())
        print(f"  {each!s:58s} {text}", flush=True)


def print_power(settings: list[Setting], tables: int) -> None:
    for each in settings:
        for single in (False, True):
            found, oracle = power(each, single, tables)
            what = "one task" if single else "mean"
            text = f"found {found:.3f}  oracle {oracle:.3f}  ratio {found / oracle:.2f}"
            print(f"  {each!s:58s} {what:9s} {text}", flush=True)


def print_bound(settings: list[Setting], tables: int) -> None:
    for each in settings:
        for single in (False, True):
            found, oracle = bound(each, single)
            what = "one task" if single else "mean"
            print(
                f"  {each!s:58s} {what:9s} exact {found:.3f}  oracle {oracle:.3f}  ratio {found / oracle:.2f}",
                flush=True,
            )


GROUPS = {
    "bound": (print_bound, [Setting(number, 0.06, shared) for number in (5, 3) for shared in (True, False)]),
    "wild": (print_shares, WILD),
    "null": (print_shares, NULL[:15]),
    "power": (
        print_power,
        [Setting(number, move, shared) for number in (5, 3) for move, shared in MOVES[1:] + MOVES[:1]],
    ),
    "better": (print_shares, BETTER),
    "few": (print_shares, NULL[15:]),
    "equal": (print_shares, EQUAL),
}

if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name in sys.argv[2:] or GROUPS:
        show, settings = GROUPS[name]
        print(f"{name}: shares of {count} tables (marginal, scores: of intervals that hold the truth)", flush=True)
        show(settings, count)
