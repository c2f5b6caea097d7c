"""Predict new files with a trained model: longseq predict run=… data.predict=… output=….

Takes a run folder or a bare model folder and any file that the domain reads; labels are not needed. Ids, coordinates and
times stand beside the answers. The table is written part by part: a command that was interrupted, even killed, goes on where
it was when it is given again.
"""

import glob
import hashlib
import inspect
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longseq.domains.prediction import Predictions, RowPredictions
from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest_of
from longseq.pipelines.console import format_value
from longseq.pipelines.fit import quiet_lightning
from longseq.pipelines.prediction_files import PartialTable, check_place, table_format
from longseq.pipelines.trained import Trained

if TYPE_CHECKING:
    from longseq.domains.base import DomainData

# Options that decide how long sequences are read.
LONG = ("chunk", "window", "overlap", "resolution", "part_tokens")
# Options that do not change the rows.
NOT_COMPARED = ("output", "device", "restart", "hydra", "run", "model")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes the predictions of `cfg.data.predict`.

    Args:
        cfg: composed from configs/predict.yaml.

    Returns:
        `output`, the number of `parts`, and how many of them an earlier command had `resumed` from.
    """
    quiet_lightning()
    output = Path(cfg.output)
    # Before anything is read.
    table_format(output)
    check_place(output)
    check_options(cfg)
    trained = Trained(cfg)
    out = Console()
    predictions = make_predictions(trained, cfg, out)
    key = fingerprint(trained, cfg)
    table = PartialTable(output, key, len(predictions), restart=cfg.restart)
    resumed = table.done
    if resumed:
        out.print(f"going on behind {resumed} of {len(predictions)} parts of an interrupted command", highlight=False)
    started = time.perf_counter()
    write(predictions, table, out)
    seconds = time.perf_counter() - started
    out.print(f"written  {output}  ({format_value(seconds)} s on {trained.device})", highlight=False)
    return {"output": str(output), "parts": len(predictions), "resumed": resumed, "seconds": seconds}


def check_options(cfg: DictConfig) -> None:
    """Raises ConfigError for an option of the verb's own that is of the wrong kind."""
    for name in ("chunk", "window", "resolution", "part_rows", "part_tokens"):
        value = cfg[name]
        if value is None and name in ("window", "resolution"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be at least 1, and a whole number, found {value!r}")
    if not isinstance(cfg.overlap, (int, float)) or not 0 <= cfg.overlap < 1:
        raise ConfigError(f"overlap is a share of the window from 0 to below 1, found {cfg.overlap!r}")
    if not isinstance(cfg.restart, bool):
        raise ConfigError(f"restart must be true or false, found {cfg.restart!r}")


def make_predictions(trained: Trained, cfg: DictConfig, out: Console) -> Predictions:
    """The table of predictions, of which nothing is computed yet."""
    if cfg.mode is not None and cfg.mode != trained.task_name:
        own = own_mode(trained, cfg)
        for name, value in own.notes.items():
            out.print(f"  note    {name}: {format_value(value)}", highlight=False)
        return own
    data = trained.data(cfg.data)
    data.setup_predict(trained.config)
    module = trained.module(data)
    announce(trained, data, out)
    long = data.long_predictions(module, {name: cfg[name] for name in LONG})
    if long is not None:
        return long
    if cfg.resolution is not None:
        raise ConfigError(
            f"resolution cuts what language models answer along a sequence; this model's task is {module.task.name}"
        )
    return RowPredictions(module, data, cfg.part_rows)


def own_mode(trained: Trained, cfg: DictConfig) -> Predictions:
    """A domain's own way of predicting; the command's data options are its arguments."""
    function = trained.mode(str(cfg.mode))
    given: Any = OmegaConf.to_container(cfg.data, resolve=True)
    known = keyword_options(function)
    for name in given:
        if name not in known:
            raise ConfigError(f"task={cfg.mode} has no option data.{name}{nearest_of(name, known, 'Options')}")
    missing = [name for name, needed in known.items() if needed and name not in given]
    if missing:
        raise ConfigError(f"task={cfg.mode} needs {', '.join(f'data.{name}=' for name in missing)}")
    return function(trained.module(trained.data({})), **given)


def keyword_options(function: Any) -> dict[str, bool]:
    """A function's keyword arguments, and whether each must be given."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default is p.empty for p in found if p.kind is p.KEYWORD_ONLY}


def announce(trained: Trained, data: "DomainData", out: Console) -> None:
    """Prints the model, and what was read, skipped and cropped."""
    n_parameters = sum(p.numel() for p in trained.model.parameters())
    backbone = trained.config["backbone"]["name"]
    out.print(f"[bold]longseq predict[/] domain={trained.domain} task={trained.task_name} backbone={backbone}", highlight=False)
    out.print(f"  model   {n_parameters:,} parameters on {trained.device}", highlight=False)
    out.print(f"  data    {len(data.splits['predict']):,} rows", highlight=False)
    for name, value in data.counts.items():
        out.print(f"  note    {name}: {format_value(value)}", highlight=False)


def write(predictions: Predictions, table: PartialTable, out: Console) -> None:
    """Computes and writes the parts that are missing, with a progress bar."""
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TextColumn(predictions.unit), TimeRemainingColumn())
    sizes = list(predictions.sizes)
    with table.opened(), Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("predict", total=sum(sizes), completed=sum(sizes[: table.done]))
        for part in range(table.done, len(predictions)):
            table.add(predictions.table(part))
            bar.advance(task, sizes[part])
    table.finish()


# -- what decides the rows


def fingerprint(trained: Trained, cfg: DictConfig) -> dict[str, Any]:
    """All that decides the rows: the options, the model's weights, and the files' sizes and times."""
    options: Any = OmegaConf.to_container(cfg, resolve=True)
    data = options.pop("data")
    found = {name: value for name, value in options.items() if name not in NOT_COMPARED}
    found |= {f"data.{name}": value for name, value in data.items()}
    found["model"] = model_digest(trained.folder)
    found["files"] = digest(json.dumps({name: file_facts(value) for name, value in sorted(data.items())}))
    return found


def model_digest(folder: Path) -> str:
    """Of a model folder's contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def file_facts(value: Any) -> Any:
    """Sizes and times of whatever files a value names; None if it names none."""
    if isinstance(value, dict):
        return {name: file_facts(child) for name, child in value.items()}
    if isinstance(value, list):
        return [file_facts(child) for child in value]
    if not isinstance(value, str):
        return None
    path = Path(value).expanduser()
    paths = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207  absolute patterns
    files = [file for item in paths for file in (sorted(item.rglob("*")) if item.is_dir() else [item]) if file.is_file()]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def digest(text: str) -> str:
    """A short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
