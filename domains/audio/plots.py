"""Audio's own pictures in the report: sounds to play beside their waveform and log-mel picture, DET curves, transcripts."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from matplotlib.figure import Figure

from longseq.domains.audio.heard_frames import FRAMES
from longseq.domains.audio.sounds import GENERATED, INDEX, WORST
from longseq.domains.classification_plots import class_scores
from longseq.domains.plots import MUTED, SERIES, STYLE, comparison, new_figure, styled, thin, to_svg
from longseq.domains.sections import Html, RunFiles, Section, table
from longseq.embeddings_audio import LogMelEmbedding

UNIFORM_BITS = 8.0
MOST_TEXTS = 15


def figures(run: RunFiles) -> list[Section]:
    """The sections that an audio run has by its task, its predictions and the sounds it has left."""
    drawn = (bits_per_sample, det_curve, transcripts, frame_confusions, worst_clips, generated_clips)
    return [section for draw in drawn for section in draw(run)]


def bits_per_sample(run: RunFiles) -> list[Section]:
    """A language model's bits per sample beside the baselines and the 8 bits of equally likely levels."""
    if "bits_per_sample" not in run.metrics.get("test", {}):
        return []
    drawn = comparison(run, "bits_per_sample", reference=("256 equal levels, 8 bits", UNIFORM_BITS))
    caption = "What one sample of mu-law sound costs on average, the first of each window excepted."
    return [Section("Bits per sample", figure=section.figure, caption=caption, alt=section.alt) for section in drawn]


# -- detection


def det_curve(run: RunFiles, most: int = len(SERIES)) -> list[Section]:
    """False alarms against misses on normal-deviate axes: of the second of two classes, or of each class against the rest."""
    frame = run.predictions
    if frame is None or not {"prediction", "label"} <= set(frame) or not any(str(name).startswith("p_") for name in frame):
        return []
    scores = class_scores(frame)
    if scores is None:
        return []
    indices = [1] if len(scores.classes) == 2 else list(range(len(scores.classes)))
    pairs = {scores.classes[i]: (scores.truth == i, scores.probabilities[:, i]) for i in indices}
    drawn = {name: pair for name, pair in list(pairs.items())[:most] if 0 < pair[0].sum() < len(pair[0])}
    return [_det(drawn)] if drawn else []


def error_rates(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """False-alarm and miss rates at every threshold, and where they are equal.

    Args:
        truth: (N,) bool.
        scores: (N,), larger for targets.
    """
    from sklearn.metrics import roc_curve

    alarms, hits, _ = roc_curve(truth, scores, drop_intermediate=False)
    misses = 1.0 - hits
    place = int(np.argmin(np.abs(alarms - misses)))
    return alarms, misses, float((alarms[place] + misses[place]) / 2)


@styled(STYLE)
def _det(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Section:
    from scipy.stats import norm

    figure, ax = new_figure()
    ticks = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6])
    rates = {}
    for name, (truth, score) in drawn.items():
        alarms, misses, rates[name] = error_rates(truth, score)
        # Rates of 0 and 1 lie at infinity.
        x, y = (norm.ppf(np.clip(thin(values, 400), 0.005, 0.995)) for values in (alarms, misses))
        ax.plot(x, y, label=f"{name[:24]} {rates[name]:.3f}")
    ends = norm.ppf([0.005, 0.7])
    ax.plot(ends, ends, color=MUTED, linestyle=":", linewidth=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(norm.ppf(ticks), [f"{tick:.0%}" for tick in ticks])
    ax.set(xlim=ends, ylim=ends, xlabel="false alarms", ylabel="misses")
    ax.legend(title="EER", title_fontsize=8)
    text = ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items())
    caption = (
        "Detection error trade-off: nearer to the lower left is better; the equal error rate (EER) is where the dots are met."
    )
    return Section("DET", figure=figure, caption=caption, alt=f"DET curves; equal error rates: {text}")


# -- transcripts


def transcripts(run: RunFiles) -> list[Section]:
    """The transcripts of the most errors, and what kinds of errors were made."""
    frame = run.predictions
    if frame is None or "cer" not in (run.metrics.get("test") or {}) or "prediction" not in frame:
        return []
    said = frame["prediction"].fillna("").astype(str).tolist()
    true = frame["label"].fillna("").astype(str).tolist()
    kinds = np.array([edit_kinds(list(s), list(t)) for s, t in zip(said, true, strict=True)])
    order = np.argsort(-kinds.sum(1), kind="stable")[:MOST_TEXTS]
    rows = [
        [str(frame["id"].iloc[i]) if "id" in frame else int(i), true[i], said[i], int(kinds[i].sum())]
        for i in order
        if kinds[i].sum()
    ]
    html = (
        table(["clip", "transcript", "heard", "errors"], rows, label="transcripts with most errors")
        if rows
        else "<p>None has errors.</p>"
    )
    total = max(1, sum(map(len, true)))
    words = ", ".join(
        f"{int(n)} {name} ({n / total:.1%})"
        for name, n in zip(("substituted", "inserted", "missed"), kinds.sum(0), strict=True)
    )
    return [Section("Transcripts with most errors", html=html, caption=f"Of {total} characters: {words}.", wide=True)]


def edit_kinds(said: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
    """Substitutions, insertions and deletions of a shortest way from `true` to `said`."""
    costs = np.zeros((len(true) + 1, len(said) + 1), dtype=np.int64)
    costs[:, 0], costs[0] = np.arange(len(true) + 1), np.arange(len(said) + 1)
    for i, a in enumerate(true, start=1):
        for j, b in enumerate(said, start=1):
            costs[i, j] = min(costs[i - 1, j - 1] + (a != b), costs[i, j - 1] + 1, costs[i - 1, j] + 1)
    i, j, found = len(true), len(said), [0, 0, 0]
    while i or j:
        if i and j and costs[i, j] == costs[i - 1, j - 1] + (true[i - 1] != said[j - 1]):
            found[0] += int(true[i - 1] != said[j - 1])
            i, j = i - 1, j - 1
        elif j and costs[i, j] == costs[i, j - 1] + 1:
            found[1], j = found[1] + 1, j - 1
        else:
            found[2], i = found[2] + 1, i - 1
    return found[0], found[1], found[2]


# -- frames


def frame_confusions(run: RunFiles) -> list[Section]:
    """What was heard at the frames of each label."""
    path = run.folder / FRAMES
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = np.array(found["counts"])
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    rows = [[name, *(f"{share:.1%}" for share in shares[i]), int(counts[i].sum())] for i, name in enumerate(found["labels"])]
    html = table(["true \u2193 heard \u2192", *found["labels"], "frames"], rows, label="confusion matrix of frames")
    right = f"{int(np.trace(counts)):,} of {int(counts.sum()):,} frames of the test clips are right."
    caption = f"{right} Shares are of all frames with the same true label."
    return [Section("Confusion of frames", html=html, caption=caption, wide=len(rows) > 4)]


# -- sounds


def worst_clips(run: RunFiles) -> list[Section]:
    """The test clips that went worst, to hear and to see."""
    index = run.folder / WORST / INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    blocks = [_clip_block(run.folder / WORST / entry["file"], _words(entry)) for entry in entries]
    caption = "Waveform and log-mel energies of the test clips with the largest errors, at most three seconds of each."
    return [Section("Worst clips", html="".join(blocks), caption=caption, wide=True)]


def generated_clips(run: RunFiles) -> list[Section]:
    """What a language model makes up."""
    files = sorted((run.folder / GENERATED).glob("*.wav"))
    if not files:
        return []
    blocks = [_clip_block(file, escape(f"{GENERATED}/{file.name}")) for file in files]
    return [
        Section("Generated clips", html="".join(blocks), caption="Drawn sample by sample from the trained model.", wide=True)
    ]


def _words(entry: Mapping[str, Any]) -> str:
    return f"<b>{escape(entry['id'])}</b>: {escape(entry['true'])} &rarr; {escape(entry['said'])} (error {entry['error']:.3g})"


def _clip_block(path: Path, words: str) -> Html:
    samples, rate = sf.read(str(path), dtype="float32")
    picture = to_svg(_sound_picture(samples, int(rate)), f"waveform and log-mel energies of {path.name}")
    sound = base64.b64encode(path.read_bytes()).decode()
    player = f'<audio controls preload="none" src="data:audio/wav;base64,{sound}"></audio>'
    return Html(f"<figure><figcaption>{words}</figcaption>{player}{picture}</figure>")


@styled(STYLE)
def _sound_picture(samples: np.ndarray, rate_hz: int) -> Figure:
    figure = Figure(figsize=(5.0, 2.4), layout="constrained")
    wave, mel = figure.subplots(2, 1, sharex=True)
    seconds = len(samples) / rate_hz
    low, high = envelope(samples)
    time = (np.arange(len(low)) + 0.5) * seconds / len(low)
    wave.fill_between(time, low, high, color=SERIES[0], linewidth=0.5)
    wave.set(ylim=(-1.02, 1.02), yticks=[-1, 0, 1])
    mel.imshow(
        log_mel(samples, rate_hz).T, origin="lower", aspect="auto", extent=(0, seconds, 0, 48), cmap="magma", rasterized=True
    )
    mel.set(xlabel="seconds", ylabel="mel band", yticks=[0, 48])
    mel.grid(visible=False)
    return figure


def envelope(samples: np.ndarray, n_bins: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest sample of each of at most so many stretches."""
    parts = np.array_split(samples, max(1, min(n_bins, len(samples))))
    return np.array([part.min() for part in parts]), np.array([part.max() for part in parts])


def log_mel(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """(frames, 48) log energies, at most 300 frames."""
    hop_s = max(0.01, len(samples) / rate_hz / 300)
    front = LogMelEmbedding(1, sample_rate_hz=rate_hz, n_mels=48, window_s=max(0.025, hop_s), hop_s=hop_s, f_min=64.0)
    with torch.no_grad():
        return front.features(torch.from_numpy(samples).unsqueeze(0))[0].numpy()
