"""Plots of training runs: scores against KL and against the texts written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from .plots import COLOURS, FONT, Values, dashed_level, dress, look, new_figure, panel_grid

_LEARNED: Final = "--"
_GOLD: Final = "-"
_NUM_MARKERS = 6
_TITLE_WIDTH = 36  # letters in a line of the legend
_MAX_TICKS = 7


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
    cut on one side only, so that the last noisy iteration is not taken for the result.  Values that are not finite are left out; where
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


def frontier(curves: Mapping[str, Curve]) -> Figure:
    """Draw the scores that training reached at each KL from the base, one pair of lines for each run.

    KL lies on a square-root scale, on which overoptimisation curves are customarily read (Gao et al. 2023).

    Args:
        curves: By variant.

    Raises:
        ValueError: There is no curve, or one has no rows.
    """
    _check(curves)
    figure = new_figure(height=4.3)
    axes = figure.subplots()
    _draw_scores(axes, curves, lambda curve: np.sqrt(np.maximum(curve.kl, 0.0)), trail=True)  # an estimate near 0 can be negative
    roots = _root_ticks(max(float(np.max(curve.kl[np.isfinite(curve.kl)], initial=0.0)) for curve in curves.values()))
    axes.set_xticks(roots, [f"{root * root:.4g}" for root in roots])
    dress(axes, "KL from the base per text (nats, square-root scale)", "mean score (utility)")
    _add_legend(figure, curves)
    return figure


def learning_curve(curves: Mapping[str, Curve]) -> Figure:
    """Draw scores, and KL in a smaller panel below, against the texts written in training; arguments as for `frontier`."""
    _check(curves)
    figure = new_figure(height=5.2)
    scores, divergence = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    _draw_scores(scores, curves, lambda curve: curve.texts, trail=False)
    for i, curve in enumerate(curves.values()):
        _draw_line(divergence, i, curve.texts, curve.kl, "-", trail=False)
    dress(scores, y="mean score (utility)")
    dress(divergence, "training texts", "KL per text\n(nats)")
    divergence.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    divergence.locator_params(axis="x", nbins=5)  # thousands are wide labels
    _add_legend(figure, curves)
    return figure


def progress(tokens: Values, panels: Mapping[str, Values]) -> Figure:
    """Draw how one training went: a panel for each measure, against the tokens written.

    Args:
        tokens: Written so far at each rollout, shape (n,).
        panels: By label of the y-axis, shape (n,) each.
    """
    figure = new_figure(height=0.6 + 1.6 * len(panels))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, (label, values)) in enumerate(zip(rows, panels.items(), strict=True)):
        _draw_line(axes, i, tokens, values, _GOLD, trail=False)
        dress(axes, y=label)
        axes.locator_params(axis="y", nbins=4)
    rows[-1].set_xlabel("tokens written", fontsize=FONT)
    rows[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    rows[-1].locator_params(axis="x", nbins=5)  # thousands are wide labels
    figure.align_ylabels()
    return figure


def small_multiples(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], level: float) -> Figure:
    """Draw a panel for each algorithm: its runs' gold scores against the share of the training that is done.

    Args:
        curves: By algorithm, of each run the points of its curve.
        level: Score of the base policy, a dashed line.
    """
    figure, panels = panel_grid(len(curves), 4, 2.3, 1.8, shared=True)
    for axes, (name, runs) in zip(panels, curves.items(), strict=True):
        for colour, points in zip(cycle(COLOURS), runs, strict=False):
            share, gold = np.asarray(points).T
            axes.plot(100 * share, running_mean(gold, 3), color=colour, linewidth=1.4)
        dashed_level(axes, y=level)
        dress(axes, title=name)
    figure.supxlabel("training done, %; dashed: gold score of the base policy", fontsize=FONT)
    figure.supylabel("gold score", fontsize=FONT)
    return figure


def _check(curves: Mapping[str, Curve]) -> None:
    if not curves:
        raise ValueError("no curves to draw: give at least one variant")
    for name, curve in curves.items():
        if not len(curve.texts):
            raise ValueError(f"the curve of {name!r} has no rows: it needs at least one iteration")


def _draw_scores(axes: Axes, curves: Mapping[str, Curve], x: Callable[[Curve], Values], trail: bool) -> None:
    for i, curve in enumerate(curves.values()):
        _draw_line(axes, i, x(curve), curve.learned, _LEARNED, trail)
        _draw_line(axes, i, x(curve), curve.gold, _GOLD, trail)


def _draw_line(axes: Axes, index: int, x: Values, y: Values, style: str, trail: bool) -> None:
    """Draw raw points faintly and their running mean over them, ending in a marker (all there is of a single point).

    A trail's x is a measurement too: it is smoothed like y, and as it may turn back on itself, only its end is marked.
    """
    own = look(index) | {"linestyle": style}
    window = max(1, len(y) // 10)
    axes.plot(x, y, linestyle="", marker=".", markersize=4, color=own["color"], alpha=0.35, markeredgewidth=0, zorder=1)
    axes.plot(
        running_mean(x, window) if trail else x, running_mean(y, window), **own, linewidth=1.7, markersize=5, zorder=3,
        markerfacecolor=own["color"] if style == _GOLD else "white", markevery=_marked(len(y), 1 if trail else _NUM_MARKERS),
    )  # fmt: skip


def _marked(num: int, num_markers: int) -> list[int]:
    """Return indices at equal distances, the last among them."""
    return sorted({round(i) for i in np.linspace(num - 1, 0, num_markers, endpoint=False)})


def _root_ticks(largest: float) -> Values:
    """Return square roots of KL, equally far apart from 0 up to the largest."""
    wanted = max(np.sqrt(largest), 1e-3) / _MAX_TICKS
    decade = 10.0 ** np.floor(np.log10(wanted))
    step = decade * next(nice for nice in (1, 2, 5, 10) if nice * decade >= wanted)
    return np.arange(0.0, np.sqrt(largest) + 1e-9, step)


def _add_legend(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Put the legend above the axes, where it covers no line."""
    runs = [Line2D([], [], **look(i) | {"linestyle": "-"}, markersize=6) for i in range(len(curves))]
    scores = [Line2D([], [], color="black", linestyle=style) for style in (_LEARNED, _GOLD)]
    legend = figure.legend(
        [*runs, *scores], [*(fill(curve.title, _TITLE_WIDTH) for curve in curves.values()), "learned score", "gold score"],
        loc="outside upper left", ncols=2 if len(curves) > 1 else 3, frameon=False, fontsize=FONT - 1, handlelength=2.6,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a title is not a formula, even with dollars in it
