"""The export matrix: every backbone, in every format, on every domain's main task, and the table of its largest errors.

    python -m tests.pipelines.test_export_matrix [domain ...] [format ...] > matrix.md

prints the table that README shows (aoti takes minutes for each backbone). The default run holds one column of it; `-m slow`
runs them all.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from longseq.pipelines.export_aoti import compiler
from longseq.pipelines.export_check import check_folder
from longseq.pipelines.export_graphs import ExportError
from longseq.registry import list_backbones
from tests.pipelines.exports import run_export, tiny_model

DOMAINS = ("dna", "audio", "timeseries", "vision")
FORMATS = ("safetensors", "torch", "onnx")
# What cannot be exported, and the words that say why.
CANNOT: dict[tuple[str, str], str] = {("gru", "aoti"): "one position after the other"}
# Quick enough for every run; and those that are compiled in half a minute, of which s4 has a step graph too.
QUICK, COMPILED = ("cnn", "gru", "hyena", "transformer"), ("gru", "s4")
# Large graphs, of scans whose own tests trace them whole.
LARGE = ("caduceus", "mamba", "sashimi")


def largest(report: dict[str, Any]) -> float:
    """The largest error of all graphs of a report."""
    errors = [facts["largest_error"] for facts in report["graphs"].values() if "largest_error" in facts]
    return max([*errors, report.get("largest_error", 0.0)])


def check(backbone: str, forms: Sequence[str], domain: str, folder: Path, **options: Any) -> None:
    """Exports one model in several formats, and expects each to be right or to fail with the message that is known."""
    source = tiny_model(domain, backbone, folder / "source")
    for form in forms:
        output = folder / form
        reason = CANNOT.get((backbone, form))
        if reason is not None:
            with pytest.raises(ExportError, match=reason):
                run_export(source, output, format=form, **options)
            assert not output.exists()
            continue
        report = run_export(source, output, format=form, **options)
        assert largest(report) < 1e-4
        assert check_folder(output)["backbone"] == backbone
        if form != "safetensors":
            check_graphs(report, domain)


def check_graphs(report: dict[str, Any], domain: str) -> None:
    """What every report on graphs must hold."""
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
    check(backbone, ["torch"], "dna", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", list_backbones())
def test_every_backbone_in_every_format(backbone: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("onnxruntime")
    if backbone in LARGE:
        request.getfixturevalue("few_rounds")
        check(backbone, FORMATS, "dna", tmp_path, max_length=512)
    else:
        check(backbone, FORMATS, "dna", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("domain", DOMAINS[1:])
@pytest.mark.parametrize("backbone", list_backbones())
def test_every_backbone_in_every_other_domain(backbone: str, domain: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = {"max_length": 4 * 512} if domain == "audio" else {}
    # The ONNX file is written from what torch.export traces; that by itself is written for every backbone on DNA.
    check(backbone, ("safetensors", "onnx"), domain, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("backbone", COMPILED)
def test_compiled_by_aotinductor(backbone: str, tmp_path: Path) -> None:
    check(backbone, ["aoti"], "dna", tmp_path)


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
                    source = tiny_model(domain, backbone, Path(folder) / "source")
                    try:
                        report = run_export(source, Path(folder) / "out", format=form)
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
    asked = sys.argv[1:]
    forms = tuple(form for form in ("torch", "onnx", "aoti") if form in asked) or ("torch", "onnx")
    print(table(tuple(domain for domain in DOMAINS if domain in asked) or DOMAINS, forms))
