"""In-silico mutagenesis of a few test sequences: what every substitution of a base does to the model's answer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from longseq.checkpoint import load_model, write_atomically
from longseq.domains.dna.logo import LETTERS, mutagenesis_figure
from longseq.domains.dna.tokenizer import A_ID, NucleotideTokenizer, reverse_complement_batch
from longseq.domains.sections import RunFiles, Section
from longseq.model import SequenceModel

EXAMPLES, TABLE = "mutagenesis.json", "mutagenesis.tsv"
LONGEST, WIDEST, NARROWEST = 65_536, 200, 10
SECONDS = 6.0
BATCH = 48


def choose_examples(batches: Sequence[dict[str, np.ndarray]], most: int) -> list[dict[str, Any]]:
    """Test rows to look at: the most confident right answers of each class in turn, or the largest predicted values.

    Args:
        batches: What the test predicted, with `index`.
        most: How many rows.

    Returns:
        For each row its `index`, the number of the `output` that is explained, and `text`, what was said of it.
    """
    if not batches:
        return []
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    scores = {name: columns[name].astype(float) for name in columns if name.startswith(("p_", "predicted_"))}
    table = np.stack(list(scores.values()), 1)
    usable = np.ones(len(table), dtype=bool)
    if "prediction" in columns and "label" in columns:
        usable = columns["prediction"] == columns["label"]
    best = table.argmax(1)
    order = np.argsort(-np.where(usable, table.max(1), -np.inf), kind="stable")
    # Another class each time, as long as there is one.
    groups = {c: [i for i in order.tolist() if best[i] == c and usable[i]] for c in dict.fromkeys(best[order].tolist())}
    chosen = [rows[place] for place in range(most) for rows in groups.values() if place < len(rows)][:most]
    names = [name.removeprefix("p_").removeprefix("predicted_") for name in scores]
    found = []
    for i in chosen:
        text = f"{names[best[i]]}: {table[i, best[i]]:.3g}"
        found.append({"index": int(columns["index"][i]), "output": int(best[i]), "name": names[best[i]], "text": text})
    return found


def save_examples(folder: Path, rows: Any, names: Any, chosen: list[dict[str, Any]]) -> None:
    """Writes the chosen sequences into the run folder, where the report finds them.

    Args:
        folder: The run's.
        rows: The test rows.
        names: Gives the columns that identify rows, from their numbers.
        chosen: From `choose_examples`.
    """
    decode = NucleotideTokenizer().decode
    saved = []
    for example in chosen:
        ids = rows[example["index"]]["ids"]
        if len(ids) <= LONGEST:
            named = names("test", np.array([example["index"]]))
            # A window of a record has bases of its own; both count from 0 here.
            place = f":{named['start'][0]}-{named['end'][0]}" if "record" in named else ""
            saved.append({**example, "id": f"{named['id'][0]}{place}", "sequence": decode(ids)})
    if saved:
        write_atomically(folder / EXAMPLES, json.dumps(saved, indent=1) + "\n")


def score(model: SequenceModel, ids_BL: Tensor, output: int, both_strands: bool) -> Tensor:
    """What is explained, (B,): a class's log-odds, a label's logit, or a standardised value."""
    outputs = model(ids_BL).float()
    if both_strands:
        outputs = (outputs + model(reverse_complement_batch(ids_BL)).float()) / 2
    if model.config.get("task") != "classification":
        return outputs[:, output]
    log_p = outputs.log_softmax(-1)
    others = [i for i in range(outputs.shape[1]) if i != output]
    return log_p[:, output] - log_p[:, others].logsumexp(-1)


def important_window(model: SequenceModel, ids_L: Tensor, output: int, width: int) -> int:
    """Where the window begins whose bases have the largest gradient of the score by their embeddings."""
    if width >= len(ids_L):
        return 0
    with torch.enable_grad():
        x_BLD, mask_BL = model.embedding(ids_L[None], None)
        x_BLD = x_BLD.detach().requires_grad_(True)
        answer = model.head(model.backbone(x_BLD, mask_BL), mask_BL)[0, output]
        (gradient,) = torch.autograd.grad(answer, x_BLD)
    strength = gradient[0].norm(dim=-1).double().cumsum(0)
    sums = strength[width - 1 :] - torch.cat([strength.new_zeros(1), strength[:-width]])
    return int(sums.argmax())


@torch.inference_mode()
def mutate(
    model: SequenceModel, ids_L: Tensor, start: int, stop: int, output: int, both_strands: bool = False
) -> NDArray[np.float64]:
    """What replacing each base from `start` to `stop` by A, C, G and T changes in the score, (stop - start, 4).

    Cost: four forward passes of the sequence for each base, in batches.
    """
    changed = [(place, base) for place in range(start, stop) for base in range(4)]
    reference = float(score(model, ids_L[None], output, both_strands)[0])
    found = []
    for first in range(0, len(changed), BATCH):
        part = changed[first : first + BATCH]
        batch = ids_L.repeat(len(part), 1)
        for row, (place, base) in enumerate(part):
            batch[row, place] = A_ID + base
        found.append(score(model, batch, output, both_strands).double().cpu().numpy() - reference)
    changes = np.concatenate(found).reshape(stop - start, 4)
    # Rounding aside a base changes nothing by itself.
    for row, place in enumerate(range(start, stop)):
        base = int(ids_L[place]) - A_ID
        if 0 <= base < 4:
            changes[row, base] = 0.0
    return changes


def affordable(model: SequenceModel, ids_L: Tensor, output: int, both_strands: bool, seconds: float) -> int:
    """How many bases can be replaced in so many seconds, at most 200."""
    batch = ids_L.repeat(8, 1)
    with torch.inference_mode():
        score(model, batch, output, both_strands)
        started = time.perf_counter()
        score(model, batch, output, both_strands)
    return int(min(WIDEST, len(ids_L), seconds * 2 / max(time.perf_counter() - started, 1e-6)))


def mutagenesis_sections(run: RunFiles, seconds: float = SECONDS) -> list[Section]:
    """A logo and a map of substitutions for each sequence that the test has left; also written as a table.

    Args:
        run: The run's files.
        seconds: For all sequences together; slower models show fewer bases.
    """
    path = run.folder / EXAMPLES
    if not path.is_file():
        return []
    examples = json.loads(path.read_text(encoding="utf-8"))
    model = load_model(run.folder / "model", "cuda" if torch.cuda.is_available() else "cpu")
    both = bool((run.config.get("module") or {}).get("rc_average", False))
    sections, tables = [], []
    for example in examples:
        ids = torch.from_numpy(NucleotideTokenizer().encode(example["sequence"]).astype(np.int64))
        ids = ids.to(next(model.parameters()).device)
        width = affordable(model, ids, example["output"], both, seconds / len(examples))
        if width < min(NARROWEST, len(ids)):
            continue
        start = important_window(model, ids, example["output"], width)
        changes = mutate(model, ids, start, start + width, example["output"], both)
        letters = example["sequence"][start : start + width]
        sections.append(_section(example, letters, changes, start, len(ids), str(model.config.get("task"))))
        tables.append(_table(example, letters, changes, start))
    if tables:
        write_atomically(run.folder / TABLE, pd.concat(tables).to_csv(sep="\t", index=False, float_format="%.6g"))
    return sections


def _section(example: dict[str, Any], letters: str, changes: Any, start: int, length: int, task: str) -> Section:
    unit = {"classification": "log-odds", "multilabel": "logit"}.get(task, "standardised value")
    figure = mutagenesis_figure(letters, changes, start + 1, unit)
    where = "the whole sequence" if len(letters) == length else f"bases {start + 1:,} to {start + len(letters):,} of {length:,}"
    strongest = np.argsort(-np.abs(changes.sum(1)), kind="stable")[:5]
    named = ", ".join(f"{letters[i]}{start + i + 1}" for i in strongest.tolist())
    caption = (
        f"{example['text']}; {where}, where the gradient is largest. Above: what the three other bases would cost on average, "
        f"in {unit}. Below: every substitution, blue where it raises the score, red where it lowers it. All values: {TABLE}."
    )
    title = f"What each base of {example['id']} does to {example['name']}"
    return Section(title, figure=figure, caption=caption, alt=f"{title}; the strongest: {named}", wide=True)


def _table(example: dict[str, Any], letters: str, changes: Any, start: int) -> pd.DataFrame:
    frame = pd.DataFrame(changes, columns=[f"to_{letter}" for letter in LETTERS])
    head = {
        "id": example["id"],
        "output": example["name"],
        "position": np.arange(len(letters)) + start + 1,
        "base": list(letters),
    }
    return pd.concat([pd.DataFrame(head), frame], axis=1)
