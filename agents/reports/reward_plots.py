"""Plots of a reward model: its scores, its accuracy and its calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rewards.fitting.calibration import Reliability
from rewards.utils.intervals import Rate

from .plots import COLOURS, FONT, MARKERS, Values, dashed_level, dress, interval_bars, new_figure


def histogram(values: Values, title: str) -> Figure:
    """Draw how often each score occurs, with the mean as a dashed line.

    Args:
        values: Scores, shape (n,), n > 0.
        title: Above the picture.
    """
    figure = new_figure(3.2)
    axes = figure.subplots()
    axes.hist(values, bins=min(40, max(10, round(len(values) ** 0.5))), color=COLOURS[0])
    dashed_level(axes, x=float(values.mean()))
    dress(axes, "score; dashed: mean", "texts", title)
    return figure


def accuracies(rows: Sequence[tuple[str, Rate]], label: str) -> Figure:
    """Draw accuracies with their intervals, one beside the other; the dashed line is chance.

    Args:
        rows: Name and accuracy of each.
        label: What the names mean.
    """
    figure = new_figure(3.4)
    axes = figure.subplots()
    places = np.arange(len(rows))
    interval_bars(axes, places, [(rate.rate, rate.low, rate.high) for _, rate in rows])
    dashed_level(axes, y=0.5)
    axes.set_xticks(places, [name.replace(" to ", "\nto ") for name, _ in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    dress(axes, label, "accuracy")
    return figure


def reliability_diagram(bins_of: Mapping[str, Reliability]) -> Figure:
    """Draw how often the favoured side was preferred against the model's confidence; on the dashed line the two are equal.

    Args:
        bins_of: By name in the legend.
    """
    figure = new_figure(3.8)
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color="black", linestyle="--", linewidth=0.9)
    for colour, marker, (name, bins) in zip(COLOURS, MARKERS, bins_of.items(), strict=False):
        axes.plot(bins.confidence, bins.frequency, color=colour, marker=marker, linewidth=1.2, label=name)
    axes.legend(frameon=False, fontsize=FONT - 1)
    dress(axes, "confidence of the model", "share that people preferred")
    return figure
