"""From a model's answers to lines of a table: the part of predict.py that is its command."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row

# -- behind this line goes into predict.py


UNITS_OF_TOKENS = {"dna": "base", "audio": "sample", "vision": "dim"}
OUTPUTS = (".csv", ".npz")


def records(model: Model, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
    """Lines of the csv file for one row, as its task's predictions are written."""
    labels = model.labels
    if model.task == "classification":
        yield {**row.names, "prediction": labels[int(answer.argmax())], **named("p_", labels, answer)}
    elif model.task == "multilabel":
        yield {**row.names, **named("p_", labels, answer)}
    elif model.task == "regression":
        yield {**row.names, **named("predicted_", labels, answer)}
    elif model.task in ("frames", "base_labels"):
        place = "frame" if model.task == "frames" else "position"
        for i, frame in enumerate(answer):
            yield {**row.names, place: i, "prediction": labels[int(frame.argmax())], **named("p_", labels, frame)}
    elif model.task == "profile":
        for i, tracks in enumerate(answer):
            yield {**row.names, "bin": i, **named("predicted_", labels, tracks)}
    elif model.task == "lm":
        nats = surprise(row.inputs, answer)
        # Only some tokens count where the reader says so: N is no base.
        nats = nats if row.extra is None else nats[row.extra[1:]]
        unit = UNITS_OF_TOKENS.get(str(model.report["domain"]), "token")
        bits = float(nats.mean() / np.log(2)) if len(nats) else float("nan")
        yield {**row.names, "log_likelihood": -float(nats.sum()), f"bits_per_{unit}": bits}
    else:
        raise InputError(f"task={model.task} answers with arrays: give an --output that ends in .npz")


def named(prefix: str, labels: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """One column per label."""
    return {f"{prefix}{label}": value for label, value in zip(labels, values, strict=True)}


def surprise(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The negative log-likelihood, in nats, of each token but the first, after those before it."""
    before = logits[:-1].astype(np.float64)
    top = before.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(before - top).sum(1))
    return log_sum - before[np.arange(len(ids) - 1), ids[1:]]


def write(model: Model, domain: Any, rows: Sequence[Row], answers: Sequence[np.ndarray], output: str | None) -> None:
    """Writes a csv file, an npz file, or to the terminal."""
    if output and output.endswith(".npz"):
        ids = np.array([json.dumps(row.names, default=str) for row in rows])
        np.savez(output, rows=ids, **{f"row{i}": answer for i, answer in enumerate(answers)})  # type: ignore[arg-type]
        return
    lines = [line for row, answer in zip(rows, answers, strict=True) for line in domain.records(model, row, answer)]
    if not lines:
        raise InputError("there is nothing to predict in these files")
    file = open(output, "w", newline="", encoding="utf-8") if output else sys.stdout  # noqa: SIM115, PTH123
    try:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    finally:
        if output:
            file.close()


def main(domain_class: Any) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help=domain_class.FILES)
    parser.add_argument("--output", help=".csv or .npz; without it predictions are printed")
    parser.add_argument("--batch-size", type=int, default=32)
    domain_class.add_options(parser)
    options = parser.parse_args()
    try:
        check_options(options)
        model = Model(Path(__file__).resolve().parent)
        domain = domain_class(model, options)
        rows = [row for name in options.files for row in domain.rows(Path(name))]
        if not rows:
            raise InputError("there is nothing to predict in these files")
        if model.cropped:
            note = f"{model.cropped} of {len(rows)} inputs are longer than the {model.longest} that this export takes"
            print(f"predict.py: {note}: their middles were read", file=sys.stderr)
        write(model, domain, rows, model.answers(rows, options.batch_size, domain.pad, domain.stride), options.output)
    except BrokenPipeError:
        # Nobody reads on; what is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as problem:
        sys.exit(f"predict.py: {problem}")


def check_options(options: Any) -> None:
    """Says what is wrong with options that all domains have, before anything is read."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} must be 1 or more")
    if options.output and (Path(options.output).suffix not in OUTPUTS or not Path(options.output).parent.is_dir()):
        raise InputError(f"--output {options.output}: the name must end in {' or '.join(OUTPUTS)}, in a folder that there is")
