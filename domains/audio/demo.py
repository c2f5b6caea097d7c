"""Seeded synthetic sounds whose tasks need order in time, for a first run without any files and for tests.

Classes: pairs of short tones in one order or the other, anywhere in the clip and under noise; averages over time do not tell.
Transcripts: a tone for each letter. Tags: which of four sounds are there. Frames: where the tones are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.audio.clips import Clips

RATE_HZ = 4000
CLASSES = ("low-high", "high-low")
TONES_HZ = (500.0, 900.0)
LETTERS = {"a": 400.0, "b": 700.0, "c": 1100.0, "d": 1600.0}
DESCRIPTIONS = {
    "classification": "pairs of short tones under noise at random places; their order, not their spectrum, decides the class",
    "multilabel": "up to four different tones in any order under noise; a tag for each",
    "regression": "a tone of random pitch under noise; the target is its frequency in kHz",
    "ctc": "a tone for each letter of a random transcript, under noise",
    "frames": "tones at random places under noise; a label for every frame",
    "lm": "a melody of decaying tones",
}


def tone(frequency_hz: float, seconds: float, phase: float) -> np.ndarray:
    """A tone with soft beginning and end, float32, of peak 1."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    envelope = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.01)
    return (envelope * np.sin(2 * np.pi * frequency_hz * t + phase)).astype(np.float32)


def make_demo(task: str, n_train: int, *, snr_db: float = 6.0, seed: int = 1) -> dict[str, Clips]:
    """Clips in memory for train, val and test; the latter two hold a quarter of train's number each.

    Args:
        task: of `DESCRIPTIONS`.
        n_train: training clips.
        snr_db: of the tones to the noise.
        seed: the same seed gives the same clips.
    """
    rng = np.random.default_rng((seed, sorted(DESCRIPTIONS).index(task)))
    make = {
        "classification": two_tones,
        "multilabel": tagged,
        "regression": pitched,
        "ctc": spelled,
        "frames": placed,
        "lm": melody,
    }[task]
    parts = {}
    for name, rows in (("train", n_train), ("val", max(32, n_train // 4)), ("test", max(32, n_train // 4))):
        made = [make(i, rng) for i in range(rows)]
        waves = [mix_noise(wave, snr_db, rng) if task != "lm" else wave for wave, _ in made]
        parts[name] = in_memory(waves, [facts for _, facts in made], name)
    return parts


def in_memory(waves: list[np.ndarray], facts: list[dict[str, Any]], part: str) -> Clips:
    """A table of clips that have no files."""
    frame = pd.DataFrame(facts)
    ids = [f"{part}-{i}" for i in range(len(waves))]
    frame = frame.assign(path=[Path(i) for i in ids], where=ids, id=ids, start_s=np.nan, duration_s=np.nan)
    n = np.array([len(wave) for wave in waves], dtype=np.int64)
    return Clips(frame, np.full(len(n), RATE_HZ), np.zeros_like(n), n, waves)


def mix_noise(wave: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """White noise at a ratio to a tone of full amplitude, whatever share of the clip is silent; peaks below 1."""
    noise = rng.standard_normal(len(wave)) * np.sqrt(0.5 / 10 ** (snr_db / 10))
    return (0.2 * (wave + noise)).astype(np.float32)


def two_tones(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """Four pairs of short tones with pauses of any length, each pair in the order that the class says."""
    label = i % len(CLASSES)
    wave = np.zeros(RATE_HZ, dtype=np.float32)
    pair_s, n_pairs = 0.04, 4
    slack = rng.dirichlet(np.ones(n_pairs + 1)) * (1.0 - n_pairs * (pair_s + 0.1))
    for k in range(n_pairs):
        start = round(RATE_HZ * (slack[: k + 1].sum() + k * (pair_s + 0.1)))
        for frequency in TONES_HZ if label == 0 else TONES_HZ[::-1]:
            piece = tone(frequency * rng.uniform(0.95, 1.05), pair_s / 2, rng.uniform(0, 2 * np.pi))
            wave[start : start + len(piece)] = piece
            start += len(piece)
    return wave, {"label": CLASSES[label]}


def tagged(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """A random subset of the letters' tones, in any order."""
    del i
    letters = [letter for letter in LETTERS if rng.random() < 0.5]
    wave = np.concatenate(
        [sound(letter, rng) for letter in rng.permutation(letters)] or [np.zeros(RATE_HZ // 5, dtype=np.float32)]
    )
    return wave, {"label": ";".join(letters)}


def pitched(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """One tone."""
    del i
    frequency = rng.uniform(300, 1800)
    return tone(frequency, 0.4, rng.uniform(0, 2 * np.pi)), {"label": frequency / 1000}


def sound(letter: str, rng: np.random.Generator) -> np.ndarray:
    """A letter's tone and a short pause."""
    return np.concatenate(
        [tone(LETTERS[letter], 0.1, rng.uniform(0, 2 * np.pi)), np.zeros(int(rng.integers(80, 200)), dtype=np.float32)]
    )


def spelled(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """Three to six letters."""
    del i
    text = "".join(rng.choice(list(LETTERS), int(rng.integers(3, 7))))
    return np.concatenate([sound(letter, rng) for letter in text]), {"text": text}


def placed(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """Two tones with pauses, and their onsets and offsets."""
    del i
    wave, events, place = np.zeros(RATE_HZ, dtype=np.float32), [], 0
    for letter in rng.choice(list(LETTERS), 2):
        place += int(rng.integers(100, 700))
        piece = tone(LETTERS[letter], rng.uniform(0.1, 0.3), 0.0)[: len(wave) - place]
        wave[place : place + len(piece)] = piece
        events.append((place / RATE_HZ, (place + len(piece)) / RATE_HZ, str(letter)))
        place += len(piece)
    return wave, {"events": events}


def melody(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """Decaying tones of a scale, without noise."""
    del i
    steps = rng.choice([0, 2, 4, 7, 9, 12], 4)
    t = np.arange(RATE_HZ // 4) / RATE_HZ
    pieces = [0.6 * np.exp(-6 * t) * np.sin(2 * np.pi * 220 * 2 ** (step / 12) * t) for step in steps]
    return np.concatenate(pieces).astype(np.float32), {}
