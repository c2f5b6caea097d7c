"""Small models of every domain's main task, and exports of them, for the tests of `longseq export`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from longseq.checkpoint import save_model
from longseq.domains.audio.tokenizer import AudioTokenizer
from longseq.domains.dna.datamodule import padded_complement
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.model import build_model
from longseq.pipelines import export

D = 16
ROOT = Path(__file__).parents[2]
DEFAULTS = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "export.yaml"))
LABELS = {"task": "classification", "labels": ["no", "yes"]}
POOL = {"name": "pool", "n_outputs": 2}
SERIES = {
    "name": "series_patch",
    "lookback": 48,
    "patch": 8,
    "stride": 8,
    "n_channels": 2,
    "mean": [5.0, 0.0],
    "std": [2.0, 1.0],
}
FORECAST = {"name": "forecast", "horizon": 6, "n_channels": 2, "n_tokens": 6, "layout": "channels", "lookback": 48}
QUANTILES = [0.1, 0.5, 0.9]
CONFIGS: dict[str, dict[str, Any]] = {
    "dna": {
        **LABELS,
        "embedding": {"name": "token", "vocab_size": 16},
        "head": POOL,
        "tokenizer": NucleotideTokenizer().to_dict(),
    },
    "audio": {
        **LABELS,
        "embedding": {"name": "waveform", "strides": [4], "kernel_sizes": None},
        "head": POOL,
        "tokenizer": AudioTokenizer("waveform", 8000, stem_strides=(4,)).to_dict(),
    },
    "transcripts": {
        "domain": "audio",
        "task": "ctc",
        "vocabulary": ["<blank>", "a", "b", "c"],
        "beam_width": 4,
        "embedding": {"name": "waveform", "strides": [4], "kernel_sizes": None},
        "head": {"name": "token", "n_outputs": 4, "bias": True},
        "tokenizer": AudioTokenizer("waveform", 8000, stem_strides=(4,)).to_dict(),
    },
    "timeseries": {
        "task": "forecasting",
        "channels": ["a", "b"],
        "horizon": 6,
        "output": "quantiles",
        "quantiles": QUANTILES,
        "embedding": SERIES,
        "head": {**FORECAST, "output": "quantiles", "quantiles": QUANTILES, "linear_skip": True},
        "series": {"channels": ["a", "b"], "targets": ["a", "b"], "covariates": [], "frequency": "1 h"},
    },
    "vision": {
        **LABELS,
        "embedding": {"name": "patch", "size": [8, 8], "patch": 2, "n_channels": 1},
        "head": POOL,
        "tokenizer": {"name": "patch", "size": [8, 8], "channels": 1, "resize": "crop", "frames": 1, "frame_stride": 1},
        "n_positions": 16,
    },
}

# Few heads and states; one pooling, as every further one is more of the same.
OPTIONS: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 8, "d_state": 8},
    "hyena": {"max_length": 512},
    "sashimi": {"pool": [4]},
}


def tiny_model(domain: str, backbone: str, folder: Path, **more: Any) -> Path:
    """A model folder with random weights.

    Args:
        domain: its main task; `transcripts` for audio's other one.
        backbone: name.
        folder: where.
        **more: options of the backbone.
    """
    torch.manual_seed(3)
    options: dict[str, Any] = {"name": backbone, "d_model": D, "n_layers": 1, **OPTIONS.get(backbone, {}), **more}
    config = {"domain": domain, **CONFIGS[domain], "backbone": options}
    if backbone == "caduceus" and domain == "dna":
        config |= {"head": {**POOL, "name": "strand_pool"}}
        config["embedding"] = {"name": "strand", "vocab_size": 16, "complement": padded_complement()}
    elif backbone == "caduceus":
        # Only nucleotides have another strand.
        options["rcps"] = False
    model = build_model(config)
    for name, parameter in model.named_parameters():
        # Heads that begin at zero, and filters that begin small, would make the comparison an empty one.
        if name.startswith("head") or (parameter.ndim == 2 and "out_proj" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    return save_model(model, folder)


def run_export(model: Path | None, output: Path, **options: Any) -> dict[str, Any]:
    """`longseq export` in this process, without latencies unless asked for."""
    cfg = {**DEFAULTS, "latency": None, "model": None if model is None else str(model), "output": str(output), **options}  # type: ignore[dict-item]
    return export.run(OmegaConf.create(cfg))


BLOCK = """
import runpy, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = {argv!r}
runpy.run_path({script!r}, run_name="__main__")
"""
ELSEWHERE = ("longseq", "domains", "pipelines", "lightning", "pandas", "hydra", "scipy", "sklearn", "torchaudio", "soundfile")


def run_predict(folder: Path, *args: Any, without: tuple[str, ...] = ("torch",)) -> subprocess.CompletedProcess[str]:
    """predict.py of an exported folder where neither longseq nor anything else of its dependencies can be imported."""
    argv = ["predict.py", *map(str, args)]
    code = BLOCK.format(blocked={*ELSEWHERE, *without}, argv=argv, script=str(folder / "predict.py"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )
