"""What fine-tuning prints before its first step: what was loaded, what is trained, and at which rates."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longseq.pipelines.console import format_value

if TYPE_CHECKING:
    from longseq.pipelines.finetune_modes import Plan
    from longseq.pretrained import KeyReport

MOST_GROUPS = 12


def describe(report: "KeyReport", plan: "Plan", facts: dict[str, Any]) -> None:
    """Prints the key report, the mode, the share of trainable parameters, and the optimiser's groups."""
    out = Console()
    out.print(Text(str(report)))
    out.print(f"  mode    {plan.mode}", highlight=False)
    if plan.adapted is not None:
        out.print(f"  adapted {plan.adapted}", highlight=False)
    for pattern, count in plan.frozen.items():
        out.print(Text(f"  frozen  {pattern}: {count:,} parameters"))
    out.print(f"  trained {facts['trainable']:,} of {facts['parameters']:,} parameters ({facts['share']:.2%})", highlight=False)
    for note in plan.notes:
        out.print(Text(f"  note    {note}", style="yellow"))
    out.print(groups_table(facts["groups"]))


def groups_table(groups: list[dict[str, Any]]) -> Table:
    """The optimiser's groups, one line each; those in the middle are left out where there are many."""
    table = Table(box=None, padding=(0, 2))
    for name in ("learning rate", "weight decay", "tensors", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("such as", overflow="fold")
    shown = groups if len(groups) <= MOST_GROUPS else [*groups[: MOST_GROUPS - 2], *groups[-1:]]
    for i, row in enumerate(shown):
        if len(shown) < len(groups) and i == len(shown) - 1:
            table.add_row("...", "", "", "", f"{len(groups) - len(shown)} more groups in parameter_groups.csv")
        table.add_row(
            *(format_value(row[name]) for name in ("lr", "weight_decay", "tensors", "parameters")), Text(row["such as"])
        )
    return table
