"""Write a pretrained model's features of new files: longseq embed pretrained=… data.predict=… output=embeddings.npy.

One vector per row, pooled over its real positions, or with pool=none one per position; ids and coordinates stay with them.
Rows are read and written in parts, so neither the input nor the output need fit into memory. Models of both DNA strands give
the average of the two, which does not depend on the strand that was read. Rows longer than the model can take give their middle
and are counted; data.on_long=window, or data.window=, makes a row of each window.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from longseq.checkpoint import write_atomically
from longseq.domains.loading import LengthBatches
from longseq.errors import ConfigError
from longseq.heads import POOLS, pool_positions
from longseq.model import SequenceModel
from longseq.pipelines.cli import CONFIGS, nearest
from longseq.pipelines.console import format_value
from longseq.pipelines.embedding_files import open_writer
from longseq.pipelines.finetune_model import check_named
from longseq.pipelines.finetune_probe import autocast_dtype
from longseq.pipelines.fit import build, quiet_lightning
from longseq.pipelines.option_types import check_types
from longseq.pipelines.prediction_files import writing
from longseq.pipelines.run_folder import CONFIG, read_config
from longseq.pipelines.trained import choose_device
from longseq.pretrained import list_pretrained, load_pretrained

if TYPE_CHECKING:
    from longseq.domains.base import DomainData
    from longseq.domains.tasks import Batch

# The format of what longseq itself saved, which says nothing new of its keys.
OURS, KEY_REPORT = "longseq", "key_report.json"
# Tasks of windows or of hidden parts: their models read whole rows here, as a task with one answer a row does.
WINDOWED = {"dna": ("lm", "mlm"), "audio": ("masked_sound",)}
# What made those windows in pretraining.
WINDOW_OPTIONS = ("window", "stride", "clip_s", "hop_s")
# Kept in memory until they are written, where every position has a vector.
MOST_POSITIONS = 2**20
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes the features of `cfg.data.predict`.

    Args:
        cfg: composed from configs/embed.yaml.

    Returns:
        `output`, the number of `rows`, and the `width` of a vector.
    """
    quiet_lightning()
    check_named(cfg)
    check_options(cfg)
    output, device = Path(cfg.output), choose_device(cfg.device)
    writer = open_writer(output, per_position=cfg.pool == "none")
    try:
        model, report = load_pretrained(
            cfg.pretrained,
            revision=cfg.revision,
            format=cfg.format,
            **OmegaConf.to_container(cfg.format_options, resolve=True),  # type: ignore[arg-type]
        )
        data = open_data(cfg, model, report.format)
        out = Console()
        announce(cfg, model, data, device, out)
        if report.format != OURS:
            out.print(Text(str(report)))
        started = time.perf_counter()
        width = write(Embedder(model.to(device), cfg.pool, device, str(cfg.precision)), data, writer, cfg.part_rows, out)
        with writing(output):
            paths = writer.finish()
        if report.format != OURS:
            paths.append(output.with_name(f"{output.stem}.{KEY_REPORT}"))
            write_atomically(paths[-1], json.dumps(report.to_dict(), indent=2) + "\n")
    except BaseException:
        writer.abort()
        raise
    out.print(f"written  {' and '.join(map(str, paths))}  ({format_value(time.perf_counter() - started)} s)", highlight=False)
    return {"output": str(output), "rows": len(data.splits["predict"]), "width": width}


def check_options(cfg: DictConfig) -> None:
    """Raises ConfigError for an option of the verb's own that is of the wrong kind."""
    for name, known in (("pool", (*POOLS, "none")), ("precision", PRECISIONS)):
        if cfg[name] not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known[:-1])} or {known[-1]}, found {cfg[name]!r}")
    if not isinstance(cfg.part_rows, int) or isinstance(cfg.part_rows, bool) or cfg.part_rows < 1:
        raise ConfigError(f"part_rows must be at least 1, and a whole number, found {cfg.part_rows!r}")
    source, output = cfg.data.get("predict"), Path(cfg.output)
    if isinstance(source, str) and output.is_file() and Path(source).exists() and output.samefile(source):
        raise ConfigError(f"output={output} is the file that data.predict reads: choose another name")


# -- the data


def open_data(cfg: DictConfig, model: SequenceModel, format: str) -> "DomainData":
    """The domain's data module with the rows of `data.predict` read as the model wants them."""
    domain = find_domain(cfg, model, format)
    base = data_config(cfg, domain)
    cls: Any = get_class(base["_target_"])
    own = cls.options_of(model.config)
    given: Any = OmegaConf.to_container(cfg.data, resolve=True)
    known = [name for name in base if not name.startswith("_") and name not in ("train", "val", "test")]
    for name in given:
        if name not in known:
            raise ConfigError(f"domain={domain} has no option data.{name}{nearest(name, known)}")
    task, unset = str(model.config.get("task", "classification")), ["train", "val", "test", "predict"]
    if task in WINDOWED.get(domain, ()):
        task, unset = "classification", [*unset, *(name for name in WINDOW_OPTIONS if name in base)]
    options = {**base, **own, **dict.fromkeys(unset), **given}
    check_types("data", cls, options)
    data: DomainData = build(OmegaConf.create(options), task=task, seed=1)
    data.setup_predict({**model.config, "task": task})
    check_input(cfg, model, data, domain)
    return data


def check_input(cfg: DictConfig, model: SequenceModel, data: "DomainData", domain: str) -> None:
    """Raises ConfigError if the model would take the data's tokens for others, or for something else than tokens."""
    if model.config.get("domain", domain) != domain:
        raise ConfigError(f"domain={domain}, but {cfg.pretrained} is a model of the domain {model.config['domain']}")
    tokenizer, rows = getattr(data, "tokenizer", None), model.config["embedding"].get("vocab_size")
    least, most = (getattr(tokenizer, name, 0) for name in ("vocab_size", "padded_vocab_size"))
    if most and not (isinstance(rows, int) and least <= rows <= most):
        found = "no" if rows is None else f"{rows:,}"
        raise ConfigError(
            f"{cfg.pretrained} was trained on another input than domain={domain} gives: its embedding is of {found} tokens, "
            f"these data have {least}. Its features of them would mean nothing"
        )


def find_domain(cfg: DictConfig, model: SequenceModel, format: str) -> str:
    """The domain that the command names, or the model, or what was published in the checkpoint's format.

    Raises:
        ConfigError: if none is known.
    """
    published = {info.domain for info in list_pretrained() if info.format == format}
    found = cfg.domain_name or model.config.get("domain") or (published.pop() if len(published) == 1 else None)
    known = sorted(path.stem for path in (CONFIGS / "domain").glob("*.yaml"))
    if found not in known:
        what = "says no domain" if found is None else f"is of the domain {found!r}, which reads no files here"
        found_it = f"domain={found} is none" if cfg.domain_name else f"{cfg.pretrained} {what}"
        raise ConfigError(f"{found_it}: name one with domain=, of {', '.join(known)}")
    return str(found)


def data_config(cfg: DictConfig, domain: str) -> dict[str, Any]:
    """Data options of the run that the model is from, or the domain's defaults."""
    folder = Path(str(cfg.pretrained)).expanduser()
    if (folder / CONFIG).is_file() and (saved := read_config(folder)).get("domain") == domain:
        found: Any = OmegaConf.to_container(saved.data, resolve=True)
    else:
        found = OmegaConf.to_container(OmegaConf.load(CONFIGS / "domain" / f"{domain}.yaml").data)
    return found


def announce(cfg: DictConfig, model: SequenceModel, data: "DomainData", device: torch.device, out: Console) -> None:
    """Prints the model, and what was read, skipped and cropped."""
    # The head takes no part.
    parameters = sum(p.numel() for part in (model.embedding, model.backbone) for p in part.parameters())
    out.print(f"[bold]longseq embed[/] pretrained={cfg.pretrained} pool={cfg.pool}", highlight=False)
    out.print(f"  model   {model.config['backbone']['name']}, {parameters:,} parameters on {device}", highlight=False)
    out.print(f"  data    {len(data.splits['predict']):,} rows", highlight=False)
    for name, value in data.counts.items():
        out.print(f"  note    {name}: {format_value(value)}", highlight=False)


# -- the features


class Embedder:
    """Features of batches.

    Args:
        model: on its device.
        pool: one of `POOLS`, or `none`.
        device: of the model.
        precision: as Lightning names it.
    """

    def __init__(self, model: SequenceModel, pool: str, device: torch.device, precision: str) -> None:
        self.model, self.pool, self.device = model.eval(), pool, device
        dtype = autocast_dtype(precision)
        self.context: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    @torch.inference_mode()
    def __call__(self, batch: "Batch") -> list[np.ndarray]:
        """One array per row: (D,), or (L, D) with its real positions."""
        given = {name: batch[name].to(self.device) for name in ("inputs", "mask") if name in batch}
        with self.context:
            x_BLD, mask_BL = self.model.embedding(given["inputs"], given.get("mask"))
            y_BLD = self.model.backbone(x_BLD, mask_BL)
        views = [y_BLD.float()]
        if self.model.backbone.reverse_complement:
            first, second = views[0].chunk(2, dim=-1)
            views = [first, second.flip(-1)]
        if self.pool == "none":
            return self._positions(torch.stack(views).mean(0), mask_BL)
        pooled = torch.stack([pool_positions(view, mask_BL, self.pool) for view in views]).mean(0)
        return list(pooled.cpu().numpy())

    @staticmethod
    def _positions(y_BLD: Tensor, mask_BL: Tensor | None) -> list[np.ndarray]:
        rows = y_BLD.cpu().numpy()
        return list(rows) if mask_BL is None else [row[real] for row, real in zip(rows, mask_BL.cpu().numpy(), strict=True)]


def write(embedder: Embedder, data: "DomainData", writer: Any, part_rows: int, out: Console) -> int:
    """Computes and writes all parts; returns the width of a vector."""
    lengths, width = data.splits["predict"].lengths, 0
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("embed", total=len(lengths))
        for index in parts(lengths, part_rows, MOST_POSITIONS if embedder.pool == "none" else None):
            found: dict[int, np.ndarray] = {}
            for batch in batches(data, index):
                found |= dict(zip(batch["index"].tolist(), embedder(batch), strict=True))
                bar.advance(task, len(batch["index"]))
            rows = [found[i] for i in index.tolist()]
            with writing(writer.path):
                writer.add(pd.DataFrame(data.row_names("predict", index)), rows)
            width = rows[0].shape[-1]
    return width


def parts(lengths: np.ndarray, most_rows: int, most_positions: int | None) -> Iterator[np.ndarray]:
    """Row numbers in turn, as many at once as memory should hold: one row at least."""
    first = 0
    while first < len(lengths):
        n_rows = len(lengths[first : first + most_rows])
        if most_positions is not None:
            held = np.cumsum(lengths[first : first + n_rows])
            n_rows = max(1, int(np.searchsorted(held, most_positions, side="right")))
        yield np.arange(first, first + n_rows)
        first += n_rows


def batches(data: "DomainData", index: np.ndarray) -> Iterator["Batch"]:
    """Some rows in batches of similar length."""
    rows = data.splits["predict"]
    sampler = LengthBatches(rows.lengths[index], data.batch_size, shuffle=False, max_tokens=data.max_tokens)
    chosen = [[int(index[i]) for i in batch] for batch in sampler.batches()]
    loader = torch.utils.data.DataLoader(rows, batch_sampler=chosen, collate_fn=data.collate, num_workers=data.num_workers)
    yield from loader
