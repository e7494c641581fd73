"""Results folders as `textrl bench` leaves them, from a seeded generator."""

import json

import numpy as np
import yaml

AGENTS = ("ppo", "rloo", "grpo", "dpo", "best-of-n", "random", "my_package.agents:Mine:width=64")
MANIFEST = {
    "versions": {"textrl-env": "0.1.0", "torch": "2.13"}, "config": {}, "seed": 0, "git": "abc1234", "warnings": [],
    "hardware": {"cpu": "Test <CPU>", "cores": 2, "gpu": None, "platform": "Linux"}, "began": "2026-11-24T12:00:00+00:00",
}  # fmt: skip


def cell(task, agent, seed, score, **changed):
    curve = [{"tokens": 100 * i, "seconds": 0.1 * i, "reward": score * i / 5, "score": score * i / 5, "kl": 0.1 * i} for i in range(1, 6)]
    measures = {"value": score, "reference_value": 0.0, "optimum": 1.0, "reward": score, "kl_per_sequence": 1.5, "seconds": 3.0}
    return {
        "task": task, "agent": agent, "seed": seed, "budget": 20_000, "fingerprint": "0" * 16, "status": "done", "error": None,
        "score": score, "measures": measures, "finish_reasons": {"eos": 1.0}, "curve": curve if agent in ("ppo", "rloo", "grpo") else [],
        "samples": [{"prompt": "a <b>prompt</b>", "response": " <script>alert(1)</script>", "reward": 0.5}], "manifest": MANIFEST,
    } | changed  # fmt: skip


def write(folder, cells, **config):
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for row in cells:
        name = f"{row['task']}--{row['agent'].replace(':', '_')}--{row['seed']}.json"
        (folder / "cells" / name).write_text(json.dumps(row))
    settings = {"suite": "diagnostic", "preset": "quick", "agents": [], "tasks": [], "seeds": 3, "tokens": None, "texts": 256, "out": "x"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | config))
    return folder


def grid(tasks=20, seeds=3, agents=AGENTS, better=0.0):
    rng = np.random.default_rng(0)
    return [
        cell(f"task{t:02d}", agent, seed, float(0.8 - 0.12 * rank + better + rng.normal(0, 0.03)))
        for t in range(tasks)
        for rank, agent in enumerate(agents)
        for seed in range(seeds)
    ]
