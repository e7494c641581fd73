"""Two processes that train one policy against one: `python -m agents.benchmark.performance.data_parallel`.

Whole iterations (rollout, reference pass, update) of PPO in the setting of `agents.benchmark.performance.speed`, one thread a process.
The two are started in turn, so that a machine whose speed drifts favours neither; figures are medians over the iterations of all turns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from textrl_env.utils.files import plain, write_json

from ...algorithms.policy_gradient import TextPolicyGradient
from ...distributed.process_group import ranks
from ...reports.tables import terminal_table
from .speed_workload import Speed, _env, _policy_kwargs, iterate


@dataclass(frozen=True)
class RanksSpeed:
    """What to measure.

    Attributes:
        speed: Model, texts and update; `repeats` are the iterations of a turn, after one of warm-up; one thread whatever it says.
        ranks: Processes that train together.
        turns: How often each of the two is started.
        out: JSON file to write.
    """

    speed: Speed = field(default_factory=lambda: Speed(repeats=4))
    ranks: int = 2
    turns: int = 2
    out: Path | None = None


def main(config: RanksSpeed) -> dict[str, Any]:
    """Time both, print a table, and return the figures."""
    rows: dict[int, list[dict[str, float]]] = {1: [], config.ranks: []}
    for _ in range(config.turns):
        for size in rows:
            rows[size] += _turn(config.speed, size)
    tokens = config.speed.episodes * config.speed.new_tokens
    figures: dict[str, Any] = {"config": plain(dataclasses.asdict(config)), "cpus": os.cpu_count()}
    for size, seen in rows.items():
        median = {key: statistics.median(row[key] for row in seen) for key in seen[0]}
        spread = [tokens / max(row["seconds"] for row in seen), tokens / min(row["seconds"] for row in seen)]
        figures[str(size)] = {**median, "tokens_per_second": tokens / median["seconds"], "range": spread, "iterations": len(seen)}
    figures["ratio"] = figures[str(config.ranks)]["tokens_per_second"] / figures["1"]["tokens_per_second"]
    _print(figures, list(rows))
    if config.out is not None:
        write_json(config.out, figures)
    return figures


def _turn(speed: Speed, size: int) -> list[dict[str, float]]:
    """Start processes that iterate, and return the seconds of each iteration."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "settings.json", Path(folder) / "rows.json"
        settings.write_text(json.dumps(plain(dataclasses.asdict(speed))), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m", __spec__.name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEXTRL_RANKS_BENCHMARK": folder}
        subprocess.run([sys.executable, *launch], check=True, env=environment, stderr=subprocess.DEVNULL)
        rows: list[dict[str, float]] = json.loads(out.read_text(encoding="utf-8"))
        return rows


def _iterations(folder: Path) -> None:
    """Iterate as one of the processes; the first leaves the seconds."""
    torch.set_num_threads(1)
    speed = Speed(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    model = TextPolicyGradient(
        "TransformerPolicy", _env(speed), estimator="gae", n_episodes=speed.episodes, batch_size=speed.batch, n_epochs=speed.epochs,
        whiten_advantages=True, policy_kwargs=_policy_kwargs(speed, speed.precision), seed=0, device="cpu",
    )  # fmt: skip
    rows = []
    for _ in range(1 + speed.repeats):
        ranks().wait()
        rows.append(iterate(model))  # type: ignore[arg-type]  # learns and logs as TextPPO does
    if ranks().is_main:
        (folder / "rows.json").write_text(json.dumps(rows[1:]), encoding="utf-8")


def _print(figures: dict[str, Any], sizes: list[int]) -> None:
    cells = []
    for size in sizes:
        row = figures[str(size)]
        seconds = (row[f"{part}seconds"] for part in ("rollout_", "reference_", "update_", ""))
        cells.append((str(size), *(f"{s:.2f}" for s in seconds), *(f"{t:.0f}" for t in (row["tokens_per_second"], *row["range"]))))
    head = ("processes", "rollout", "reference", "update", "iteration", "tokens/s", "from", "to")
    title = "Seconds per iteration, one thread a process"
    Console().print(terminal_table(head, cells, title, texts=0, caption=f"ratio {figures['ratio']:.2f}x"))


if __name__ == "__main__":
    if "TEXTRL_RANKS_BENCHMARK" in os.environ:
        _iterations(Path(os.environ["TEXTRL_RANKS_BENCHMARK"]))
    else:
        main(tyro.cli(RanksSpeed))
