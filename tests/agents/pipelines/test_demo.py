"""The whole loop in small: it is interrupted, goes on, and makes texts better by the annotator's true taste."""

import csv
import json

import numpy as np
import pytest
import torch

import agents.pipelines.demo
from agents.pipelines.demo import Demo, run_demo
from agents.training.callbacks import CurveCallback

from ..small_reviews import small_task


@pytest.mark.reports("The demo's figures do not depend on the number of threads, and the run says what they do depend on.")
def test_demo_is_interrupted_goes_on_and_raises_the_gold_score(small_reviews_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(small_reviews_cache))
    monkeypatch.setattr(agents.pipelines.demo, "make_task", small_task)
    monkeypatch.setattr(agents.pipelines.demo, "HELD_OUT_PAIRS", 200)
    config = Demo(out=tmp_path / "run", pairs=800, total_tokens=16_000, n_episodes=64, batch_size=16, texts=200)
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
