"""What all plots share: colours, panels, interval bars and saving.

Only matplotlib's own objects are used: pyplot's global state belongs to the caller.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from textrl_env.utils.files import new_path

from .prompt_pictures import png_uri

# Okabe and Ito's palette keeps apart under every common colour blindness; markers and line styles do so in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d")
STYLES = ("-", "--", ":", "-.")
GRID = "#dddddd"
FONT = 11
WIDTH = 5.8  # inches: narrow, so that the letters stay readable when a phone shrinks the picture to its screen
_DPI = 160

Values = np.ndarray
Estimate = tuple[float, float, float]  # a value and the ends of its 95% interval


def look(index: int) -> dict[str, Any]:
    """Return colour, line style and marker of a line by its place in the legend."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)], "marker": MARKERS[index % len(MARKERS)]}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure; the size is in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panel_grid(number: int, columns: int, width: float, height: float, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with `number` panels, at most `columns` in a row, with shared axes or not; the size is a panel's, in inches."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(height * rows, max(WIDTH, width * columns))  # of few panels, wide enough for the labels
    panels = list(figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False).flat)
    for unused in panels[number:]:
        unused.set_visible(False)
    return figure, panels[:number]


def dress(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Give a panel its labels and its grid, and take its frame away."""
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.set_title(title, fontsize=FONT)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 1)


def dashed_level(axes: Axes, x: float | None = None, y: float | None = None) -> None:
    """Draw what a panel is compared with: a dashed line at `x`, upright, or at `y`, across."""
    for value, draw in ((x, axes.axvline), (y, axes.axhline)):
        if value is not None:
            draw(value, color="black", linestyle="--", linewidth=0.9)


def reach(estimates: Sequence[Estimate]) -> Values:
    """Return how far each interval reaches below and above its value, shape (2, n), as matplotlib asks for error bars."""
    values, low, high = np.asarray(estimates, float).T
    return np.maximum([values - low, high - values], 0.0)


def interval_bars(axes: Axes, places: Sequence[float] | Values, estimates: Sequence[Estimate], across: bool = False, **style: Any) -> None:
    """Draw values as markers with bars over their intervals.

    Args:
        axes: The panel.
        places: Where each stands on the other axis, shape (n,).
        estimates: Value, lower and upper end of each.
        across: Whether values lie on the x-axis.
        **style: For matplotlib's `errorbar`.
    """
    values = [estimate[0] for estimate in estimates]
    data: dict[str, Any] = {"x": places, "y": values, "yerr": reach(estimates)}
    if across:
        data = {"x": values, "y": places, "xerr": reach(estimates)}
    axes.errorbar(**data, **{"color": COLOURS[0], "linestyle": "", "marker": "o", "capsize": 3, **style})


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG that appears whole or not at all."""
    with new_path(path) as temporary:
        figure.savefig(temporary, format="png")


def data_uri(picture: Figure | Path) -> str:
    """Return a figure, or the PNG of a path, as an address that a page can hold."""
    if isinstance(picture, Path):
        return png_uri(picture.read_bytes())
    picture.savefig(drawn := io.BytesIO(), format="png")
    return png_uri(drawn.getvalue())
