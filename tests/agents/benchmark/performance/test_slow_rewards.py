"""The measurement of slow rewards, with a server that is quick."""

import pytest
import torch

from agents.benchmark.performance.slow_rewards.__main__ import SlowRewards, main


def test_all_ways_are_timed(capsys):
    threads = torch.get_num_threads()
    small = {"texts": 8, "rows": 2, "vocabulary": 12, "new_tokens": 8, "layers": 1, "width": 16, "repeats": 1}
    figures = main(SlowRewards(seconds=0.05, concurrency=(4,), **small))[4]
    torch.set_num_threads(threads)
    assert figures["scoring"] >= 0.1 and figures["waiting"] >= 4 * 0.05  # 8 texts by 4; 8 texts, at most 2 ended together
    assert figures["of the longer"] == pytest.approx(figures["overlapped"] / max(figures["writing"], figures["scoring"]))
    assert f" {figures['of the longer']:.2f} " in capsys.readouterr().out
