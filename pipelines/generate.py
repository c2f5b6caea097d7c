"""Let a language model make up sequences: longseq generate run=… prompt=ACGT… max_new_tokens=1000.

Reads the prompt at once, then draws token by token, each in constant time and memory where the backbone's state does not
grow. DNA comes as FASTA, sound as wav, images as png; the same seed gives the same sequences.
"""

import math
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from longseq.domains.generation import Generation
from longseq.errors import ConfigError
from longseq.pipelines.prediction_files import check_place, writing
from longseq.pipelines.trained import Trained
from longseq.sampling import check_sampling, sample_tokens


def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes or prints `cfg.num_samples` sequences.

    Args:
        cfg: composed from configs/generate.yaml.

    Returns:
        `files`, and `tokens_per_second` over all samples.
    """
    check_options(cfg)
    trained = Trained(cfg)
    model = trained.model.to(trained.device)
    sampling = {"temperature": cfg.temperature, "top_k": cfg.top_k, "top_p": cfg.top_p}
    # What the model cannot do is said before the prompt is looked at.
    check_sampling(model, torch.zeros(1, 1), 0, **sampling)
    output = None if cfg.output is None else Path(cfg.output)
    domain = generation(trained)
    domain.check_output(output)
    if output is not None:
        check_place(output)
    given = None if cfg.prompt is None else str(cfg.prompt)
    prompt = domain.prompt(given, cfg.num_samples, cfg.seed)
    n_tokens = domain.default_tokens if cfg.max_new_tokens is None else cfg.max_new_tokens
    prompt_BL = torch.from_numpy(prompt)
    started = time.perf_counter()
    drawn = sample_tokens(model, prompt_BL, n_tokens, seed=cfg.seed, allowed=domain.allowed, **sampling)
    # Sequences go to stdout, all else to stderr.
    notes = Console(stderr=True)
    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        tokens = [token_B for token_B, _ in bar.track(drawn, total=n_tokens, description="generating")]
    seconds = time.perf_counter() - started
    drawn_BT = torch.stack(tokens, 1) if tokens else torch.empty(cfg.num_samples, 0, dtype=torch.int64)
    with writing(output or Path()):
        files = domain.write(given, prompt, drawn_BT.numpy(), output)
    speed = drawn_BT.numel() / max(seconds, 1e-9)
    for file in files:
        notes.print(f"written  {file}", highlight=False)
    notes.print(f"{cfg.num_samples} x {n_tokens} tokens, {speed:,.0f} tokens/s on {trained.device}", highlight=False)
    return {"files": [str(file) for file in files], "tokens_per_second": speed}


def check_options(cfg: DictConfig) -> None:
    """Raises ConfigError for an option that is of the wrong kind; `check_sampling` knows what the numbers may be."""
    least = {"num_samples": 1, "seed": 0, "max_new_tokens": 0, "top_k": 1}
    for name, value in {name: cfg[name] for name in least}.items():
        if value is None and name in ("max_new_tokens", "top_k"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least[name] <= value < 2**63:
            raise ConfigError(f"{name} must be at least {least[name]}, and a whole number of 64 bits, found {value!r}")
    for name in ("temperature", "top_p"):
        value = cfg[name]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, found {value!r}")


def generation(trained: Trained) -> Generation:
    """The domain's way of beginning and showing sequences.

    Raises:
        ConfigError: if it has none.
    """
    try:
        module = import_module(f"{trained.package}.generation")
    except ModuleNotFoundError as error:
        if error.name != f"{trained.package}.generation":
            raise
        raise ConfigError(f"domain={trained.domain} has no language models, so there is nothing to generate") from None
    return module.Generated(trained.config)
