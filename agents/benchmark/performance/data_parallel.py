"""Several processes that train one policy, with DDP and with FSDP2, against one: `python -m agents.benchmark.performance.data_parallel`.

Whole iterations (rollout, reference pass, update) of PPO in the setting of `agents.benchmark.performance.speed`, one thread a process.
They are started in turn, so that a machine whose speed drifts favours none; figures are medians and minima over all iterations.
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

_PARTS = ("rollout_seconds", "reference_seconds", "update_seconds", "seconds")


@dataclass(frozen=True)
class RanksSpeed:
    """What to measure.

    Attributes:
        speed: Model, texts and update; `repeats` are the iterations of a turn, after one of warm-up; one thread whatever it says.
        ranks: Processes that train together.
        turns: How often each of the three is started.
        out: JSON file to write.
    """

    speed: Speed = field(default_factory=lambda: Speed(repeats=4))
    ranks: int = 2
    turns: int = 2
    out: Path | None = None


def main(config: RanksSpeed) -> dict[str, Any]:
    """Time all, print a table, and return the figures."""
    contenders = {"1": (1, False), "DDP": (config.ranks, False), "FSDP2": (config.ranks, True)}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(config.turns):
        for name, how in contenders.items():
            rows[name] += _turn(config.speed, *how)
    tokens = config.speed.episodes * config.speed.new_tokens
    figures: dict[str, Any] = {"config": plain(dataclasses.asdict(config)), "cpus": os.cpu_count()}
    for name, seen in rows.items():
        median = {key: statistics.median(row[key] for row in seen) for key in seen[0]}
        least = {f"least_{key}": min(row[key] for row in seen) for key in seen[0]}
        spread = [tokens / max(row["seconds"] for row in seen), tokens / min(row["seconds"] for row in seen)]
        figures[name] = {**median, **least, "tokens_per_second": tokens / median["seconds"], "range": spread, "iterations": len(seen)}
    figures["ratios"] = {name: figures[name]["tokens_per_second"] / figures["1"]["tokens_per_second"] for name in rows}
    least = {name: figures[name]["least_update_seconds"] for name in rows}
    figures["update_ratios"] = {name: least["1"] / least[name] for name in rows}
    _print(figures, list(rows))
    if config.out is not None:
        write_json(config.out, figures)
    return figures


def _turn(speed: Speed, size: int, shard: bool) -> list[dict[str, float]]:
    """Start processes that iterate, and return the seconds of each iteration."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "settings.json", Path(folder) / "rows.json"
        settings.write_text(json.dumps(plain(dataclasses.asdict(speed))), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m", __spec__.name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEXTRL_RANKS_BENCHMARK": folder, "ACCELERATE_USE_FSDP": str(shard).lower()}
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


def _print(figures: dict[str, Any], names: list[str]) -> None:
    cells = []
    for name in names:
        row = figures[name]
        seconds = (f"{row[part]:.2f} ({row[f'least_{part}']:.2f})" for part in _PARTS)
        cells.append((name, *seconds, *(f"{speed:.0f}" for speed in (row["tokens_per_second"], *row["range"]))))
    head = ("processes", "rollout", "reference", "update", "iteration", "tokens/s", "from", "to")
    ratios = [", ".join(f"{name} {ratio:.2f}x" for name, ratio in figures[key].items()) for key in ("ratios", "update_ratios")]
    title = "Seconds per iteration, medians (and minima), one thread a process"
    Console().print(terminal_table(head, cells, title, texts=0, caption=f"iteration {ratios[0]}; update, by minima {ratios[1]}"))


if __name__ == "__main__":
    if "TEXTRL_RANKS_BENCHMARK" in os.environ:
        _iterations(Path(os.environ["TEXTRL_RANKS_BENCHMARK"]))
    else:
        main(tyro.cli(RanksSpeed))
