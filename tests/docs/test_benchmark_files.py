"""The files of docs/benchmark: what is written of a full run, and that tables in the documents are of the stored scores."""

import importlib.util
import json
import tarfile
from pathlib import Path

import pytest

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


def test_the_files_of_a_run(drawn, tmp_path, capsys):
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
    drawn.main(folder, tmp_path / "docs")
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| ppo", "| random"))]
    # seeds have .5, .643 and .786 on each of the two tasks that are no exact ones, the defaults .2 less on each seed
    assert [[cell.partition(" ")[0] for cell in line] for line in lines] == [
        ["ppo", "0.64", "0.44", "0.200"],
        ["random", "-", "-0.26", "-"],
    ]
    assert lines[0][3] == "0.200 [0.200, 0.200]" and lines[0][1].endswith("]")
    names = {"scores.csv", "table.md", "leaderboard.md", "cells.tar.xz", "intervals.png", "comparisons.png", "profiles.png"}
    assert {path.name for path in (tmp_path / "docs").iterdir()} == names
    with tarfile.open(tmp_path / "docs" / "cells.tar.xz") as archive:
        archive.extractall(tmp_path / "again", filter="data")
    was, now = (summarise(read_results(path)) for path in (folder, tmp_path / "again"))
    assert now["total"] == was["total"] and now["runs"] == was["runs"]
    one = next((tmp_path / "again" / "cells").glob("lock--ppo--1*"))
    assert json.loads(one.read_text())["score"] == 0.3 + 1 / 7  # all digits
