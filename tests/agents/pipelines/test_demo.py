"""The whole loop in small: it is interrupted, goes on, and makes texts better by the annotator's true taste."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

import agents.pipelines.demo
from agents.pipelines.demo import run_demo
from agents.pipelines.flags import Demo
from agents.training.callbacks import CurveCallback
from rewards import PreferenceRewardModel
from textrl_env import Episode

from ..small_reviews import small_task


@pytest.mark.reports(
    "textrl demo refuses a finished folder with another seed or a refitted reward model; its figures do not depend on threads"
)
def test_demo_is_interrupted_goes_on_and_raises_the_gold_score(small_reviews_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(small_reviews_cache))
    monkeypatch.setattr(agents.pipelines.demo, "make_task", small_task)
    monkeypatch.setattr(agents.pipelines.demo, "HELD_OUT_PAIRS", 200)
    config = Demo(out=tmp_path / "run", pairs=800, total_tokens=11_000, n_episodes=64, batch_size=16, texts=200)
    record = CurveCallback._on_rollout_end

    def interrupted(self):
        record(self)
        if self.model.num_rollouts == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(CurveCallback, "_on_rollout_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(config)
    kept = [config.out / name for name in ("preferences.jsonl", "reward/model.safetensors", "kl/policy.zip")]
    times = [path.stat().st_mtime_ns for path in kept]
    assert not (config.out / "results.json").exists()

    monkeypatch.setattr(CurveCallback, "_on_rollout_end", record)
    torch.set_num_threads(2)
    run_demo(config)
    assert torch.get_num_threads() == 1  # of more, sums are rounded in another order
    assert [path.stat().st_mtime_ns for path in kept[:2]] == times[:2]
    rows = list(csv.DictReader((config.out / "kl" / "curve.csv").read_text().splitlines()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(rows) + 1))  # 8 rollouts, back to 5, and on
    assert float(rows[0]["kl_per_sequence"]) == pytest.approx(0, abs=1e-4)
    assert int(rows[-1]["tokens"]) >= config.total_tokens

    results = json.loads((config.out / "results.json").read_text())
    assert results["versions"]["processor"] == torch.backends.cpu.get_cpu_capability()
    tuned = results["variants"]["kl"]
    assert tuned["win_rate"]["low"] > 0.5
    texts = [json.loads(line) for line in (config.out / "texts.jsonl").read_text().splitlines()]
    gains = np.array([text["kl"]["gold"] - text["base"]["gold"] for text in texts])
    assert gains.mean() > 3 * gains.std() / np.sqrt(len(gains))
    assert tuned["gold"] - results["base"]["gold"] == pytest.approx(gains.mean())
    assert 0.5 < results["reward_model"]["held_out_accuracy"] < results["reward_model"]["best_accuracy"]
    assert "<html" in (config.out / "report.html").read_text().lower()
    assert "Gold win rate" in capsys.readouterr().out

    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run with other inputs \\(seed: 0 then, 1 now\\)"):
        run_demo(dataclasses.replace(config, seed=1))
    other = PreferenceRewardModel.load(config.out / "reward")
    other.normalise([Episode.from_text("the plot", " was good"), Episode.from_text("the plot", " was bad")])
    other.save(config.out / "reward")
    with pytest.raises(ValueError, match=r"\(reward: contents \w+ then, contents \w+ now\)"):
        run_demo(config)
    for path in (config.out / "reward").iterdir():
        path.write_bytes(before[path])
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before
