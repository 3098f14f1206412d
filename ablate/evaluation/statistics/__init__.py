"""Is the difference real? Intervals and tests for scores of several runs over one set of questions.

**Model.** A score is measured on a sample of images, each with some questions, and by runs that differ in their seed.
All runs answer the same questions, so the two samples are *crossed*: on one task, run s of row r scores on question q

    y[r, s, q] = mean[r] + image effect[r] + seed effect[r, s] + (seed x image) effect[r, s]

Images and seeds are random draws (Clark, 1973; Owen, 2007; Miller, 2024, section 3). Rows are compared on the
per-question differences: what both find hard cancels out. A seed's number means nothing: run 0 of two connectors have
other weights, so all seeds count as independent, also where their numbers are equal. What is equal on top only makes
the intervals wider than need be.

**Variance** of a mean (or difference of means) over S runs, by the crossed ANOVA with clusters of unequal sizes
(Cameron, Gelbach & Miller, 2011), written so that no part can vanish:

    V = max(0, V_images - V_both) + max(V_both, V_seeds)

- `V_images`: cluster-robust over images, of the scores averaged over the runs; CR2 with the degrees of freedom of Bell
  & McCaffrey (2002). Questions of one photo are answered alike and are not independent. Few images mean few degrees of
  freedom.
- `V_seeds`: the variance of the runs' means, over S. It holds the (seed x image) part, which `V_images` holds too:
- `V_both`: that part, from the doubly centred scores.

Degrees of freedom are Satterthwaite's (1946), with `max(V_both, V_seeds)` counted whole. So a variance of seeds that is
tiny by luck, as happens with two or three of them, does not leave the interval to the images alone.

**Few seeds** (`Analysis`). The variance of seeds is pooled over the rows of a task (as in ANOVA and Dunnett's test):
six rows of three seeds have 12 degrees of freedom, not 2. That assumes that seeds vary alike in all rows. Blind rows
are pooled apart. Where the assumption is wrong, a row with wild seeds would be trusted too much; so the variances are
also fitted as scale(row) x level(task), a gamma model, and a row whose scale exceeds the others' by a one-sided F test
stands *apart*: its comparisons must hold with the pooled variance and with its own, and the wider interval counts.
Pooling alone claims too much there; separate variances everywhere lose most of the power. The level of that test is a
trade of size for power (`seeds.apart_level`): 45 % with two seeds, which are too often alike by luck, and 12 % over the
degrees of freedom of a row's scale with more, which are many where tasks do not share their seeds' effects.

**Families.** A table asks many questions at once. `Analysis.compare` answers for all of them together: every interval
is difference +- c se, with c the 95 % quantile of the largest |t| over the mean, all tasks and all rows (max-t, single
step). Its distribution is simulated with a fixed seed: images with the correlations that they have over rows and tasks,
seeds with those that they have over tasks, each divided by its own estimated variance, whose errors are correlated too
(Wishart). So the chance of any false claim is at most 5 % however many rows are truly better (strong control), and a
verdict and its interval always agree: "better" is an interval above 0. A row with one seed is outside: **one run says
nothing about other seeds**, and gets no verdict.

**Intervals that stand alone**, of one score or one comparison, are for reading, not for verdicts, and are as wide as
95 % asks, not wider. They take V = max(0, V_images - V_both) + V_seeds with the pooled V_seeds as it was estimated:
where seeds do not matter, one that is never below V_both is too high on average. A row that is clearly apart takes its
own variance, and does not count in that of the others.

**Equal** is a claim too. `Comparison.equivalence(margin)` is the two one-sided tests (Schuirmann, 1987) by the same
interval: within the margin on both sides, equivalent; on one, not worse (or not better) by more than it.

**Bounds.** Scores live in [0, 1], so their intervals are Wilson's (1927) with the t quantile and the effective sample
size mean * (1 - mean) / V (Korn & Graubard, 1998). Where every image scores the same (100 %, say), V is 0 but the
interval is not: see `degenerate_interval`.

**Corpus metrics** (F1, AUC, BLEU over all answers together) are no means of questions: their intervals are bootstrapped
over images, run by run, and they are outside the family: no verdict is read from them.

**Several benchmarks at once**: the mean over tasks counts each the same, centred within each. Seed effects that tasks
share, and photos that two tasks share, are then counted as what they are.

How often all this holds, simulated: `tests/evaluation/test_simulated_tables.py`, and its figures in BENCHMARKS.md.

References: Clark, J. Verb. Learn. Verb. Behav. 12 (1973). Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1 (2007).
Cameron, Gelbach, Miller, J. Bus. Econ. Stat. 29 (2011). Bell & McCaffrey, Survey Methodology 28 (2002). Satterthwaite,
Biometrics Bull. 2 (1946). Dunnett, JASA 50 (1955). Hothorn, Bretz & Westfall, Biometrical J. 50 (2008). Schuirmann, J.
Pharmacokinet. Biopharm. 15 (1987). Wilson, JASA 22 (1927). Korn & Graubard, Survey Methodology 24 (1998). Miller,
Adding error bars to evals, arXiv 2411.00640 (2024).
"""

from ablate.evaluation.statistics.design import Scores
from ablate.evaluation.statistics.families import MEAN, Analysis, Comparison, compare
from ablate.evaluation.statistics.single import Estimate, bootstrap, estimate, macro, mean_estimate, score_interval

__all__ = [
    "MEAN",
    "Analysis",
    "Comparison",
    "Estimate",
    "Scores",
    "bootstrap",
    "compare",
    "estimate",
    "macro",
    "mean_estimate",
    "score_interval",
]
