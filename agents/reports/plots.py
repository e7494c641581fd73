"""Plots of a training run, drawn on matplotlib's objects: pyplot's global state belongs to the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from rewards.fitting.calibration import Reliability
from rewards.utils.intervals import Rate
from textrl_env.utils.files import new_path

# Okabe and Ito's palette keeps apart under every common colour blindness; markers keep the runs apart in grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")
_GRID = "#dddddd"
_WIDTH = 5.8  # inches: narrow, so that the letters stay readable when a phone shrinks the picture to its screen
_FONT = 11
_LEARNED: Final = "--"
_GOLD: Final = "-"
_NUM_MARKERS = 6
_TITLE_WIDTH = 36  # letters in a line of the legend
_MAX_TICKS = 7

Values = np.ndarray


@dataclass(frozen=True)
class Curve:
    """How one training run went, an entry for each iteration.

    Attributes:
        title: Name in the legend.
        texts: Texts written so far, shape (n,).
        learned: Mean score by the reward model, shape (n,).
        gold: Mean true utility, shape (n,).
        kl: KL to the base, summed over a text's tokens, in nats, shape (n,).
    """

    title: str
    texts: Values
    learned: Values
    gold: Values
    kl: Values


def running_mean(values: Values, window: int) -> Values:
    """Average over a centred window.

    At the start, where curves bend, the window shrinks on both sides alike and keeps the true beginning.  At the end it is
    cut on one side only, lest the last noisy iteration pass for the result.  Values that are not finite are left out; where
    a window has no other, the result is NaN.

    Args:
        values: Shape (n,).
        window: Width in entries; an even one counts as the next odd one.

    Returns:
        Shape (n,).
    """
    halves = [min(window // 2, i) for i in range(len(values))]
    windows = [values[i - half : i + half + 1] for i, half in enumerate(halves)]
    kept = [window[np.isfinite(window)] for window in windows]
    return np.array([window.mean() if len(window) else np.nan for window in kept])


def frontier(curves: dict[str, Curve], path: str | Path) -> None:
    """Draw what a distance from the base bought: scores against KL, one pair of lines for each run.

    KL lies on a square-root scale, on which overoptimisation curves are customarily read (Gao et al. 2023).

    Args:
        curves: By variant.
        path: PNG to write.

    Raises:
        ValueError: There is nothing to draw.
    """
    _check(curves)
    figure = new_figure(height=4.3)
    axes = figure.add_subplot()
    _draw_scores(axes, curves, lambda curve: np.sqrt(np.maximum(curve.kl, 0.0)), trail=True)  # an estimate near 0 can be negative
    roots = _root_ticks(max(float(np.max(curve.kl[np.isfinite(curve.kl)], initial=0.0)) for curve in curves.values()))
    axes.set_xticks(roots, [f"{root * root:.4g}" for root in roots])
    axes.set_xlabel("KL from the base per text (nats, square-root scale)", fontsize=_FONT)
    axes.set_ylabel("mean score (utility)", fontsize=_FONT)
    _finish(figure, axes, curves, path)


def learning_curve(curves: dict[str, Curve], path: str | Path) -> None:
    """Draw scores, and KL in a smaller panel below, against the texts written in training.

    Args:
        curves: By variant.
        path: PNG to write.

    Raises:
        ValueError: There is nothing to draw.
    """
    _check(curves)
    figure = new_figure(height=5.2)
    grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
    scores = figure.add_subplot(grid[0])
    divergence = figure.add_subplot(grid[1], sharex=scores)
    _draw_scores(scores, curves, lambda curve: curve.texts, trail=False)
    for i, curve in enumerate(curves.values()):
        _draw_line(divergence, i, curve.texts, curve.kl, "-", trail=False)
    scores.tick_params(labelbottom=False)
    scores.set_ylabel("mean score (utility)", fontsize=_FONT)
    divergence.set_ylabel("KL per text\n(nats)", fontsize=_FONT)
    divergence.set_xlabel("training texts", fontsize=_FONT)
    divergence.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    divergence.locator_params(axis="x", nbins=5)  # thousands are wide labels
    dress(divergence)
    _finish(figure, scores, curves, path)


def small_multiples(curves: dict[str, list[list[tuple[float, float]]]], level: float, path: Path) -> None:
    """Draw a panel for each algorithm: its runs' gold scores against the share of the training that is done.

    Args:
        curves: By algorithm, of each run the points of its curve.
        level: Score of the base policy, a dashed line.
        path: PNG to write.
    """
    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.8 * rows), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, runs) in zip(panels.flat, curves.items(), strict=False):
        for colour, points in zip(cycle(_COLOURS), runs, strict=False):
            share, gold = np.asarray(points).T
            axes.plot(100 * share, running_mean(gold, 3), color=colour, linewidth=1.4)
        axes.axhline(level, color="black", linestyle="--", linewidth=0.9)
        axes.set_title(name, fontsize=_FONT)
        dress(axes)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("training done, %", fontsize=_FONT)
    figure.supylabel("gold score; dashed: base policy", fontsize=_FONT)
    save(figure, path)


def histogram(values: Values, title: str, path: Path) -> None:
    """Draw how often each score occurs, with the mean as a dashed line.

    Args:
        values: Scores, shape (n,), n > 0.
        title: Above the picture.
        path: PNG to write.
    """
    figure = new_figure(3.2)
    axes = figure.subplots()
    axes.hist(values, bins=min(40, max(10, round(len(values) ** 0.5))), color=_COLOURS[0])
    axes.axvline(float(values.mean()), color="black", linestyle="--", linewidth=0.9)
    axes.set_title(title, fontsize=_FONT)
    axes.set_xlabel("score; dashed: mean", fontsize=_FONT)
    axes.set_ylabel("texts", fontsize=_FONT)
    dress(axes)
    save(figure, path)


def rates(rows: Sequence[tuple[str, Rate]], label: str, path: Path) -> None:
    """Draw accuracies with their intervals, one beside the other; the dashed line is chance.

    Args:
        rows: Name and accuracy of each.
        label: What the names say.
        path: PNG to write.
    """
    figure = new_figure(3.4)
    axes = figure.subplots()
    places = np.arange(len(rows))
    middle = np.array([rate.rate for _, rate in rows])
    reach = np.abs(np.array([[rate.low, rate.high] for _, rate in rows]).T - middle)
    axes.errorbar(places, middle, reach, fmt="o", color=_COLOURS[0], capsize=4)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=0.9)
    axes.set_xticks(places, [name.replace(" to ", "\nto ") for name, _ in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_xlabel(label, fontsize=_FONT)
    axes.set_ylabel("accuracy", fontsize=_FONT)
    dress(axes)
    save(figure, path)


def reliability_plot(found: Mapping[str, Reliability], path: Path) -> None:
    """Draw how often the favoured side was preferred against the model's confidence; the dashed line is where both agree.

    Args:
        found: By name in the legend.
        path: PNG to write.
    """
    figure = new_figure(3.8)
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color="black", linestyle="--", linewidth=0.9)
    for colour, marker, (name, bins) in zip(_COLOURS, _MARKERS, found.items(), strict=False):
        axes.plot(bins.confidence, bins.frequency, color=colour, marker=marker, linewidth=1.2, label=name)
    axes.set_xlabel("confidence of the model", fontsize=_FONT)
    axes.set_ylabel("share that people preferred", fontsize=_FONT)
    axes.legend(frameon=False, fontsize=_FONT - 1)
    dress(axes)
    save(figure, path)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG that appears whole or not at all."""
    with new_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _check(curves: dict[str, Curve]) -> None:
    if not curves:
        raise ValueError("no curves to draw: give at least one variant")
    for name, curve in curves.items():
        if not len(curve.texts):
            raise ValueError(f"the curve of {name!r} has no rows: it needs at least one iteration")


def new_figure(height: float) -> Figure:
    """Return an empty figure of the reports' width, `height` inches high."""
    figure = Figure(figsize=(_WIDTH, height), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _draw_scores(axes: Axes, curves: dict[str, Curve], x: Callable[[Curve], Values], trail: bool) -> None:
    for i, curve in enumerate(curves.values()):
        _draw_line(axes, i, x(curve), curve.learned, _LEARNED, trail)
        _draw_line(axes, i, x(curve), curve.gold, _GOLD, trail)


def _draw_line(axes: Axes, index: int, x: Values, y: Values, style: str, trail: bool) -> None:
    """Draw raw points faintly and their running mean over them, ending in a marker (all there is of a single point).

    A trail's x is a measurement too: it is smoothed like y, and as it may turn back on itself, only its end is marked.
    """
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    window = max(1, len(y) // 10)
    axes.plot(x, y, linestyle="", marker=".", markersize=4, color=colour, alpha=0.35, markeredgewidth=0, zorder=1)
    axes.plot(
        running_mean(x, window) if trail else x,
        running_mean(y, window),
        linestyle=style,
        linewidth=1.7,
        color=colour,
        marker=marker,
        markersize=5,
        markerfacecolor=colour if style == _GOLD else "white",
        markevery=_marked(len(y), 1 if trail else _NUM_MARKERS),
        zorder=3,
    )


def _marked(num: int, num_markers: int) -> list[int]:
    """Return indices at equal distances, the last among them."""
    return sorted({round(i) for i in np.linspace(num - 1, 0, num_markers, endpoint=False)})


def _root_ticks(largest: float) -> Values:
    """Return square roots of KL, equally far apart from 0 up to the largest."""
    wanted = max(np.sqrt(largest), 1e-3) / _MAX_TICKS
    decade = 10.0 ** np.floor(np.log10(wanted))
    step = decade * next(nice for nice in (1, 2, 5, 10) if nice * decade >= wanted)
    return np.arange(0.0, np.sqrt(largest) + 1e-9, step)


def dress(axes: Axes) -> None:
    """Give a panel its grid and take its frame away."""
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT - 1)


def _finish(figure: Figure, axes: Axes, curves: dict[str, Curve], path: str | Path) -> None:
    """Put the legend above the axes, where it covers no line, and write the file under a temporary name first."""
    dress(axes)
    legend = figure.legend(
        handles=[*_run_handles(curves), Line2D([], [], color="black", linestyle=_LEARNED), Line2D([], [], color="black", linestyle=_GOLD)],
        labels=[*(fill(curve.title, _TITLE_WIDTH) for curve in curves.values()), "learned score", "gold score"],
        loc="outside upper left",
        ncols=2 if len(curves) > 1 else 3,
        frameon=False,
        fontsize=_FONT - 1,
        handlelength=2.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a title is not a formula, even with dollars in it
    save(figure, path)


def _run_handles(curves: dict[str, Curve]) -> list[Line2D]:
    looks = zip(cycle(_COLOURS), cycle(_MARKERS), strict=False)
    return [Line2D([], [], color=colour, marker=marker, markersize=6) for _, (colour, marker) in zip(curves, looks, strict=False)]
