"""How far DPO goes: which pairs an arm keeps, and the table of what was found."""

import json

import numpy as np
import pytest

from agents.algorithms.dpo import Pair
from agents.benchmark.studies import dpo_distance as study
from agents.benchmark.studies.dpo_distance import Distance, _kept, main
from agents.models.sequences import TextRecord


def pair(chosen, rejected):
    return Pair(*(TextRecord(np.array([1]), np.ones(length, int), 0) for length in (chosen, rejected)))


def test_which_half_of_the_pairs_is_kept():
    pairs = [(pair(5, 1), 0.5), (pair(2, 2), 0.1), (pair(3, 4), 0.9), (pair(1, 9), 0.7)]
    assert _kept(pairs, "all") == pairs
    assert _kept(pairs, "margin") == [pairs[2], pairs[3]]
    assert _kept(pairs, "length") == [pairs[1], pairs[2]]


def test_what_was_found_is_summed_up_and_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "base_policy", lambda *_, **__: None)
    monkeypatch.setattr(study, "learned_reward", lambda *_: None)
    config = Distance(seeds=2, arms=("as the benchmark had it", "rate 1e-3"), out=tmp_path, markdown=tmp_path / "t.md", processes=1)
    for number, arm in enumerate(config.arms):
        for beta in config.betas:
            for seed in range(2):
                row = {"steps": 90, "kl": 1.0 + number + seed, "gold": -0.5, "reward": 0.1, "right": 0.75, "h": beta, "loss": 0.5}
                row["of"] = study._inputs(config, arm)
                study._path(config, arm, beta, seed).write_text(json.dumps(row))
    rows = main(config)
    assert rows["rate 1e-3", 0.3]["kl"].tolist() == [2.0, 3.0]
    table = (tmp_path / "t.md").read_text().splitlines()
    assert table[3].startswith("| rate 1e-3 | 90 | 2.50 [-3.85, 8.85] |") and table[3].endswith("| 75% | 75% | 0.03 | 0.30 |")
    assert 2.5 + 12.706 * 0.5 == pytest.approx(8.853, abs=1e-3)  # Student's interval of two
    assert "rate 1e-3" in capsys.readouterr().out


@pytest.mark.reports("A study goes on from results of other texts and arms as if they were its own")
def test_results_of_other_texts_or_arms_are_not_its_own(tmp_path, monkeypatch):
    job, config = ("rate 1e-3", 0.3, 0), Distance(out=tmp_path)
    assert not study._done(config, *job)
    study._path(config, *job).write_text(json.dumps({"of": study._inputs(config, job[0])}))
    assert study._done(config, *job) and not study._done(Distance(out=tmp_path, texts=64), *job)
    monkeypatch.setattr(study, "ARMS", {name: study.Arm(2e-3) for name in study.ARMS})
    assert not study._done(config, *job)
