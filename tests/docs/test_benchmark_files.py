"""The files of docs/benchmark: what is written of a full run, and that tables in the documents are of the stored scores."""

import csv
import importlib.util
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, trim_mean

from agents.benchmark.report import summarise
from agents.benchmark.results import CURRENT, read_results
from tests.agents.benchmark import cells

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn():
    spec = importlib.util.spec_from_file_location("draw_benchmark", ROOT / "docs" / "draw_benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored_rows(name):
    with (ROOT / "docs" / "benchmark" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_run(drawn, tmp_path):
    agents = ("ppo:tuned=true", "ppo", "random")
    rows = [
        cells.cell(task, agent, seed, score + seed / 7, manifest=cells.MANIFEST | {"config": {"texts": 64}})
        for task in ("lock", "modes", "exact-needle")
        for agent, score in zip(agents, (0.5, 0.3, -0.4), strict=True)
        for seed in range(3)
    ]
    folder = cells.write(tmp_path / "run", rows, tuned="tuned.json")
    record = {"task": "", "agent": "", "fingerprint": "0" * 16, "settings": "", "given": ""}
    (folder / CURRENT).write_text(json.dumps({path.stem: record for path in (folder / "cells").iterdir()}))
    (tmp_path / "docs").mkdir()
    drawn.write_files(folder, tmp_path / "docs")
    names = {"scores.csv", "table.md", "leaderboard.md", "cells.tar.xz", "intervals.png", "comparisons.png", "profiles.png"}
    assert {path.name for path in (tmp_path / "docs").iterdir()} == names
    with tarfile.open(tmp_path / "docs" / "cells.tar.xz") as archive:
        archive.extractall(tmp_path / "again", filter="data")
    was, now = (summarise(read_results(path)) for path in (folder, tmp_path / "again"))
    assert now["total"] == was["total"] and now["runs"] == was["runs"]
    one = next((tmp_path / "again" / "cells").glob("lock--ppo--1*"))
    assert json.loads(one.read_text())["score"] == 0.3 + 1 / 7  # all digits


def test_tables_by_hand(drawn, tmp_path):
    rows = [["lock", "ppo", s, 0.3 + s / 10] for s in range(3)] + [["lock", "ppo:tuned=true", s, 0.9 + s / 10 - s / 7] for s in range(3)]
    rows += [["lock", "rloo", s, 0.1] for s in range(3)]
    exact = [["exact-needle", agent, s, 5.0, 0.5 + s / 10] for agent in ("ppo", "ppo:tuned=true") for s in range(3)]
    exact += [["exact-needle", "rloo", s, 4.0, ""] for s in range(3)]
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["task", "agent", "seed", "score", "of_best_score"], *([*row, ""] for row in rows), *exact])
    found = drawn.stored(tmp_path / "scores.csv")
    # of three runs all count for an interquartile mean; Student's t of 2 degrees is 4.303, and the standard error of .3, .4, .5 is .0577
    lines = drawn.totals(found).splitlines()[2:]
    assert lines[0].startswith("| ppo | 0.86 [") and "| 0.40 [0.15, 0.65] | 0.457 [0.102, 0.812] |" in lines[0]
    assert lines[1] == "| rloo | - | 0.10 [0.10, 0.10] | - |"
    assert drawn.differences(found).splitlines()[2].startswith("| rloo - ppo | -0.757 [")
    assert "| -0.300 [-0.548, -0.052] |" in drawn.differences(found)
    assert "| defaults | less than 0.5 | lock 0.40 |" in drawn.solved(found)
    assert "| tuned | at least 0.8 | exact-needle 5.00, lock 0.86 |" in drawn.solved(found)
    assert drawn.short(found).splitlines()[3] == "| rloo | - | 0.10 [0.10, 0.10] |"
    # on lock +.6, .457, .314, whose standard error is .0825; on exact-needle nothing
    assert drawn.tuning(found).splitlines()[2:] == ["| ppo | 0.457 [0.102, 0.812] | - | lock +0.46 |"]
    assert "| ppo, tuned | 5.00 / 0.60 |" in drawn.exact(found) and "| rloo | 4.00 / - |" in drawn.exact(found)
    document = "a\n<!-- benchmark:totals -->\nold\n<!-- /benchmark -->\nb"
    assert drawn.marked("totals", document) == "old"
    with pytest.raises(ValueError, match="benchmark:exact"):
        drawn.marked("exact", document)


def test_tables_in_the_documents_are_of_the_stored_scores(drawn):
    found, shown = drawn.stored(), 0
    for path in map(ROOT.joinpath, drawn.DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- benchmark:(\w+) -->", text):
            assert drawn.marked(name, text) == drawn.TABLES[name](found), (path.name, name)
            shown += 1
    assert shown == 7


def test_the_headline_by_another_implementation(drawn):
    """Interquartile means of the README's table from the file of scores, by scipy; means of 10 seeds on 18 tasks."""
    rows = stored_rows("scores")
    assert set(Counter((row["task"], row["agent"]) for row in rows).values()) == {10}
    rows = [row for row in rows if not row["task"].startswith("exact-")]
    assert len({row["task"] for row in rows}) == 18
    agents = {row["agent"] for row in rows}
    values = {agent: trim_mean([float(row["score"]) for row in rows if row["agent"] == agent], 0.25) for agent in agents}
    table = drawn.marked("short", (ROOT / "README.md").read_text(encoding="utf-8")).splitlines()[2:]
    shown = {agent: cells for agent, *cells in (line.strip("| ").split(" | ") for line in table)}
    assert len(shown) == 9
    for agent, (tuned, plain) in shown.items():
        agent = agent.replace("best-of-8", "best-of-n")
        assert plain.split()[0] == f"{values[agent]:.2f}"
        assert tuned == "-" or tuned.split()[0] == f"{values[f'{agent}:tuned=true']:.2f}"


def test_the_archive_and_the_leaderboard_name_files_of_the_repository():
    with tarfile.open(ROOT / "docs" / "benchmark" / "cells.tar.xz", "r|xz") as archive:  # up to the first files only
        config = next(archive.extractfile(member).read().decode() for member in archive if member.name == "config.yaml")
    paths = dict(line.split(": ", 1) for line in config.splitlines() if line.startswith(("tuned", "out")))
    assert paths == {"tuned": "docs/benchmark/tuned.json", "out": "runs/full"}
    told = re.findall(r"--tuned (\S+)", (ROOT / "docs" / "benchmark" / "leaderboard.md").read_text(encoding="utf-8"))
    assert len(told) == 7 and set(told) == {paths["tuned"]}


def test_agents_of_other_libraries_are_of_the_stored_scores():
    """Each cell of the table is a mean of ten seeds with Student's interval."""
    scores = {}
    for row in stored_rows("others") + stored_rows("scores"):
        scores.setdefault((row["agent"], row["task"]), []).append(row["score"])
    names = {"SB3's PPO": "bench_agents:SB3PPO", "sb3-contrib's QRDQN": "bench_agents:ContribQRDQN", "PPO": "ppo", "RLOO": "rloo"}
    names |= {"TorchRL's REINFORCE": "bench_agents:TorchRLReinforce", "random": "random", "best-of-8": "best-of-n"}
    part = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").split("## Agents of other libraries")[1].split("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
    assert {agent for agent, *_ in table} == names.keys()
    for agent, *shown in table:
        for task, cell in zip(("lock", "modes", "persona"), shown, strict=True):
            own = np.array(scores[names[agent], task], float)
            half = t.ppf(0.975, 9) * own.std(ddof=1) / np.sqrt(10)
            assert len(own) == 10
            assert re.findall(r"-?\.\d\d", cell) == [
                f"{x:.2f}".replace("0.", ".") for x in (own.mean(), own.mean() - half, own.mean() + half)
            ]
