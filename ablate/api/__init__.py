"""Ablate from Python. `import ablate` has these functions, and imports what they need when they are first used.

load        a trained run that answers about images
train       one run
evaluate    a run on benchmarks
table       the ablation table of runs

The command line is made of the same functions.
"""
