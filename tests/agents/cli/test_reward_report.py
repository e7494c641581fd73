"""`textrl reward report`."""

import json
import re

import numpy as np
import pytest

import rewards
from agents.cli.main import main
from rewards import Preference, write_preferences
from rewards.utils.intervals import wilson
from textrl_env import Episode

from .transcripts import write


@pytest.fixture(scope="module", params=["pairs.jsonl", "pairs.jsonl.gz"])
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    file = write(folder / request.param)
    assert main(["reward", "report", str(file), "--out", str(folder / "out")]) == 0
    return folder / "out", json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def test_figures(report):
    facts = report[1]
    counts = facts["counts"]
    assert (counts["rows"], counts["skipped"], counts["identical"], counts["one_empty"]) == (2406, 0, 2, 1)
    assert counts["train"] + counts["test"] == 2404 and facts["forms"] == {"two transcripts": 2406}
    # one label in ten is wrong, so nobody can agree with more than nine tenths
    assert facts["accuracy"]["low"] < 0.9 < facts["accuracy"]["high"] + 0.03 and facts["accuracy"]["rate"] > 0.82
    assert abs(facts["longer_wins"] - 0.5) < 0.07 and abs(facts["length_correlation"]) < 0.3
    assert facts["learning_curve"][-1]["rate"] == facts["accuracy"]["rate"] > facts["learning_curve"][0]["rate"]
    assert sum(part["num"] for part in facts["by_length"]) == counts["test_decided"]
    total = sum(part["rate"] * part["num"] for part in facts["by_length"])
    assert total == pytest.approx(facts["accuracy"]["rate"] * counts["test_decided"])
    interval = wilson(total, counts["test_decided"])
    assert (facts["accuracy"]["low"], facts["accuracy"]["high"]) == pytest.approx((interval.low, interval.high))
    margins = [mistake["margin"] for mistake in facts["mistakes"]]
    assert len(margins) == 10 and margins == sorted(margins) and max(margins) < 0


def test_the_model_is_saved_and_judges_as_told(report):
    folder, facts = report
    model = rewards.make("preference", path=folder / "reward")
    start = "\n\nHuman: What is a comet?\n\nAssistant:"
    good, bad = model.score([Episode.from_text(start, " I am glad you asked."), Episode.from_text(start, " I do not care.")])
    assert good > bad + 0.5
    for mistake in facts["mistakes"]:
        if not mistake["prompt"].startswith("... "):
            one, other = model.score([Episode.from_text(mistake["prompt"], mistake[side]) for side in ("chosen", "rejected")])
            assert one < other


def test_the_page_stands_alone_and_runs_nothing(report):
    page = (report[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert f"{100 * report[1]['accuracy']['rate']:.1f}%" in page


def test_subgroups_and_a_tag_in_a_text(tmp_path):
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(600):
        kind = ("fair", "odd")[i % 2]
        good, bad = f" <b>fine</b> {rng.integers(9)}", f" poor {rng.integers(9)}"
        if kind == "odd" and rng.random() < 0.5:  # half of this group's labels are wrong
            good, bad = bad, good
        pairs.append(Preference(f"p {i}", good, bad, group=kind))
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    gap = facts["gaps"]["group"]
    assert (gap["best"], gap["worst"], gap["shown"]) == ("fair", "odd", True) and 0.3 < gap["size"] < 0.7
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "their intervals do not overlap" in page and "<b>fine" not in page and "&lt;b&gt;fine" in page


def test_too_few_comparisons(tmp_path, capsys):
    write_preferences(tmp_path / "pairs.jsonl", [Preference("p", f" a{i}", f" b{i}") for i in range(20)])
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "at least 50" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_gzip(tmp_path, capsys):
    (tmp_path / "pairs.jsonl.gz").write_bytes(b"\x1f\x8b but no more")
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl.gz"), "--out", str(tmp_path / "out")]) == 2
    assert "pairs.jsonl.gz" in " ".join(capsys.readouterr().err.split())
