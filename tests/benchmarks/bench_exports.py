"""Milliseconds for one row through an exported ONNX graph and through eager PyTorch, as a table in markdown.

Run as a script: python -m tests.benchmarks.bench_exports [backbone ...] [--lengths 1000 16000] [--threads 1]

Classifiers of DNA with random weights, width 64, two layers, every other option its default; medians, the two in turns.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import torch

from longseq.registry import list_backbones
from tests.pipelines.exports import run_export, tiny_model

# Their defaults, instead of the tests' smallest settings.
OPTIONS = {"mamba2": {"head_dim": 64, "d_state": 128}, "sashimi": {"pool": [4, 4]}}


def latencies(backbone: str, lengths: list[int], threads: int) -> list[tuple[float, float]]:
    """Milliseconds of the graph and of eager PyTorch at each length."""
    options = {"n_layers": 2, "d_model": 64, **OPTIONS.get(backbone, {})}
    if backbone == "hyena":
        options["max_length"] = max(lengths)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source = tiny_model("dna", backbone, Path(folder) / "source", **options)
        torch.set_num_threads(threads)
        report = run_export(source, Path(folder) / "out", format="onnx", latency=lengths, step=False)
    return [(row["artefact_ms"], row["eager_ms"]) for row in report["latency"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=[name for name in list_backbones() if name != "timm"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 16_000])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| backbone | " + " | ".join(f"ONNX, {n:,} | eager, {n:,}" for n in options.lengths) + " |")
    print("|---|" + "---|" * (2 * len(options.lengths)))
    for backbone in options.backbones:
        cells = [
            f"{ms:.{0 if ms >= 10 else 1}f}" for pair in latencies(backbone, options.lengths, options.threads) for ms in pair
        ]
        print(f"| `{backbone}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
