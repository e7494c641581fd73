"""Whole iterations of TextPPO against SB3's PPO and TRL's trainers on the same work: `python -m agents.benchmark.performance.speed`.

All write the same number of texts of one length with models of the same configuration and update on them for the same number of epochs,
with minibatches of the same number of tokens.  SB3's PPO stores transitions, so each of its minibatches reads every prefix anew; it has no
reference.  It is timed as it is, with a features extractor around transformers' model, and with our policy, which decodes with a cache and
skips outputs that are not used.  `trl_peer.py` describes what TRL's trainers do, and where their work differs.

Each contender is a process of its own; they take turns, one iteration each, and medians are compared.  Memory is the peak of a process
above what it held once everything was imported.  Utilisation is what the work needs, the matrix products of the policy alone, over what a
large matrix product reaches in the same round; what a contender computes beyond that counts as time, not as work.
"""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import ExitStack
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from textrl_env.utils.files import plain, write_json

from ...reports.plots import COLOURS, dress, new_figure, reach, save
from ...reports.tables import terminal_table
from ...utils.progress import bar
from .hardware import matmul_peak, rollout_operations, update_operations
from .speed_contenders import INSTALL, Contender, contenders
from .speed_workload import Speed


def main(config: Speed) -> dict[str, Any]:
    """Time all, print a table, write the files, and return the figures.

    Raises:
        ValueError: A number is out of range, or the Python given for TRL is not there.
        RuntimeError: A contender failed; the message ends with what it wrote.
    """
    config = config.spelt_out()
    _check(config)
    torch.set_num_threads(config.threads)
    with ExitStack() as stack:
        all_of_them = []
        for arguments in contenders(config):
            all_of_them.append(Contender(*arguments))
            stack.callback(all_of_them[-1].close)
        peaks = _take_turns(config, all_of_them)
    figures = {
        "config": plain(dataclasses.asdict(config)),
        "peak_gflops": [peak / 1e9 for peak in peaks],
        "contenders": {one.name: _summary(config, one, peaks) for one in all_of_them},
    }
    for row in figures["contenders"].values():
        row["ratio"] = figures["contenders"]["ours"]["tokens_per_second"] / row["tokens_per_second"]
    _print(figures)
    if not any(one.name.startswith("TRL") for one in all_of_them):
        Console().print(f"TRL is not installed here; to time it too: {INSTALL}", soft_wrap=True, highlight=False)
    if config.out is not None:
        write_json(config.out / "speed.json", figures)
        save(draw(figures, config), config.out / "speed.png")
    return figures


def _check(config: Speed) -> None:
    if config.repeats < 1:
        raise ValueError(f"repeats={config.repeats}: at least 1 iteration must be timed")
    if config.episodes % config.batch:
        raise ValueError(f"episodes={config.episodes} are no multiple of batch={config.batch}: minibatches would differ in size")
    if config.episodes % config.group:
        raise ValueError(f"episodes={config.episodes} are no multiple of group={config.group}: the last group would be cut")


def _take_turns(config: Speed, all_of_them: list[Contender]) -> list[float]:
    """Have each do its iterations, one at a time, and return the rate of a matrix product in each round."""
    for one in all_of_them:
        one.wait()
    peaks = []
    with bar("rounds", 1 + config.repeats, True) as shown:
        for _ in range(1 + config.repeats):
            for one in all_of_them:
                one.iterate()
            peaks.append(matmul_peak(config.precision))
            shown.advance()
    for one in all_of_them:
        one.finish()
    return peaks


def _summary(config: Speed, one: Contender, peaks: list[float]) -> dict[str, Any]:
    """Return the medians of a contender's iterations without the first, and what follows from them."""
    timed = one.rows[1:]  # the first is warm-up

    def utilisation(operations: float, seconds: str) -> float:
        return statistics.median(operations / row[seconds] / peak for row, peak in zip(timed, peaks[1:], strict=True))

    medians: dict[str, Any] = {key: statistics.median(row[key] for row in timed) for key in timed[0] if key.endswith("seconds")}
    tokens = config.episodes * config.new_tokens
    return {
        **medians,
        "tokens_per_second": tokens / medians["seconds"],
        "memory_mib": one.memory_mib,
        "rollout_utilisation": utilisation(rollout_operations(config), "rollout_seconds"),
        "update_utilisation": utilisation(update_operations(config), "update_seconds"),
        "iterations": one.rows,
        "versions": one.versions,
    }


def _print(figures: dict[str, Any]) -> None:
    head = ("", "rollout s", "of peak", "scoring s", "update s", "of peak", "iteration s", "tokens/s", "ours is", "memory MiB")
    rows = []
    for name, row in figures["contenders"].items():
        scoring = row.get("reference_seconds")
        rows.append([
            name, f"{row['rollout_seconds']:.2f}", f"{row['rollout_utilisation']:.0%}", "-" if scoring is None else f"{scoring:.2f}",
            f"{row['update_seconds']:.2f}", f"{row['update_utilisation']:.0%}", f"{row['seconds']:.2f}", f"{row['tokens_per_second']:.1f}",
            f"{row['ratio']:.2f}x", f"{row['memory_mib']:,.0f}",
        ])  # fmt: skip
    title = "Medians of an iteration; seconds, and share of the peak that the work needs"
    Console(width=132).print(terminal_table(head, rows, title))


def draw(figures: dict[str, Any], config: Speed) -> Figure:
    """Draw tokens per second and memory of each, the fastest on top; thin lines reach from the slowest to the fastest iteration."""
    rows = sorted(figures["contenders"].items(), key=lambda item: item[1]["tokens_per_second"])
    names, tokens = [name for name, _ in rows], config.episodes * config.new_tokens
    speeds = [row["tokens_per_second"] for _, row in rows]
    timed = [[tokens / i["seconds"] for i in row["iterations"][1:]] for _, row in rows]
    ranges = [(speed, min(own), max(own)) for speed, own in zip(speeds, timed, strict=True)]
    colours = [COLOURS[name == "ours"] for name in names]
    figure = new_figure(1.0 + 0.3 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(names, speeds, color=colours, xerr=reach(ranges), error_kw={"elinewidth": 0.8})
    right.barh(names, [row["memory_mib"] for _, row in rows], color=colours)
    for axes, label in ((left, "tokens per second"), (right, "peak memory, MiB")):
        dress(axes, label)
        axes.tick_params(labelsize=8)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Speed))
