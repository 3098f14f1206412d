"""The engine of W&B: its server hands out the runs, its agents run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from ablate.core.config import load_yaml
from ablate.core.errors import UserError
from ablate.sweeps.engines.base import ELSEWHERE, OK, SOME_FAILED, Engine, Work, register
from ablate.sweeps.engines.environment import environment_of
from ablate.sweeps.engines.stopping import stop_signals
from ablate.sweeps.parameters import as_written
from ablate.sweeps.schema import DEFAULT_COMMAND, load_sweep

_AGENT = re.compile(r"wandb agent (\S+)")


@register("wandb")
class Wandb(Engine):
    """Creates the sweep on W&B's server and prints the agents' command; `--jobs N` starts N agents here.

    For methods that need the server, such as bayes, and for machines that share no folder. What the local engine does
    beyond the list of runs (shared blind runs, the table, skipping what is finished) agents do not.

    Args:
        project: of W&B; "" for that of WANDB_PROJECT or of the file, else "ablate".
        entity: of W&B; "" for that of WANDB_ENTITY or of the file, else the user's default.
    """

    needs_plan = False

    def __init__(self, *, project: str = "", entity: str = "") -> None:
        super().__init__()
        self.project, self.entity = project, entity

    def run(self, work: Work) -> int:
        content = sweep_content(work)
        project = self.project or os.environ.get("WANDB_PROJECT") or content.pop("project", "") or "ablate"
        entity = self.entity or os.environ.get("WANDB_ENTITY") or content.pop("entity", "")
        sweep = _create(content, ["--project", project, *(["--entity", entity] if entity else [])])
        work.console.print(Text(f"Sweep {sweep} is on the server. An agent, on any machine:"))
        work.console.print(Text(f"  wandb agent {sweep}"), soft_wrap=True)
        if not work.jobs:
            return ELSEWHERE
        environment = environment_of(work.jobs, work.threads, work.runs)
        with stop_signals() as stop:
            # An agent hands SIGINT on to its run, which finishes its step and saves.
            agents = [
                subprocess.Popen([sys.executable, "-m", "wandb", "agent", sweep], env=environment.for_slot(slot))
                for slot in range(work.jobs)
            ]
            while (running := [agent for agent in agents if agent.poll() is None]) and not stop.signum:
                try:
                    running[0].wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
            for agent in running:
                agent.send_signal(stop.signum)
            statuses = [agent.wait() for agent in agents]
        return 128 + stop.signum if stop.signum else SOME_FAILED if any(statuses) else OK


def sweep_content(work: Work) -> dict[str, Any]:
    """The sweep file as W&B is given it: as it is, with the connectors, values and settings that were asked for.

    Raises:
        UserError: other values for a parameter that the file nests in another.
    """
    content = as_written(load_yaml(work.sweep.path, "sweep"))
    written = load_sweep(work.sweep.path)
    for parameter in work.sweep.parameters:
        if (old := written.parameter(parameter.name)) == parameter:
            continue
        if old is not None and parameter.name not in content["parameters"]:
            raise UserError(
                f"{work.sweep.path}: {parameter.name} is nested; write it as one dotted name to give it other values."
            )
        content["parameters"][parameter.name] = {"values": parameter.grid()}
    if work.overrides:
        content["command"] = [*(content.get("command") or DEFAULT_COMMAND), *work.overrides]
    return content


def _create(content: dict[str, Any], options: list[str]) -> str:
    """Create the sweep by W&B's own program; returns ENTITY/PROJECT/SWEEP."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sweep.yaml")
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "wandb", "sweep", *options, str(file)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not (found := _AGENT.search(done.stdout)):
        raise UserError(f"W&B did not create the sweep; it said:\n{done.stdout.strip()}")
    return found[1]
