"""Agents on rated sentences in small: parts apart, figures against plain computations, nothing run twice."""

import json

import numpy as np
import pytest
from scipy import stats

from agents.benchmark.studies.film_ratings import BASE, PEOPLE, FilmRatings, SeedParts, main, tables, verdict
from rewards.utils.intervals import IntervalEstimate

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'textrl-env[judge]'")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Sentences that people like the better the more often they say good."""
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    rng, words = np.random.default_rng(0), ["the", "film", "was", "long", "and", "it", "good", "bad"]
    texts = [" ".join(rng.choice(words, 9)) + f" {i}" for i in range(200)]
    rows = [{"text": t, "ratings": (t.count("good") - t.count("bad") + rng.integers(-1, 2, 6)).tolist()} for t in texts]
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FilmRatings(
        tmp_path / "ratings.jsonl", ("best-of-n:n=4", "sft", "rloo"), 2, 600, 12, 10, tmp_path / "out", tmp_path / "table.md"
    )


def test_no_sentence_and_no_opening_serves_two_purposes(config):
    parts = SeedParts(config, 3)
    sentences = [set(parts.texts(i)) for i in range(3)]
    assert [len(part) for part in sentences] == [80, 80, 40]
    assert len(set.union(*sentences)) == 200
    opened = {" ".join(text.split()[:4]) for i in (0, 1) for text in parts.texts(i)}
    tested = [prompt.text for prompt in parts.test_prompts.prompts]
    assert tested and opened.isdisjoint(tested) and len(set(tested)) == len(tested)
    prompts, ends = parts.peoples_own()
    assert all(any(text.startswith(p + e) for text in parts.texts(2)) for p, e in zip(prompts, ends, strict=True))


@pytest.mark.slow
def test_from_ratings_to_the_table(config, capsys):
    results = main(config)
    agree, measures = results[0]["agreement"], results[0]
    parts = SeedParts(config, 0)
    means = np.array([np.mean(row["ratings"]) for row in parts.rows[2]])
    assert agree["judge, correlation"] == pytest.approx(np.corrcoef(parts.judge(parts.texts(2)), means)[0, 1])
    assert 0.5 < agree["judge, correlation"] < agree["ceiling, correlation"] < 1 and agree["sentences"] == 40
    assert agree["ceiling, correlation"] ** 2 == pytest.approx(agree["people and as many others, correlation"])
    rows = [json.loads(line) for line in (config.out / "seed-0" / "rloo.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    np.testing.assert_allclose(parts.judge([r["prompt"] + r["response"] for r in rows]), [r["judge"] for r in rows])
    assert measures["rloo"]["judge"] == pytest.approx(np.mean([r["judge"] for r in rows]))
    assert measures[BASE]["kl"] == pytest.approx(0, abs=1e-4) and measures[BASE]["tokens_written"] == 0
    assert measures["rloo"]["tokens_written"] >= 600 and measures["sft"]["tokens_written"] > 0
    assert set(measures) == {"agreement", PEOPLE, BASE, *config.agents}

    (_, _), (head, made) = tables(config, results)
    row = next(row for row in made if row[0] == "best-of-n:n=4")
    gains = [result["best-of-n:n=4"]["judge"] - result[BASE]["judge"] for result in results]
    low, high = stats.t.interval(0.95, 1, np.mean(gains), stats.sem(gains))
    assert row[2] == f"{np.mean(gains):.2f} [{low:.2f}, {high:.2f}]" and row[3] == f"{gains[0]:.2f} / {gains[1]:.2f}"
    right = np.mean([result["agreement"]["judge, pairs"] for result in results])
    assert f"right on {right:.0%} of pairs" in head[1] and head[1] in config.markdown.read_text()

    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*.json*")}
    capsys.readouterr()
    assert main(config) == results
    assert {path: path.stat().st_mtime_ns for path in before} == before and "seed 0" not in capsys.readouterr().out


def test_the_two_rises_are_put_into_words():
    up, flat, down = IntervalEstimate(1, 0.5, 1.5), IntervalEstimate(0, -0.5, 0.5), IntervalEstimate(-1, -1.5, -0.5)
    assert verdict(up, up) == "risen too"
    assert verdict(up, flat) == "nothing: its interval holds 0"
    assert verdict(up, down) == "reward hacking: the judge falls"
    assert verdict(flat, up) == verdict(down, down) == verdict(IntervalEstimate(1, np.nan, np.nan), up) == "the reward does not rise"
