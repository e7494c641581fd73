"""All kinds of algorithms on film reviews in small: results are kept, summed up and drawn."""

import dataclasses
import functools
import json
from concurrent.futures import Future

import numpy as np
import pytest

import agents.pipelines.demo
from agents.benchmark.studies import film_reviews as review
from agents.benchmark.studies.film_reviews import Review, main
from agents.pipelines.demo import Demo
from rewards.utils.intervals import win_rate
from textrl_env import make_task


class Inline:
    """Runs what is submitted at once, in this process."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


def small_task(*args, **kwargs):
    task = make_task(*args, **kwargs)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, steps=200))


def test_every_kind_is_trained_judged_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(review, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(review, "Demo", functools.partial(Demo, pairs=200))
    monkeypatch.setattr(agents.pipelines.demo, "HELD_OUT_PAIRS", 40)
    for module in (review, agents.pipelines.demo):
        monkeypatch.setattr(module, "make_task", small_task)
    monkeypatch.setattr(review, "STEPS", {"sft": 10, "dpo": 10, "expert-iteration": 2})
    names = ("rloo", "sft", "dpo", "expert-iteration", "best-of-8", "random")
    config = Review(names, seeds=1, tokens=800, texts=40, out=tmp_path, markdown=tmp_path / "t.md", figure=tmp_path / "f.png")
    rows = main(config)
    assert rows["random"]["wins"].high < 0.5
    assert rows["best-of-8"]["gold"] > rows["random"]["gold"]
    result = json.loads((tmp_path / "seed-0" / "dpo" / "result.json").read_text())
    assert rows["dpo"]["wins"] == win_rate(np.array(result["gold"]), np.array(result["base"]))
    assert [share for share, _ in result["curve"]] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rows["rloo"]["curves"][0][-1][0] == 1 and rows["rloo"]["kl"] > 0
    table = (tmp_path / "t.md").read_text()
    assert all(f"| {name} |" in table for name in ("base", *names)) and "f.png" in table
    assert (tmp_path / "f.png").stat().st_size > 5_000
    written = (tmp_path / "seed-0" / "rloo" / "result.json").stat().st_mtime_ns
    assert main(config) == rows  # nothing is run again
    assert (tmp_path / "seed-0" / "rloo" / "result.json").stat().st_mtime_ns == written
    assert "wins against base" in capsys.readouterr().out
