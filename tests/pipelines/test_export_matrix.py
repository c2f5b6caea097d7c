"""The export matrix: every backbone, in every format, on every domain's main task, and the table of its largest errors.

    python -m tests.pipelines.test_export_matrix [domain ...] > matrix.md

prints the table that README shows. The default run holds one column of it; `-m slow` runs them all.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from longseq.pipelines.export_check import check_folder
from longseq.pipelines.export_formats import compiler
from longseq.pipelines.export_graphs import ExportError
from longseq.registry import list_backbones
from tests.pipelines.exports import CONFIGS, run_export, tiny_model

DOMAINS = tuple(CONFIGS)
FORMATS = ("safetensors", "torch", "onnx")
# What cannot be exported, and the words that say why.
CANNOT: dict[tuple[str, str, str], str] = {("mamba", "aoti", "dna"): "AOTInductor compiled this model to a package that fails"}
# Quick enough for every run.
QUICK = ("cnn", "gru", "hyena", "transformer")


def cell(backbone: str, form: str, domain: str, folder: Path) -> dict[str, Any]:
    """One cell's report."""
    source = tiny_model(domain, backbone, folder / "source")
    return run_export(source, folder / "out", format=form)


def largest(report: dict[str, Any]) -> float:
    """The largest error of all graphs of a report."""
    errors = [facts["largest_error"] for facts in report["graphs"].values() if "largest_error" in facts]
    return max([*errors, report.get("largest_error", 0.0)])


def check(backbone: str, form: str, domain: str, folder: Path) -> None:
    """Exports one cell, and expects it to be right or to fail with the message that is known."""
    reason = CANNOT.get((backbone, form, domain))
    if reason is not None:
        with pytest.raises(ExportError, match=reason):
            cell(backbone, form, domain, folder)
        assert not (folder / "out").exists()
        return
    report = cell(backbone, form, domain, folder)
    assert largest(report) < 1e-4
    assert check_folder(folder / "out")["backbone"] == backbone
    if form != "safetensors":
        graph = report["graphs"]["sequence"]
        lengths = {row["length"] for row in graph["checks"]}
        # Windows and images have one size; everything else is checked at three lengths, one of them odd.
        assert len(lengths) == (3 if domain in ("dna", "audio") else 1)
        assert domain in ("timeseries", "vision") or any(length % 2 for length in lengths)
        assert graph["dynamic_axes"]["inputs"]["0"] == "batch"
        step = report["graphs"]["step"]
        assert "reason" in step or step["largest_error"] < 1e-4


@pytest.mark.parametrize("backbone", QUICK)
def test_quick_backbones_through_torch_export(backbone: str, tmp_path: Path) -> None:
    check(backbone, "torch", "dna", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("backbone", list_backbones())
def test_every_backbone_in_every_format_and_domain(backbone: str, form: str, domain: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    check(backbone, form, domain, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
# A minute or two each: the others are left to the table.
@pytest.mark.parametrize("backbone", ["mamba"])
def test_compiled_by_aotinductor(backbone: str, tmp_path: Path) -> None:
    check(backbone, "aoti", "dna", tmp_path)


def table(domains: tuple[str, ...], forms: tuple[str, ...]) -> str:
    """The matrix in markdown: each cell's largest relative error over all its graphs, batch sizes and lengths."""
    lines = ["| backbone | " + " | ".join(f"{domain}, {form}" for domain in domains for form in forms) + " | step |"]
    lines += ["|---|" + "---|" * (len(domains) * len(forms) + 1)]
    for backbone in list_backbones():
        cells, step = [], "-"
        for domain in domains:
            for form in forms:
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        report = cell(backbone, form, domain, Path(folder))
                        cells.append(f"{largest(report):.0e}")
                        step = "yes" if "file" in report["graphs"].get("step", {}) else step
                    except ExportError as error:
                        cells.append(f"no: {error}")
                print(
                    f"{backbone} {domain} {form} {time.perf_counter() - started:.1f} s", cells[-1], file=sys.stderr, flush=True
                )
        lines.append(f"| {backbone} | " + " | ".join(cells) + f" | {step} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(tuple(sys.argv[1:]) or DOMAINS, ("torch", "onnx")))
