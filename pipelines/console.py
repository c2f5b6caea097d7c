"""What a run prints: what it is about to do, and its result beside the baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from longseq.domains.base import DomainData, DomainModule
from longseq.pipelines.run_folder import is_started, resume_command, whole_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

MOST_COLUMNS = 7


def start(
    cfg: "DictConfig", folder: Path, data: DomainData, module: DomainModule, trainer: L.Trainer, *, verb: str = "fit"
) -> None:
    """Prints the data, the model and the device before the first step."""
    if not trainer.is_global_zero:
        return
    out = Console()
    parameters = sum(p.numel() for p in module.model.parameters())
    said = f"domain={cfg.domain} task={cfg.task.name} backbone={cfg.backbone.name} seed={cfg.seed}"
    out.print(f"[bold]longseq {verb}[/] {said}")
    show_data(out, data)
    devices = f"{trainer.world_size} x {device_name(trainer)}"
    out.print(f"  model   {parameters:,} parameters; {devices}, {trainer.precision}", highlight=False)
    out.print(f"  run     {folder}", highlight=False)


def show_data(out: Console, data: DomainData) -> None:
    """Prints every split in a line, and what was found on the way: rows left out, leaks, where a split comes from."""
    if data.counts.get("synthetic"):
        out.print(f"  data    [yellow]synthetic demo data[/]: {data.counts['synthetic']}")
    out.print(splits_table(data.summary()))
    for key, value in data.counts.items():
        if key != "synthetic":
            out.print(f"  note    {key}: {format_value(value)}", highlight=False)


def splits_table(summary: dict[str, dict[str, Any]]) -> Table:
    """Rows, lengths and the like, one line per split."""
    table = Table(box=None, padding=(0, 2))
    names = [key for key, value in next(iter(summary.values())).items() if not isinstance(value, dict)]
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for split, facts in summary.items():
        table.add_row(split, *(format_value(facts[name]) for name in names))
    return table


def device_name(trainer: L.Trainer) -> str:
    """What the trainer runs on."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


def finish(folder: Path, metrics: dict[str, Any], monitor: str, mode: str) -> None:
    """Prints the test result beside the baselines, best value of each column in bold, and where everything is."""
    out = Console()
    note = ", on synthetic demo data" if metrics["synthetic"] else ""
    out.print(results_table(metrics, f"test result{note}", monitor, mode))
    training = metrics["training"]
    out.print(
        f"{training['tokens_per_second']:,.0f} tokens/s in training, {metrics['train_seconds']:.0f} s in all", highlight=False
    )
    out.print(f"model    {folder / 'model'}", highlight=False)
    if (folder / "report.html").is_file():
        out.print(f"report   {folder / 'report.html'}", highlight=False)


def results_table(metrics: dict[str, Any], title: str, monitor: str, mode: str) -> Table:
    """The model's metrics and the baselines' as a table; the column that decides comes first."""
    rows = {metrics["backbone"]: metrics["test"], **metrics.get("baselines", {})}
    names = [name for name in metrics["test"] if any(name in row for row in rows.values())]
    names.sort(key=lambda name: name != monitor)
    if len(names) > MOST_COLUMNS or is_too_wide(rows, names):
        return metrics_by_row(rows, names, title)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    values = [float(row[monitor]) for row in rows.values() if isinstance(row.get(monitor), (int, float))]
    best = (max if mode == "max" else min)(values, default=None)
    for label, row in rows.items():
        bold = best is not None and row.get(monitor) == best
        cells = [format_value(row[name]) if name in row else "-" for name in names]
        table.add_row(label, *cells, style="bold" if bold else None)
    return table


def is_too_wide(rows: dict[str, dict[str, Any]], names: list[str]) -> bool:
    """Whether numbers or the names of metrics would have to be cut off; the rows' labels break between words."""
    widths = [max(len(word) for label in rows for word in label.split() or [""])]
    widths += [max(len(name), *(len(format_value(row[name])) for row in rows.values() if name in row)) for name in names]
    return sum(widths) + 3 * len(widths) + 1 > Console().width


def metrics_by_row(rows: dict[str, dict[str, Any]], names: list[str], title: str) -> Table:
    """The same table turned round, for more metrics than a terminal is wide."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for label in rows:
        table.add_column(label, justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(format_value(row[name]) if name in row else "-" for row in rows.values()))
    return table


def interrupted(folder: Path, metrics: dict[str, Any]) -> None:
    """Prints how far a run came that Ctrl-C ended, and how it goes on."""
    out = Console()
    out.print(f"\n[yellow]interrupted[/] after {metrics['training']['steps']} steps")
    for name, value in metrics["validation"].items():
        out.print(f"  {name} {format_value(value)}", highlight=False)
    if is_started(whole_run(folder)):
        out.print(f"go on with: {resume_command(whole_run(folder))}", markup=False, highlight=False)
    else:
        out.print("no checkpoint was written yet: the run begins anew", highlight=False)


def format_value(value: Any) -> str:
    """Numbers short, everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
