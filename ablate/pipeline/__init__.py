"""From settings to a result: train a run, evaluate it."""
