"""The frontier of numbers that are known: interpolation by hand, and claims only where intervals separate."""

import pytest

from agents.benchmark.frontier import families_of, gold_at
from agents.benchmark.results import read_results
from agents.cli.main import main

from . import cells


def sweep(agent, points, seeds=5, spread=0.01):
    """Return cells with (KL, gold) points, seed by seed a little apart."""
    rows = []
    for setting, (kl, gold) in enumerate(points):
        for seed in range(seeds):
            row = cells.cell("review", f"{agent}:{'n' if agent == 'best-of-n' else 'beta'}={setting + 2}", seed, 0.5)
            rows.append(row | {"measures": {"kl_per_sequence": kl, "gold": gold + spread * (seed - 2), "reward": 1.0}})
    return rows


def test_gold_is_interpolated_for_each_seed(tmp_path):
    cells.write(tmp_path, sweep("ppo", [(6.0, 1.0), (2.0, 0.2)]))
    (settings,) = families_of(read_results(tmp_path)).values()
    assert [own[0].measure("kl_per_sequence") for own in settings] == [2.0, 6.0]
    assert gold_at(settings, 4.0).value == pytest.approx(0.6)
    assert gold_at(settings, 2.0).low >= 0.18 and gold_at(settings, 7.0) is None


def test_only_separate_intervals_are_a_difference(tmp_path, capsys):
    far, near = [(2.0, 0.0), (6.0, 0.4)], [(2.0, 0.005), (6.0, 0.405)]
    rows = sweep("ppo", [(2.0, 0.5), (6.0, 0.9)]) + sweep("dpo", far) + sweep("grpo", near) + sweep("best-of-n", [(0.2, 0.1), (0.6, 0.2)])
    cells.write(tmp_path, rows)
    assert main(["bench", "frontier", str(tmp_path), "--out", str(tmp_path / "f.png")]) == 0
    text = (tmp_path / "f.md").read_text()
    assert "at 4 nats, ppo has 0.70" in text and "dpo 0.20" in text
    assert "dpo has" not in text and "grpo has" not in text  # the two overlap
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_a_frontier_is_of_one_task(tmp_path, capsys):
    cells.write(tmp_path, cells.grid(tasks=2))
    assert main(["bench", "frontier", str(tmp_path)]) == 2
    assert "holds 2 tasks" in " ".join(capsys.readouterr().err.split())
