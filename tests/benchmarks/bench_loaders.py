"""How many rows a second each domain's loader gives by itself, beside what its training step takes.

Run as a script: python tests/benchmarks/bench_loaders.py [--domains dna audio] [--backbone hyena] [key=value ...].
Without data the demo data are measured; further options are those of `longseq fit`, such as data.train=my.csv for one domain.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from hydra import compose, initialize_config_module

from longseq.domains.loading import loader_rate
from longseq.pipelines.demo import apply_demo
from longseq.pipelines.fit import build_data, build_module, build_network, build_task

DOMAINS = ("dna", "audio", "timeseries", "vision")


def composed(domain: str, overrides: list[str]) -> Any:
    """The config that `longseq fit domain=…` would use."""
    given = [f"domain={domain}", *overrides]
    with initialize_config_module("longseq.configs", version_base="1.3"):
        return apply_demo(compose("fit", overrides=given), given)


def step_rate(cfg: Any, data: Any, seconds: float) -> float:
    """Rows per second of training steps on one batch that stays on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task = build_task(cfg, data)
    module = build_module(cfg, build_network(cfg, data, task), task).to(device)
    batch = {name: value.to(device) for name, value in next(iter(data.loader("train", shuffle=True))).items()}
    optimizer = torch.optim.AdamW(module.parameters())
    count, start = -1, time.perf_counter()
    while count < 1 or time.perf_counter() - start < seconds:
        task.loss(module(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        count += 1
        # The first step allocates and compiles.
        start = time.perf_counter() if count == 0 else start
    return count * len(batch["index"]) / (time.perf_counter() - start)


def measure(domain: str, overrides: list[str], seconds: float) -> tuple[float, float]:
    """Rows per second of a domain's loader, and of its training step."""
    cfg = composed(domain, overrides)
    data = build_data(cfg)
    return loader_rate(data, seconds), step_rate(cfg, data, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    options = [f"data.num_workers={args.num_workers}", *args.overrides]
    options += [f"backbone={args.backbone}"] if args.backbone else []
    print(f"{'domain':12s} {'loader rows/s':>15s} {'step rows/s':>15s} {'loader is':>12s}")
    for domain in args.domains:
        loader, step = measure(domain, options, args.seconds)
        print(f"{domain:12s} {loader:15,.0f} {step:15,.0f} {loader / step:10.1f} x", flush=True)


if __name__ == "__main__":
    main()
