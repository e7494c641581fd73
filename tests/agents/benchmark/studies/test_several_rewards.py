"""The study of several rewards: what is paid, by hand, and a small run of each arm."""

import numpy as np

from agents.benchmark.studies.several_rewards import ARMS, SeveralRewards, main, names, others


def test_what_is_paid():
    prompts, texts = ["3", "3", "4", "5"], ["3 2 10", "2 3", "4", ""]
    assert names(prompts, texts) == [1, 0, 1, 0]
    assert others(prompts, texts) == [12, 3, None, 0]


def test_all_arms_run(tmp_path, capsys):
    found = main(SeveralRewards(seeds=1, tokens=300, processes=1, markdown=tmp_path / "table.md"))
    assert {*found} == {*ARMS} and all(0 <= values[0, 0] <= 1 and 0 < values[0, 1] <= 75 for values in found.values())
    assert "GDPO" in capsys.readouterr().out and "| GDPO |" in (tmp_path / "table.md").read_text()
    assert np.isfinite([*found.values()]).all()
