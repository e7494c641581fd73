"""Plots of a benchmark: intervals, profiles, radar, comparisons, learning curves, and score against KL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .plots import FONT, GRID, Estimate, Values, dress, interval_bars, look, new_figure, panel_grid, reach

_LONGEST = 26  # letters of a name


def _label(agent: str) -> str:
    """Return a name that fits beside a picture; import strings and settings can be long."""
    return agent if len(agent) <= _LONGEST else f"{agent[: _LONGEST - 9]}...{agent[-6:]}"


def intervals(rows: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Draw one panel for each statistic, with a marker and a bar for each agent, the first agent on top.

    Args:
        rows: By title of the statistic, the estimate of each agent; the same agents in the same order everywhere.
    """
    agents = list(next(iter(rows.values())))
    heights = range(len(agents))[::-1]
    figure = new_figure(0.9 + 0.32 * len(agents), 10)
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, (title, estimates) in zip(panels, rows.items(), strict=True):
        for index, (height, agent) in enumerate(zip(heights, agents, strict=True)):
            own = look(index) | {"linestyle": ""}
            style = {"ecolor": (own["color"], 0.45), "elinewidth": 5, "capsize": 0, "markersize": 7}
            interval_bars(axes, [height], [estimates[agent]], across=True, **own, **style)
        axes.set_yticks(heights, map(_label, agents))
        dress(axes, title=title)
    return figure


def profiles(thresholds: Values, bands: Mapping[str, tuple[Values, Values, Values]]) -> Figure:
    """Draw the share of runs above each score, with its band.

    Args:
        thresholds: The scores, shape (n,).
        bands: Of each agent, share, lower and upper end, shape (n,) each.
    """
    figure = new_figure(4.6, 9)
    axes = figure.subplots()
    for index, (agent, (share, low, high)) in enumerate(bands.items()):
        own = look(index)
        axes.plot(thresholds, share, **own, markevery=max(1, len(thresholds) // 8), markersize=5, label=_label(agent))
        axes.fill_between(thresholds, low, high, color=own["color"], alpha=0.12, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    dress(axes, "normalised score (0 base policy, 1 optimum)", "share of runs above")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def radar(tasks: Sequence[str], scores: Mapping[str, Values]) -> Figure:
    """Draw one panel for each agent: its mean score on each task, clipped to [0, 1], over the best of all agents.

    Args:
        tasks: Names.
        scores: Of each agent, shape (len(tasks),); NaN where it has none: the line has a gap there, and the name says so.
    """
    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    figure = new_figure(4.2 * rows, 4.2 * columns)
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    ring = np.append(angles, angles[0])
    best = np.max([np.clip(np.nan_to_num(values), 0, 1) for values in scores.values()], axis=0)
    for index, (agent, values) in enumerate(scores.items()):
        axes = figure.add_subplot(rows, columns, index + 1, projection="polar")
        own, colour, missing = np.clip(np.nan_to_num(values), 0, 1), look(index)["color"], np.isnan(values)
        names = [f"{task}: none" if none else task for task, none in zip(tasks, missing, strict=True)]
        line = np.where(missing, np.nan, own)
        axes.fill(ring, np.append(best, best[0]), color="#cccccc", alpha=0.5, linewidth=0)
        axes.plot(ring, np.append(line, line[0]), color=colour, linewidth=1.8)
        axes.fill(ring, np.append(own, own[0]), color=colour, alpha=0.25)
        axes.set_ylim(0, 1)
        axes.set_yticks([0.5, 1.0], ["", ""])
        axes.set_xticks(angles, [""] * len(tasks))
        for angle, task in zip(angles, names, strict=True):
            turned = np.degrees(angle)
            flip = 90 < turned < 270
            axes.text(
                angle, 1.06, task, fontsize=8, rotation=turned + 180 if flip else turned, rotation_mode="anchor", va="center",
                ha="right" if flip else "left",
            )  # fmt: skip
        axes.set_title(_label(agent), fontsize=FONT + 1, pad=16 + 4.6 * max(map(len, names)))  # above the names, which stand upright there
        axes.grid(color=GRID)
    return figure


def comparisons(agents: Sequence[str], better: Mapping[str, Mapping[str, float]], apart: Collection[Collection[str]]) -> Figure:
    """Draw a matrix: the probability that the row's agent does better than the column's.

    Args:
        agents: In the order of rows and columns.
        better: Of each agent, by other agents; no entry where they share no task.
        apart: Pairs whose difference is more than noise, in bold type.
    """
    size = 2.6 + 0.78 * len(agents)
    figure = new_figure(size * 0.92, size)
    axes = figure.subplots()
    values = np.array([[better[a].get(b, np.nan) for b in agents] for a in agents])
    axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1, alpha=0.85, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            weight = "bold" if {agents[row], agents[column]} in apart else "normal"
            ink = "white" if abs(value - 0.5) > 0.33 else "black"
            text = f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=FONT - 1, fontweight=weight, color=ink)
    names = list(map(_label, agents))
    axes.set_xticks(range(len(agents)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(agents)), names)
    axes.tick_params(length=0)
    return figure


def curves(agents: Sequence[str], lines: Mapping[str, Mapping[str, tuple[Values, Values, Values, Values]]]) -> Figure:
    """Draw a panel for each task: score against tokens, mean and range over seeds of each agent that learns.

    Args:
        agents: All agents of the report, so that each looks the same in every plot.
        lines: By task and agent, tokens, mean, lowest and highest score, shape (n,) each.
    """
    figure, panels = panel_grid(len(lines), 4, 3.1, 2.45)
    drawn = {}
    for axes, (task, own_lines) in zip(panels, lines.items(), strict=True):
        for agent, (tokens, value, low, high) in own_lines.items():
            own = look(agents.index(agent)) | {"marker": ""}
            (drawn[agent],) = axes.plot(tokens / 1000, value, **own, linewidth=1.6)
            axes.fill_between(tokens / 1000, low, high, color=own["color"], alpha=0.12, linewidth=0)
        axes.set_ylim(-0.3, 1.05)
        dress(axes, title=task)
        axes.tick_params(labelsize=8)
    figure.supxlabel("thousand tokens written", fontsize=FONT)
    figure.supylabel("normalised score\nof the texts written", fontsize=FONT)  # a line each: one row of panels is not high
    names = list(map(_label, drawn))
    fit = int(figure.get_figwidth() / (0.5 + 0.1 * max(map(len, names))))  # inches: a line and its gap, and a letter
    columns = min(6, max(1, fit), len(drawn))
    figure.set_figheight(figure.get_figheight() + 0.22 * (-(-len(drawn) // columns) - 1))  # the panels stay as high
    figure.legend(drawn.values(), names, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def score_against_kl(points: Mapping[str, Sequence[tuple[Estimate, Estimate]]], bound: Sequence[tuple[float, float]]) -> Figure:
    """Draw gold score against KL over a range of each agent's strength, both with intervals over seeds.

    Args:
        points: Of each agent, (KL, score) of each setting, in the order of KL.
        bound: (KL, score) of best-of-n with the KL that it has at most.
    """
    figure = new_figure(5.2, 8)
    axes = figure.subplots()
    for index, (agent, settings) in enumerate(points.items()):
        kl, score = zip(*settings, strict=True)
        axes.errorbar(
            [x[0] for x in kl], [y[0] for y in score], xerr=reach(kl), yerr=reach(score), **look(index), markersize=6, capsize=2,
            elinewidth=1, label=_label(agent),
        )  # fmt: skip
    if bound:
        axes.plot(*zip(*bound, strict=True), color="#777777", linestyle=":", marker="|", label="best-of-n, at its KL bound")
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xlim(left=0)
    dress(axes, "KL to the base policy, nats a text (square-root scale)", "gold score")
    axes.legend(frameon=False)
    return figure
