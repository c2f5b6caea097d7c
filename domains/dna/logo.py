"""Sequence logos: letters drawn as shapes, so that a page shows them alike whatever fonts it has."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from longseq.domains.plots import MUTED, SERIES, STYLE, styled

LETTERS = "ACGT"
# The field's colours, as near as the page's own come: A green, C blue, G orange, T red.
COLOURS = dict(zip(LETTERS, (SERIES[2], SERIES[0], SERIES[1], SERIES[4]), strict=True)) | {"N": MUTED}


@cache
def letter_path(letter: str) -> Path:
    """A letter's outline, filling the unit square."""
    # DejaVu Sans comes with matplotlib, so the shape is the same everywhere.
    outline = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = outline.get_extents()
    fit = Affine2D().translate(-box.x0, -box.y0).scale(1 / max(box.width, 1e-6), 1 / max(box.height, 1e-6))
    return fit.transform_path(outline)


def draw_letters(ax: Axes, letters: str, heights: NDArray[np.float64], first: int = 0) -> None:
    """One letter at each place, as high as its value; negative ones hang below the axis, upside down.

    Args:
        ax: Its limits are set.
        letters: The sequence.
        heights: A value for each letter, (L,).
        first: The place of the first letter on the x axis.
    """
    for i, (letter, height) in enumerate(zip(letters, heights, strict=True)):
        if abs(height) < 1e-9:
            continue
        place = Affine2D().scale(0.92, float(height)).translate(first + i - 0.46, 0)
        shape = place.transform_path(letter_path(letter))
        ax.add_patch(PathPatch(shape, facecolor=COLOURS.get(letter, MUTED), linewidth=0))
    reach = float(np.abs(heights).max()) if len(heights) else 0.0
    low, high = min(0.0, float(heights.min(initial=0))), max(0.0, float(heights.max(initial=0)))
    ax.set_xlim(first - 0.6, first + len(letters) - 0.4)
    ax.set_ylim(low - 0.05 * (reach or 1), high + 0.05 * (reach or 1))
    ax.axhline(0, color=MUTED, linewidth=0.6)


@styled(STYLE)
def mutagenesis_figure(letters: str, changes: NDArray[np.float64], first: int, ylabel: str) -> Figure:
    """A logo of how much each base matters over a map of what every substitution does.

    Args:
        letters: The sequence's bases.
        changes: What a base's replacement by A, C, G and T changes in the score, (L, 4); 0 where that base stands.
        first: Place of the first base in its sequence, from 1.
        ylabel: The score, in words.
    """
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # A base matters as much as its replacements cost.
    draw_letters(top, letters, -changes.sum(1) / 3, first)
    top.set_ylabel(ylabel)
    top.grid(visible=False)
    reach = float(np.abs(changes).max()) or 1.0
    places = np.arange(len(letters)) + first
    for row in range(len(LETTERS)):
        for sign, colour in ((1, SERIES[0]), (-1, SERIES[4])):
            strength = np.clip(sign * changes[:, row] / reach, 0, 1)
            for place, value in zip(places[strength > 0.02], strength[strength > 0.02], strict=True):
                below.add_patch(_cell(place, 3 - row, float(value), colour))
    below.set_yticks(range(4), LETTERS[::-1])
    below.set_ylim(-0.6, 3.6)
    below.grid(visible=False)
    below.set_xlabel("base of the sequence")
    below.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def _cell(x: int, y: int, strength: float, colour: str) -> PathPatch:
    side = Affine2D().scale(0.92, 0.86 * strength).translate(x - 0.46, y - 0.43 * strength)
    return PathPatch(side.transform_path(Path.unit_rectangle()), facecolor=colour, linewidth=0)
