"""Pictures of the table of backbones: time and memory of a training step against length."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longseq.pipelines.bench import Timing
from longseq.pipelines.bench_backbones import length_of

_MARKS = "osD^v<>pPX*hH8"


def draw(rows: Sequence[Timing], table: Path) -> Iterator[Path]:
    """Writes the picture beside the table, as png and svg; gives their paths."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    panels = (("step_ms", "training step, ms"), ("memory_mib", "peak memory of a step, MiB"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        _panel(axis, rows, name)
        axis.set(title=title, xlabel="length", xscale="log", yscale="log")
        axis.grid(True, which="major", alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    try:
        for suffix in (".png", ".svg"):
            figure.savefig(table.with_suffix(suffix), dpi=150)
            yield table.with_suffix(suffix)
    finally:
        pyplot.close(figure)


def _panel(axis: Any, rows: Sequence[Timing], name: str) -> None:
    """One line for each backbone."""
    from matplotlib import colormaps

    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, what in enumerate(dict.fromkeys(row.what for row in rows)):
        points = [(length_of(row), getattr(row, name)) for row in rows if row.what == what and getattr(row, name) > 0]
        if points:
            mark = _MARKS[i % len(_MARKS)]
            axis.plot(*zip(*points, strict=True), marker=mark, ms=4, lw=1.2, color=colors[i % 20], label=what)
