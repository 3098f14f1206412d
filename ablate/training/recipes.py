"""The stages of training: which parts of the model learn in each, and which a run has to save."""

from __future__ import annotations

from rich.table import Table
from torch import nn

STAGES: dict[str, tuple[str, ...]] = {
    "align": ("connector",),
    "finetune": ("connector", "language"),
    "full": ("encoder", "connector", "language"),
}
PARTS = ("encoder", "connector", "language")


def freeze(vlm: nn.Module, stage: str) -> None:
    """Let the stage's parts, and nothing else, learn."""
    vlm.requires_grad_(False)
    for name in STAGES[stage]:
        if (part := getattr(vlm, name)) is not None:
            part.requires_grad_(True)


def kept_parts(stage: str) -> tuple[str, ...]:
    """What a checkpoint holds: the parts that learn, and always the connector. The others follow from the config."""
    return tuple(name for name in PARTS if name == "connector" or name in STAGES[stage])


def learning_table(vlm: nn.Module, stage: str) -> Table:
    """What trains: part, parameters, yes or no, dtype."""
    table = Table(title=f"Stage {stage}", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("trains")
    table.add_column("dtype")
    for name in PARTS:
        parameters = list(getattr(vlm, name).parameters()) if getattr(vlm, name) is not None else []
        learning = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        trains = "no" if not learning else "yes" if learning == total else f"{learning:,}"
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
        table.add_row(name, f"{total:,}", trains, ", ".join(dtypes))
    learning = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    table.add_row("all", f"{sum(p.numel() for p in vlm.parameters()):,}", f"{learning:,}", "", style="bold")
    return table
