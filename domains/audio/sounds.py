"""Sounds that a run leaves for its report: the clips that went worst, and what a language model makes up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longseq import sampling
from longseq.domains.audio.files import resample, write_wav
from longseq.domains.audio.tokenizer import LEVELS, SILENCE, mulaw_decode
from longseq.model import SequenceModel

if TYPE_CHECKING:
    from longseq.domains.audio.datamodule import AudioData

GENERATED, WORST = "generated", "worst_clips"
INDEX = "index.json"
# The report embeds the sounds, so they are short and of a moderate rate.
MOST_SECONDS, MOST_HZ = 3.0, 16000


def generate(
    model: SequenceModel, n_clips: int, n_samples: int, *, temperature: float = 1.0, seed: int = 0, start: int = SILENCE
) -> np.ndarray:
    """Mu-law levels drawn one after the other, each given all before it.

    Args:
        model: a language model over 256 levels whose backbone can step.
        n_clips: rows that run side by side.
        n_samples: of each.
        temperature: the logits are divided by it.
        seed: of the draws.
        start: the level before the first.

    Returns:
        uint8 (n_clips, n_samples).

    Cost: n_samples steps after each other, each of the model's cost for one position.
    """
    start_B1 = torch.full((n_clips, 1), start)
    levels_BT = sampling.generate(model, start_B1, n_samples, temperature=temperature, seed=seed, allowed=range(LEVELS))
    return levels_BT.to(torch.uint8).numpy()


def save_generated(
    folder: Path, model: SequenceModel, n_clips: int, n_samples: int, rate_hz: int, *, temperature: float
) -> None:
    """Writes generated/clip_1.wav and so on; nothing if they are there or the backbone cannot step."""
    if (folder / GENERATED).exists() or not model.backbone.can_step or model.backbone.state_grows:
        return
    training = model.training
    levels = generate(model.eval(), n_clips, n_samples, temperature=temperature)
    model.train(training)
    for i, clip in enumerate(levels, start=1):
        write_wav(folder / GENERATED / f"clip_{i}.wav", mulaw_decode(clip), rate_hz)


def save_worst(folder: Path, data: AudioData, batches: Sequence[dict[str, np.ndarray]], task: str, most: int) -> None:
    """Writes the test clips of the largest errors to worst_clips/, with an index of what was said and what was right."""
    if (folder / WORST).exists():
        return
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    errors, words = score_rows(columns, task)
    order = [int(i) for i in np.argsort(-errors, kind="stable")[:most] if errors[i] > 0]
    entries = []
    for rank, i in enumerate(order, start=1):
        row = int(columns["index"][i])
        name = save_clip(folder, data, row, rank)
        entries.append(
            {"file": name, "id": str(data.clips["test"].frame["id"].iloc[row]), "error": float(errors[i]), **words(i)}
        )
    if entries:
        (folder / WORST / INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def save_clip(folder: Path, data: AudioData, row: int, rank: int) -> str:
    """Writes the beginning of a test clip to worst_clips/, and returns the file's name."""
    samples = data.rows("test").read(row).samples[: round(MOST_SECONDS * data.sample_rate_hz)]
    rate = min(data.sample_rate_hz, MOST_HZ)
    name = f"clip_{rank}.wav"
    peak = max(float(np.abs(samples).max(initial=0.0)), 1e-6)
    write_wav(folder / WORST / name, resample(samples, data.sample_rate_hz, rate) * min(1.0, 0.9 / peak), rate)
    return name


def score_rows(columns: dict[str, np.ndarray], task: str) -> tuple[np.ndarray, Any]:
    """How wrong each row is, 0 for right, and a function that says in words what was true and what was said."""
    if task == "ctc" or task == "classification":
        true, said = columns["label"], columns["prediction"]
        if task == "classification":
            chances = np.stack([values for name, values in columns.items() if name.startswith("p_")], 1)
            errors = np.where(true == said, 0.0, chances.max(1))
        else:
            from torchmetrics.functional.text import char_error_rate

            errors = np.array(
                [
                    float(char_error_rate(str(s), str(t))) if len(str(t)) else float(len(str(s)) > 0)
                    for s, t in zip(said, true, strict=True)
                ]
            )
        return errors, lambda i: {"true": str(true[i]), "said": str(said[i])}
    if task == "regression":
        names = [name.removeprefix("predicted_") for name in columns if name.startswith("predicted_")]
        errors = sum(np.abs(columns[f"predicted_{n}"] - columns[n]) / (np.std(columns[n]) + 1e-9) for n in names)
        return np.asarray(errors), lambda i: {
            "true": ", ".join(f"{columns[n][i]:.4g}" for n in names),
            "said": ", ".join(f"{columns[f'predicted_{n}'][i]:.4g}" for n in names),
        }
    names = [name[2:] for name in columns if name.startswith("p_")]
    truth = np.stack([columns[n] for n in names], 1)
    chances = np.stack([columns[f"p_{n}"] for n in names], 1)

    def tags(flags: np.ndarray) -> str:
        return ", ".join(n for n, flag in zip(names, flags, strict=True) if flag) or "none"

    wrong = (chances > 0.5) != (truth > 0.5)
    errors = np.where(wrong, np.abs(chances - truth), 0.0).sum(1)
    return errors, lambda i: {"true": tags(truth[i] > 0.5), "said": tags(chances[i] > 0.5)}
