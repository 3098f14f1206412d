"""What trains, as a table for people."""

from __future__ import annotations

from rich.table import Table

from ablate.model.recipe import PARTS
from ablate.model.vlm import VLM


def learning_table(vlm: VLM, recipe: str) -> Table:
    """What trains: part, parameters, yes or no, dtype."""
    table = Table(title=f"Recipe {recipe}", title_justify="left")
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
