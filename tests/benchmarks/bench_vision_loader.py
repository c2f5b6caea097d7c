"""How many images a second the loader alone gives, beside a training step's appetite: the loader should be the faster one.

Run as a script: python tests/benchmarks/bench_vision_loader.py [--source images/] [--num-workers 4]. Without a source it
measures 2,000 PNG files of 64 x 64 pixels, and the same pixels as an array.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.module import VisionModule
from longseq.domains.vision.tasks import ImageClassification
from longseq.model import build_model
from longseq.registry import create_backbone


def make_files(folder: Path, n: int = 2000, side: int = 64) -> dict[str, str]:
    """Random smooth images in two classes, as files and as an array."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, side // 8, side // 8, 3), dtype=np.uint8)
    images = coarse.repeat(8, 1).repeat(8, 2)
    for label in (0, 1):
        (folder / "files" / str(label)).mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "files" / str(i % 2) / f"{i}.png")
    np.savez(folder / "array.npz", x=images, y=np.arange(n) % 2)
    return {"PNG files": str(folder / "files"), "array on disk": str(folder / "array.npz")}


def loader_rate(data: VisionData, seconds: float) -> float:
    """Images per second of the training loader, after its first batch."""
    count, start, epoch = 0, 0.0, 0
    while True:
        for batch in data.loader("train", shuffle=True, epoch=epoch):
            if not start:
                start = time.perf_counter()
                continue
            count += len(batch["index"])
            if time.perf_counter() - start > seconds:
                return count / (time.perf_counter() - start)
        epoch += 1


def step_rate(data: VisionData, backbone: str, d_model: int, n_layers: int, seconds: float) -> float:
    """Images per second of training steps on one batch that stays on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"name": backbone, "d_model": d_model, "n_layers": n_layers}
    if backbone == "hyena":
        options["max_length"] = data.max_length
    task = ImageClassification(data.labels)
    built = create_backbone(**options)
    config = {**task.config(), **data.model_options(built), "backbone": options, "head": data.head_options(built, task.head())}
    module = VisionModule(task=task, model=build_model(config, built)).to(device)
    optimizer = torch.optim.AdamW(module.parameters())
    batch = {name: tensor.to(device) for name, tensor in next(iter(data.loader("train"))).items()}
    count, start = -1, time.perf_counter()
    while count < 1 or time.perf_counter() - start < seconds:
        task.loss(module(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        count += 1
        # The first step compiles and allocates.
        start = time.perf_counter() if count == 0 else start
    return count * len(batch["index"]) / (time.perf_counter() - start)


def measure(sources: dict[str, str], options: dict[str, Any], model: dict[str, Any], seconds: float = 5.0) -> dict[str, float]:
    """Images per second of each source's loader, plain and augmented, and of the training step."""
    rates = {}
    for name, source in sources.items():
        for how, augment in (("", {}), (", augmented", {"hflip": 0.5, "scale": [0.3, 1.0], "auto_augment": "rand-m9-n2"})):
            data = VisionData(task="classification", train=source, **options, **augment)
            data.setup("fit")
            rates[f"loader, {name}{how}"] = loader_rate(data, seconds)
    rates[f"training step, {model['backbone']}"] = step_rate(data, **model, seconds=seconds)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=None)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--backbone", default="hyena")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--n-layers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "size": args.size}
    model = {"backbone": args.backbone, "d_model": args.d_model, "n_layers": args.n_layers}
    with tempfile.TemporaryDirectory() as folder:
        sources = {args.source: args.source} if args.source else make_files(Path(folder))
        for name, rate in measure(sources, options, model, args.seconds).items():
            print(f"{name:40s} {rate:10,.0f} images/s")


if __name__ == "__main__":
    main()
