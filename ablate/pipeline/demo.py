"""The demo's data, made where a command needs it."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from ablate.demo.config import DemoConfig, DemoPaths
    from ablate.runs.config import RunConfig


def prepare_demo(config: "RunConfig") -> None:
    """Make the demo dataset that the config asks for, unless it is there; one process does it, others wait."""
    if config.demo is not None:
        build(Path(config.demo_root), config.demo)


def build(root: Path, config: "DemoConfig") -> "DemoPaths":
    from ablate.demo.build import build_demo

    console = Console(stderr=True)
    return build_demo(root, config, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


def describe(paths: "DemoPaths") -> None:
    print(f"Training shards  {paths.train}")
    print(f"Six test sets    {paths.eval}")
    print(f"Look at it       {paths.contact_sheet}")
    print(f"Licences         {paths.licences}")
