"""Vision's own pictures in the report: the worst errors, what the model looked at, and masked cells filled in."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from longseq.checkpoint import load_model
from longseq.domains.plots import comparison
from longseq.domains.sections import RunFiles, Section, clip
from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.rows import MaskedRows, PixelRows
from longseq.errors import LongseqError
from longseq.model import SequenceModel

WORST, LOOKED_AT, FILLED = 24, 8, 6
# Small images are shown enlarged, large ones reduced, to about this side in pixels.
SIDE = 112


def figures(run: RunFiles) -> list[Section]:
    """The sections that a vision run has by its task; the test images are read again from where they were."""
    sections = bits_per_dimension(run)
    if str(run.metrics.get("task")) == "lm":
        return sections
    try:
        data = read_again(run)
        model = load_model(run.folder / "model")
    except (LongseqError, OSError) as error:
        note = f'<p class="note">The test images could not be read again: {escape(str(error))}</p>'
        return [*sections, Section("Pictures", html=note, wide=True)]
    rows = data.rows("test")
    if isinstance(rows, MaskedRows):
        return [*sections, reconstructions(rows, model)]
    if run.predictions is None or "prediction" not in run.predictions or "label" not in run.predictions:
        return sections
    return [*sections, *worst_errors(rows, run.predictions), *saliency(rows, run.predictions, model)]


def read_again(run: RunFiles) -> VisionData:
    """The run's data module with its files read."""
    options = {str(key): value for key, value in (run.config.get("data") or {}).items() if key != "_target_"}
    data = VisionData(task=str(run.metrics["task"]), seed=int(run.config.get("seed", 1)), **options)
    data.setup("test")
    return data


def bits_per_dimension(run: RunFiles) -> list[Section]:
    """A pixel model's bits per dimension beside the baselines."""
    caption = "What one value of one pixel costs on average; 8 bits is no knowledge of 256 levels."
    found = comparison(run, "bits_per_dim") if "bits_per_dim" in (run.metrics.get("test") or {}) else []
    return [Section("Bits per dimension", figure=section.figure, caption=caption, alt=section.alt) for section in found]


# -- errors


def worst_errors(rows: PixelRows, predictions: pd.DataFrame) -> list[Section]:
    """The wrong test images of which the model was most confident, with what it said."""
    order = by_confidence(predictions, right=False)[:WORST]
    if not len(order):
        return [Section("Worst errors", html="<p>None: every test row is right.</p>")]
    pictures = []
    for i in order.tolist():
        row = predictions.iloc[i]
        said = str(row["prediction"])
        text = f"{row['label']} → {said} ({float(row[f'p_{said}']):.0%})"
        pictures.append(picture(show(rows.pixels(i)), text, title=str(row.iloc[0])))
    caption = "Label → prediction (its probability), the most confident mistakes first. The tooltip names the file."
    return [Section("Worst errors", html=gallery(pictures), caption=caption, wide=True)]


def by_confidence(predictions: pd.DataFrame, *, right: bool) -> np.ndarray:
    """Numbers of the right, or of the wrong rows, the most confident first."""
    guess, label = predictions["prediction"].astype(str), predictions["label"].astype(str)
    confidence = np.array([float(predictions[f"p_{name}"].iloc[i]) for i, name in enumerate(guess)])
    chosen = np.flatnonzero(np.asarray(guess == label) == right)
    return chosen[np.argsort(-confidence[chosen], kind="stable")]


# -- saliency


def saliency(rows: PixelRows, predictions: pd.DataFrame, model: SequenceModel) -> list[Section]:
    """Where a change of the input would change the predicted class's score most: mistakes first, then the surest rows."""
    wrong, right = by_confidence(predictions, right=False), by_confidence(predictions, right=True)
    half = LOOKED_AT // 2
    index = [*wrong[:half].tolist(), *right[: LOOKED_AT - min(half, len(wrong))].tolist()]
    pictures = []
    for i in index:
        pixels = rows.pixels(i)
        strength = input_gradient(model, torch.from_numpy(pixels if rows.tokenizer.kind == "tubelet" else pixels[0]))
        row = predictions.iloc[i]
        text = f"{row['label']} → {row['prediction']}"
        pictures.append(picture(np.concatenate([show(pixels), heat(strength)], axis=1), text, title=str(row.iloc[0])))
    caption = (
        "Right half: the gradient of the predicted class's score by each pixel, absolute and summed over channels (of videos, "
        "the mean over frames); bright pixels matter. It tells what the model looks at, not that it looks at the right thing."
    )
    return [Section("What the model looks at", html=gallery(pictures), caption=caption, wide=True)]


def input_gradient(model: SequenceModel, pixels: Tensor) -> np.ndarray:
    """(H, W) between 0 and 1: the absolute gradient of the largest output by the pixels (C, H, W) or (T, C, H, W)."""
    inputs = (pixels.float() / 255).unsqueeze(0).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(model(inputs).max(), inputs)
    strength = gradient[0].abs().sum(-3)
    strength = strength.mean(0) if strength.ndim == 3 else strength
    # A single extreme pixel would leave the rest black.
    top = float(strength.quantile(0.995)) or 1.0
    return (strength / top).clamp(0, 1).numpy()


# -- masked cells


def reconstructions(rows: MaskedRows, model: SequenceModel) -> Section:
    """Test images beside what was shown of them and what the model filled in."""
    mean, std = float(model.config.get("mean", 0.0)), float(model.config.get("std", 1.0))
    pictures = []
    for i in range(min(FILLED, len(rows))):
        row = rows[i]
        with torch.no_grad():
            guess = (model(torch.from_numpy(row["inputs"])[None])[0] * std + mean).clamp(0, 1).numpy()
        hidden = row["hidden"][:, None]
        parts = [row["targets"], np.where(hidden, 0.5, row["targets"]), np.where(hidden, guess, row["targets"])]
        clips = [rows.tokenizer.assemble(part.astype(np.float32), rows.channels) for part in parts]
        pictures.append(picture(np.concatenate([show(np.rint(c * 255).astype(np.uint8)) for c in clips], axis=1), ""))
    caption = "Each: the image, what the model was shown, and the hidden cells as it fills them in."
    return Section("Hidden cells filled in", html=gallery(pictures), caption=caption, wide=True)


# -- images in the page


def show(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of a clip (T, C, H, W); of videos the first, the middle and the last frame side by side."""
    frames = pixels if len(pixels) == 1 else pixels[[0, len(pixels) // 2, len(pixels) - 1]]
    rgb = frames.repeat(3, axis=1) if frames.shape[1] == 1 else frames
    return np.concatenate(list(np.moveaxis(rgb, 1, -1)), axis=1)


def heat(strength: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of values between 0 and 1, from black over red to white."""
    return (colour_table()[np.rint(strength * 255).astype(np.int64)] * 255).astype(np.uint8)


@cache
def colour_table() -> np.ndarray:
    """256 colours (256, 3)."""
    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256))[:, :3])


def picture(pixels: np.ndarray, text: str, *, title: str = "") -> str:
    """An image with its caption as HTML; the image is part of the page."""
    image = Image.fromarray(pixels)
    if image.height > 2 * SIDE:
        image = image.resize((max(1, image.width * SIDE // image.height), SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"height:{SIDE}px;image-rendering:pixelated"
    label = escape(f"{title}: {text}" if text else title or "image", quote=True)
    shown = f"<figcaption><small>{escape(clip(text, 40))}</small></figcaption>" if text else ""
    shown = f'<img src="data:image/png;base64,{data}" alt="{label}" title="{label}" style="{style}">{shown}'
    return f'<figure style="margin:0">{shown}</figure>'


def gallery(pictures: Sequence[Any]) -> str:
    """Pictures in rows that break where the page ends."""
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(pictures)}</div>'
