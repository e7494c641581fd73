"""`textrl reward score`."""

import gzip
import json

import pytest
from PIL import Image

from agents.cli.flags import Score
from agents.cli.main import main
from agents.cli.reward_score import run_score


@pytest.fixture
def texts(tmp_path):
    rows = [{"prompt": f"number {i}", "response": " yes" * (i % 5), "answer": "yes yes", "topic": i} for i in range(600)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scores_and_histogram(texts, capsys):
    assert main(["reward", "score", '{"name": "length", "target": 4}', str(texts)]) == 0
    rows = [json.loads(line) for line in texts.with_suffix(".scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in rows] == [(i % 5) / 4 for i in range(600)]
    assert rows[7]["prompt"] == "number 7" and rows[7]["response"] == " yes yes" and rows[7]["topic"] == 7
    with Image.open(texts.with_suffix(".scores.png")) as histogram:
        assert histogram.format == "PNG"  # what it shows: tests/agents/reports/test_plots.py
    assert "0.5000" in capsys.readouterr().out  # mean and median of 0, 1/4, ..., 1


def test_references(texts, tmp_path):
    run_score(Score("exact_match", texts, ("answer",), tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in rows] == [float(i % 5 == 2) for i in range(600)]


@pytest.mark.reports("A JSON array whose columns have other names is scored with --columns")
def test_columns_of_other_names(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([{"question": "q", "reply": " yes" * i} for i in range(5)]), encoding="utf-8")
    flags = ["--columns", "prompt=question,response=reply"]
    assert main(["reward", "score", '{"name": "length", "target": 4}', str(tmp_path / "a.json"), *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["score"]) for row in rows] == [("q", i / 4) for i in range(5)]
    assert main(["reward", "score", "length", str(tmp_path / "a.json"), "--columns", "prompt=question,response=answer"]) == 2
    assert "there is no column 'answer'; it has 'question', 'reply'" in " ".join(capsys.readouterr().err.split())


def test_a_row_without_a_response_is_named(texts, capsys):
    with texts.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "number 600", "response": null, "answer": "", "topic": 0}\n')
    assert main(["reward", "score", "length", str(texts)]) == 2
    assert "row 601" in " ".join(capsys.readouterr().err.split())
    assert not texts.with_suffix(".scores.jsonl").exists()


def test_settings_from_a_file(texts, tmp_path):
    config = tmp_path / "score.yaml"
    config.write_text(f"reward: exact_match\nfile: {texts}\nreferences: [answer]\nout: {tmp_path / 'o.jsonl'}\n", encoding="utf-8")
    assert main(["reward", "score", "--config", str(config)]) == 0
    assert (tmp_path / "o.jsonl").is_file()


@pytest.mark.reports("`textrl reward score` reads the gzip files that `textrl reward report` reads")
def test_gzip(texts, tmp_path):
    zipped = tmp_path / "zipped.jsonl.gz"
    zipped.write_bytes(gzip.compress(texts.read_bytes()))
    assert main(["reward", "score", '{"name": "length", "target": 4}', str(zipped)]) == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "zipped.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores == [(i % 5) / 4 for i in range(600)]
