"""Pictures of a benchmark: intervals, profiles, radar, comparisons, learning curves, and the frontier of score against KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from textrl_env.utils.files import new_path

from .aggregate_statistics import IntervalEstimate

# Okabe and Ito's palette; line styles and markers tell apart what the same colour, or a grey print, would not
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d")
_GRID = "#dddddd"
_LONGEST = 26  # letters of a name


class Looks:
    """Colour, line style and marker of each agent, the same in every picture."""

    def __init__(self, agents: Sequence[str]) -> None:
        self.agents = list(agents)

    def line(self, agent: str) -> dict[str, Any]:
        """Return keyword arguments for a line."""
        i = self.agents.index(agent)
        return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i % len(_STYLES)], "marker": _MARKERS[i % len(_MARKERS)]}

    def label(self, agent: str) -> str:
        """Return a name that fits beside a picture; import strings and settings can be long."""
        return agent if len(agent) <= _LONGEST else f"{agent[: _LONGEST - 9]}...{agent[-6:]}"

    def colour(self, agent: str) -> str:
        """Return a colour."""
        return str(self.line(agent)["color"])


def intervals(rows: Mapping[str, Mapping[str, IntervalEstimate]], looks: Looks, path: Path) -> None:
    """Draw one panel for each statistic, with a dot and a bar for each agent."""
    figure = _figure(10, 0.9 + 0.32 * len(looks.agents))
    axes = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for panel, (title, found) in zip(axes, rows.items(), strict=True):
        for height, agent in enumerate(reversed(looks.agents)):
            if agent in found:
                value, low, high = found[agent]
                panel.plot([low, high], [height, height], color=looks.colour(agent), linewidth=5, alpha=0.45, solid_capstyle="butt")
                panel.plot([value], [height], **looks.line(agent) | {"linestyle": ""}, markersize=7)
        panel.set_title(title, fontsize=11)
        panel.set_yticks(range(len(looks.agents)), [looks.label(agent) for agent in reversed(looks.agents)])
        _dress(panel)
    _save(figure, path)


def profiles(thresholds: np.ndarray, found: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], looks: Looks, path: Path) -> None:
    """Draw the share of runs above each score, with its band."""
    figure = _figure(9, 4.6)
    axes = figure.subplots()
    for agent, (share, low, high) in found.items():
        axes.plot(thresholds, share, **looks.line(agent), markevery=max(1, len(thresholds) // 8), markersize=5, label=looks.label(agent))
        axes.fill_between(thresholds, low, high, color=looks.colour(agent), alpha=0.12, linewidth=0)
    axes.set(xlabel="normalised score (0 base policy, 1 optimum)", ylabel="share of runs above", ylim=(-0.02, 1.02))
    _dress(axes)
    _legend(axes)
    _save(figure, path)


def radar(tasks: Sequence[str], found: Mapping[str, np.ndarray], looks: Looks, path: Path) -> None:
    """Draw one panel for each agent: its mean score on each task, clipped to [0, 1], over the best of all agents."""
    columns = min(3, len(found))
    rows = ceil(len(found) / columns)
    figure = _figure(4.2 * columns, 4.2 * rows)
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    ring = np.append(angles, angles[0])
    best = np.nanmax([np.clip(values, 0, 1) for values in found.values()], axis=0)
    for number, (agent, values) in enumerate(found.items()):
        axes = figure.add_subplot(rows, columns, number + 1, projection="polar")
        own = np.clip(np.nan_to_num(values), 0, 1)
        axes.fill(ring, np.append(best, best[0]), color="#cccccc", alpha=0.5, linewidth=0)
        axes.plot(ring, np.append(own, own[0]), color=looks.colour(agent), linewidth=1.8)
        axes.fill(ring, np.append(own, own[0]), color=looks.colour(agent), alpha=0.25)
        axes.set_ylim(0, 1)
        axes.set_yticks([0.5, 1.0], ["", ""])
        axes.set_xticks(angles, [""] * len(tasks))
        for angle, task in zip(angles, tasks, strict=True):
            turned = np.degrees(angle)
            flip = 90 < turned < 270
            axes.text(
                angle, 1.06, task, fontsize=8, rotation=turned + 180 if flip else turned, rotation_mode="anchor", va="center",
                ha="right" if flip else "left",
            )  # fmt: skip
        axes.set_title(looks.label(agent), fontsize=12, pad=16 + 4.6 * max(map(len, tasks)))  # above the names, which stand upright there
        axes.grid(color=_GRID)
    _save(figure, path)


def comparisons(found: Mapping[tuple[str, str], IntervalEstimate], looks: Looks, path: Path) -> None:
    """Draw a matrix: the probability that the row's agent does better than the column's."""
    agents = looks.agents
    size = 2.6 + 0.78 * len(agents)
    figure = _figure(size, size * 0.92)
    axes = figure.subplots()
    values = np.array([[found[a, b].value if a != b else np.nan for b in agents] for a in agents])
    axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1, alpha=0.85)
    for row, a in enumerate(agents):
        for column, b in enumerate(agents):
            if a != b:
                sure = found[a, b].low > 0.5 or found[a, b].high < 0.5
                weight = "bold" if sure else "normal"
                ink = "white" if abs(values[row, column] - 0.5) > 0.33 else "black"
                shown = f"{values[row, column]:.2f}".removeprefix("0")
                axes.text(column, row, shown, ha="center", va="center", fontsize=10, fontweight=weight, color=ink)
    axes.set_xticks(range(len(agents)), [looks.label(agent) for agent in agents], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(agents)), [looks.label(agent) for agent in agents])
    axes.tick_params(length=0)
    _save(figure, path)


def curves(found: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]], looks: Looks, path: Path) -> None:
    """Draw a panel for each task: score against tokens, mean and range over seeds of each agent that learns."""
    columns = 4
    rows = ceil(len(found) / columns)
    figure = _figure(3.1 * columns, 2.3 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    shown: dict[str, Any] = {}
    for axes, (task, agents) in zip(grid, found.items(), strict=False):
        for agent, (tokens, value, low, high) in agents.items():
            (line,) = axes.plot(tokens / 1000, value, **looks.line(agent) | {"marker": ""}, linewidth=1.6)
            axes.fill_between(tokens / 1000, low, high, color=looks.colour(agent), alpha=0.12, linewidth=0)
            shown.setdefault(agent, line)
        axes.set_title(task, fontsize=10)
        axes.set_ylim(-0.3, 1.05)
        axes.tick_params(labelsize=8)
        _dress(axes)
    figure.supxlabel("thousand tokens written", fontsize=10)
    figure.supylabel("normalised score of the texts written", fontsize=10)
    figure.legend(
        list(shown.values()),
        [looks.label(agent) for agent in shown],
        loc="outside upper center",
        ncols=min(6, max(1, len(shown))),
        frameon=False,
    )
    _save(figure, path)


def frontier(
    found: Mapping[str, Sequence[tuple[IntervalEstimate, IntervalEstimate]]], bound: Sequence[tuple[float, float]], looks: Looks, path: Path
) -> None:
    """Draw score against KL over a range of each agent's strength, both with intervals over seeds.

    Args:
        found: Of each agent, (KL, score) of each setting, in the order of KL.
        bound: The same of best-of-n with the KL that it has at most.
        looks: Of the agents.
        path: The picture.
    """
    figure = _figure(8, 5.2)
    axes = figure.subplots()
    for agent, points in found.items():
        kl, score = (np.array([point[i].value for point in points]) for i in range(2))
        spread = [np.abs(np.array([[p[i].low, p[i].high] for p in points]).T - center) for i, center in ((0, kl), (1, score))]
        axes.errorbar(
            kl, score, yerr=spread[1], xerr=spread[0], **looks.line(agent), markersize=6, capsize=2, elinewidth=1, label=looks.label(agent)
        )
    if bound:
        axes.plot(
            [kl for kl, _ in bound],
            [score for _, score in bound],
            color="#777777",
            linestyle=":",
            marker="|",
            label="best-of-n, at its KL bound",
        )
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xlim(left=0)
    axes.set(xlabel="KL to the base policy, nats a text (square-root scale)", ylabel="gold score")
    _dress(axes)
    axes.legend(frameon=False)
    _save(figure, path)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _dress(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with new_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
