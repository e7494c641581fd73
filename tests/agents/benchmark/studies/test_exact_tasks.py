"""The table of exact tasks: every algorithm runs, finished runs are kept, and the statistics are right."""

import json

import pytest

from agents.benchmark.studies.exact_tasks import ALGORITHMS, Exact, main, train
from tests.slow_cases import slow_but

LATER = (  # GRPO has these three ratios too, PPO has two epochs, and all but DAPO keep full texts
    "RLOO, GSPO's ratio", "RLOO, GMPO's ratio", "RLOO, CISPO's ratio", "RLOO, two epochs", "DAPO, full texts kept",
)  # fmt: skip


@pytest.mark.parametrize("algorithm", slow_but((name for name in ALGORITHMS if name not in LATER), ALGORITHMS))
@pytest.mark.parametrize("policy", slow_but(["table"], ["table", "transformer"]))
def test_every_algorithm_runs(algorithm, policy):
    result = train(algorithm, "Smooth", seed=0, tokens=300, beta=0.2, policy=policy)
    assert result["optimum"] - result["objective"] == pytest.approx(0.2 * result["kl_to_optimum"], abs=1e-6)
    assert -2 < result["closed"] < 1 and result["of_best_score"] < 1 and json.dumps(result)


def test_it_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    config = Exact(tasks=("Prefix",), algorithms=("RLOO",), seeds=2, tokens=200, processes=1, out=tmp_path, markdown=tmp_path / "t.md")
    first = main(config)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert main(config) == first
    assert (tmp_path / "runs.jsonl").read_text().splitlines() == lines  # nothing was run again
    (tmp_path / "runs.jsonl").write_text(lines[0] + "\n")
    assert main(config) == first
    kept, again = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert kept == lines[0] and json.loads(again)["closed"] == json.loads(lines[1])["closed"]
    assert (tmp_path / "t.md").read_text().count("| RLOO |") == 3 and "RLOO" in capsys.readouterr().out
    monkeypatch.setitem(ALGORITHMS, "RLOO", ("RLOO", {**ALGORITHMS["RLOO"][1], "rate": 0.01}))
    main(config)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4  # another rate is another run
