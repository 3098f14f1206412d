"""Training: the step, what trains, and what happens after each step.

module.py           the step: loss, gradient, clipping
recipes.py          what trains in each stage, and what is saved
optimization.py     parameter groups and schedule
callbacks.py        what happens after each step
loggers.py          Weights & Biases
lightning_state.py  checkpoints
divergence.py, memory.py
"""
