"""The frontier of numbers that are known: interpolation by hand, and claims only where intervals separate."""

import numpy as np
import pytest

from agents.benchmark.frontier import draw, families_of, gold_at
from agents.benchmark.results import read_results
from agents.cli.main import main
from tests.figures import check_labels, legend_texts

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
    figure = draw(families_of(read_results(tmp_path)))
    check_labels(figure)
    (axes,) = figure.axes
    assert axes.get_xscale() == "function" and axes.get_xlim()[0] == 0
    assert legend_texts(axes) == ["best-of-n, at its KL bound", "best-of-n", "dpo", "grpo", "ppo"]
    drawn = dict(zip(legend_texts(axes)[1:], axes.containers, strict=True))
    np.testing.assert_allclose(drawn["ppo"].lines[0].get_xydata(), [(2, 0.5), (6, 0.9)])
    np.testing.assert_allclose(axes.lines[-1].get_xydata(), [(np.log(2) - 1 / 2, 0.1), (np.log(3) - 2 / 3, 0.2)])  # n = 2 and 3
    kl, gold = drawn["dpo"].lines[2]
    for setting, (x, y) in enumerate(far):
        assert np.unique(kl.get_segments()[setting][:, 0]).tolist() == [x]  # the same KL for every seed
        (_, low), (_, high) = gold.get_segments()[setting]
        assert y - 0.02 <= low < y < high <= y + 0.02
    assert (tmp_path / "f.png").is_file()


def test_runs_that_are_left_out_are_counted(tmp_path):
    rows = sweep("ppo", [(2.0, 0.5), (6.0, 0.9)]) + sweep("dpo", [(1.0, 0.1)])
    rows[3] |= {"status": "diverged", "measures": {}}
    rows[10:] = [row | {"status": "diverged", "measures": {}} for row in rows[10:]]
    cells.write(tmp_path, rows)
    assert main(["bench", "frontier", str(tmp_path), "--out", str(tmp_path / "f.png")]) == 0
    table = [line.strip("| ").split(" | ") for line in (tmp_path / "f.md").read_text().splitlines() if line.startswith("| ")]
    assert [(row[0], row[-1]) for row in table[2:]] == [("ppo:beta=2", "4 of 5"), ("ppo:beta=3", "5 of 5"), ("dpo:beta=2", "0 of 5")]


def test_a_frontier_is_of_one_task(tmp_path, capsys):
    cells.write(tmp_path, cells.grid(tasks=2))
    assert main(["bench", "frontier", str(tmp_path)]) == 2
    assert "holds 2 tasks" in " ".join(capsys.readouterr().err.split())
