"""Train one run from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ablate.api.settings import run_config
from ablate.pipeline.demo import prepare_demo
from ablate.pipeline.evaluate import score_run
from ablate.pipeline.train import train as train_run

if TYPE_CHECKING:
    from ablate.api.settings import Settings


def train(
    config: Settings | Sequence[Settings],
    *overrides: str,
    rerun: bool = False,
    checkpoint: Path | str | None = None,
    console: Console | None = None,
) -> Path:
    """Train the run that the settings describe, and evaluate it on `evaluation.benchmarks`.

    An interrupted run continues, a finished one is skipped. The demo's data are made if the settings ask for them.

    Args:
        config: the name of an experiment, a YAML file, a mapping with the keys of such a file, or a
            `runs.config.RunConfig`; or several of these, of which later ones win.
        overrides: `key=value` with dotted keys, such as "connector.name=msc_csm".
        rerun: train a finished run again if the source that it was made of has changed since; the old folder stays
            under another name.
        checkpoint: begin with this one, which a Lightning Trainer of your own wrote with `VLMModule` under the same
            settings.
        console: where to report; standard error if None.

    Returns:
        the run's folder, which `load`, `evaluate` and `table` take.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. The same call continues, with the same weights in the end, to the bit.
        Diverged: the loss is not finite or stays far too high.
        UserError: settings or data that cannot be used.
    """
    settings = run_config(config, overrides)
    prepare_demo(settings)
    evaluate = score_run if settings.evaluation.benchmarks else None
    start = None if checkpoint is None else Path(checkpoint)
    return train_run(settings, evaluate=evaluate, rerun=rerun, checkpoint=start, console=console)
