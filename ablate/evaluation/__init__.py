"""Six benchmarks, scored as their official scorers do, with an interval and a baseline for every score.

normalise.py    how the official scorers rewrite answers
benchmarks/     one file per benchmark: official files -> questions, prompts, scores, figures
baselines.py    what a model that sees nothing could score
metrics.py      binary metrics, torchmetrics'
statistics.py   intervals over images and seeds; is a difference real?
predictions.py  predictions/<task>.jsonl: one line a question
runner.py       ask a model, resumably, and put it all together
"""
