"""What `longseq export` prints: files, errors, latencies and metrics."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longseq.checkpoint import WEIGHTS


def show(report: dict[str, Any], output: Path) -> None:
    """Prints what was written, the errors and the latencies."""
    out = Console()
    table = Table(title=f"{report['backbone']}, {report['domain']}, {report['task']}: {report['format']}", title_justify="left")
    for column in ("graph", "file", "MB", "largest error", "note"):
        table.add_column(column, overflow="fold")
    for name, facts in report["graphs"].items():
        if "reason" in facts:
            table.add_row(name, "-", "-", "-", facts["reason"])
            continue
        note = f"opset {facts['opset']}" if "opset" in facts else ""
        table.add_row(name, facts["file"], f"{facts['bytes'] / 1e6:.2f}", f"{facts['largest_error']:.1e}", note)
    if not report["graphs"]:
        size = report["files"][WEIGHTS]["bytes"]
        table.add_row("-", WEIGHTS, f"{size / 1e6:.2f}", f"{report['largest_error']:.1e}", "longseq.load_model reads it")
    out.print(table)
    for row in report.get("latency", []):
        place = "" if row["length"] is None else f", length {row['length']:,}"
        ratio = row["eager_ms"] / max(row["artefact_ms"], 1e-9)
        out.print(
            f"latency  batch 1{place}: {row['artefact_ms']:.2f} ms, in eager {row['eager_ms']:.2f} ms ({ratio:.2f} x)",
            highlight=False,
        )
    show_metrics(out, report.get("metrics"), report["format"])
    quantization = report.get("quantization")
    if quantization is not None:
        ratio = quantization["bytes_before"] / quantization["bytes"]
        out.print(f"int8     {quantization['layers']} layers, {ratio:.2f} x smaller", highlight=False)
        show_metrics(out, quantization.get("metrics"), "int8")
        if "not_measured" in quantization:
            out.print(f"         metrics not measured: {quantization['not_measured']}")
    out.print(f"written  {output}", highlight=False)


def show_metrics(out: Console, metrics: dict[str, Any] | None, name: str) -> None:
    """Prints the metrics of the model and of the artefact."""
    if metrics is None:
        return
    for metric, value in metrics["model"].items():
        other = metrics["artefact"][metric]
        out.print(f"{metrics['split'] + '/' + metric:<16} {value:.6f} in eager, {other:.6f} as {name}", highlight=False)
