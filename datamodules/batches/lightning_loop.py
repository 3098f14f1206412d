"""What is read from Lightning's training loop, and put right in it. Nothing else touches the loop's internals."""

from typing import Any

import lightning as L


def batches_processed(trainer: L.Trainer) -> int:
    """Batches of this epoch, on this rank, whose training step is complete."""
    return _progress(trainer).processed


def batches_begun(trainer: L.Trainer) -> int:
    """Batches of the whole training, on this rank, before the one at hand."""
    return trainer.fit_loop.total_batch_idx


def recount_batches(trainer: L.Trainer) -> None:
    """Correct Lightning's batch count when a run resumes with a different number of ranks or micro-batches.

    Its checkpoint counts the batches of one rank. They have become more or fewer, and Lightning decides by that count
    when the epoch is over and when the gradients are complete. The numbers are those within `on_train_batch_end`.
    """
    done = getattr(trainer.train_dataloader, "recounted", None)
    if done is not None:
        count = _progress(trainer)
        count.ready = count.started = count.processed = done
        count.completed = done - 1


def _progress(trainer: L.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.batch_progress.current
