"""How time and memory grow with the length of responses, the batch, the vocabulary and the model.

`python -m agents.benchmark.performance.scaling` measures it.

Every point is a process of its own, so that its peak memory is its own; points run one after the other, with the same number of threads.
It times whole iterations of TextPPO with a reference, after one of warm-up, and takes medians.

Utilisation is the update's floating-point operations over what a large matrix product of the same type reaches on the same machine in the
same process.  Counted are the products that forward and backward pass need, once each: 2 operations for each weight and token forward, 4
backward, 4 width x length per token and layer for attention; nothing for recomputation, softmax, norms or the optimizer.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from textrl_env.utils.files import write_json

from ...reports.plots import dress, look, new_figure, save
from ...reports.tables import terminal_table
from ...utils.fresh_processes import fresh_pool
from ...utils.progress import bar
from .hardware import matmul_peak, peak_mib, resident_mib, update_operations
from .speed_workload import Speed, iterate, make_ours

AXES: dict[str, tuple[int, ...]] = {
    "new_tokens": (16, 32, 64, 128, 256, 512, 1024),
    "episodes": (8, 16, 32, 64, 128),
    "vocabulary": (512, 4096, 32_768, 131_072),
    "width": (128, 256, 512, 1024),
    "batch": (2, 8, 32),
}
_TITLES = {"new_tokens": "response tokens", "episodes": "texts", "vocabulary": "vocabulary", "width": "width", "batch": "texts at once"}


@dataclass(frozen=True)
class Scaling:
    """What to measure.

    Attributes:
        axes: What is varied, one at a time; the rest is as in `agents.benchmark.performance.speed`.
        precision: `float32`, or `bfloat16` for mixed precision.
        repeats: Iterations of each point, after one of warm-up.
        threads: Of torch.
        out: Folder for `scaling.json` and `scaling.png`.
    """

    axes: tuple[str, ...] = tuple(AXES)
    precision: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 3
    threads: int = 2
    out: Path = Path("runs/scaling")


def main(config: Scaling) -> list[dict[str, Any]]:
    """Measure every point, print the table, write the files, and return the points."""
    unknown = sorted(set(config.axes) - set(AXES))
    if unknown:
        raise ValueError(f"axes {', '.join(unknown)}: choose from {', '.join(AXES)}")
    points = [(axis, value) for axis in config.axes for value in AXES[axis]]
    rows = []
    with bar("points", len(points), True) as shown:
        for axis, value in points:
            with fresh_pool(1) as pool:
                rows.append({"axis": axis, "value": value, **pool.submit(measure, config, axis, value).result()})
            shown.advance(note=f"{axis} {value}")
    write_json(config.out / "scaling.json", {"config": {**dataclasses.asdict(config), "out": str(config.out)}, "points": rows})
    save(draw(rows), config.out / "scaling.png")
    _print(rows)
    return rows


def measure(config: Scaling, axis: str, value: int) -> dict[str, float]:
    """Return the medians of one point, its peak memory in MiB above that of an idle process and as estimated, and its utilisation."""
    torch.set_num_threads(config.threads)
    settings: dict[str, Any] = {axis: value, "threads": config.threads, "precision": config.precision}
    if axis == "width":
        settings["heads"] = value // 64
    speed = Speed(**settings)
    idle = resident_mib()
    model = make_ours(speed)
    iterate(model)
    rows = [iterate(model) for _ in range(config.repeats)]
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    memory = peak_mib() - idle
    tokens = speed.episodes * speed.new_tokens
    peak = matmul_peak(config.precision)
    return {
        **medians,
        "tokens_per_second": tokens / medians["seconds"],
        "memory_mib": memory,
        "estimate_mib": 0.0 if model.memory is None else model.memory.total / 2**20,
        "peak_gflops": peak / 1e9,
        "utilisation": update_operations(speed) / medians["update_seconds"] / peak,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    head = ("", "", "rollout", "reference", "update", "tokens/s", "memory", "estimate", "of peak")
    cells = []
    for row in rows:
        seconds = [f"{row[f'{part}_seconds']:.2f}" for part in ("rollout", "reference", "update")]
        more = (
            f"{row['tokens_per_second']:,.0f}",
            *(f"{row[key]:,.0f} MiB" for key in ("memory_mib", "estimate_mib")),
            f"{row['utilisation']:.0%}",
        )
        cells.append([_TITLES[row["axis"]], f"{row['value']:,}", *seconds, *more])
    Console(width=110).print(terminal_table(head, cells, "Seconds per iteration of TextPPO"))


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draw seconds and memory along each axis."""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = new_figure(2.4 * len(axes_names))
    panels = figure.subplots(len(axes_names), 2, squeeze=False)
    for name, (left, right) in zip(axes_names, panels, strict=True):
        own = [row for row in rows if row["axis"] == name]
        x = [row["value"] for row in own]
        for index, part in enumerate(("rollout", "update", "reference")):
            left.loglog(x, [row[f"{part}_seconds"] for row in own], **look(index), label=part, markersize=4)
        right.plot(x, [row["memory_mib"] for row in own], **look(0), markersize=4)
        right.set(xlim=(0, None), ylim=(0, None))
        right.xaxis.set_major_locator(MaxNLocator(5))
        left.set_xticks(x, [str(v) for v in x])
        left.minorticks_off()
        for panel, label in ((left, "seconds"), (right, "peak memory, MiB")):
            dress(panel, _TITLES[name], label)
            panel.tick_params(axis="x", labelsize=6.5)
    panels[0][0].legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Scaling))
