"""`textrl reward report`."""

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import rewards
from agents.cli.main import main
from rewards import Preference, write_preferences
from rewards.fitting.reward_evaluation import JudgedComparisons, doubts, measures
from rewards.utils.intervals import wilson
from textrl_env import Episode

from .transcripts import write


@pytest.fixture(scope="module", params=["pairs.jsonl", pytest.param("pairs.jsonl.gz", marks=pytest.mark.slow)])
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
    assert (facts["accuracy"]["low"], facts["accuracy"]["high"]) == pytest.approx(
        (interval.low, interval.high), abs=1e-3
    )  # a few prompts have two
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
        good, bad = f" <b>fine</b> {i}", f" poor {i}"
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


def run(folder, pairs, *flags):
    """The facts that a report on these comparisons leaves."""
    write_preferences(folder / "pairs.jsonl", pairs)
    assert main(["reward", "report", str(folder / "pairs.jsonl"), "--out", str(folder / "out"), *flags]) == 0
    return json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.reports("A report's test comparisons share no text with the training ones: what is learned by heart does not count")
def test_a_leak_is_planted_and_caught(tmp_path, capsys):
    rng = np.random.default_rng(0)
    texts = [" " + " ".join(rng.choice([f"w{i}" for i in range(60)], 6)) for _ in range(200)]
    worth = rng.normal(0, 1, 200)  # of each text by itself: no word tells it
    drawn = [sorted(rng.choice(200, 2, replace=False), key=worth.__getitem__) for _ in range(800)]
    facts = run(tmp_path, [Preference("Which is better?", texts[b], texts[a]) for a, b in drawn])
    assert facts["accuracy"]["low"] < 0.5 and facts["accuracy"]["rate"] < 0.65
    counts = facts["counts"]
    assert counts["train"] + counts["test"] + counts["left_out"] == 800 and counts["left_out"] > 100
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No text is on both sides, but prompts are" in page and f"{counts['left_out']} are left out" in page
    out = " ".join(capsys.readouterr().out.split())
    assert f"{counts['left_out']} comparisons are left out" in out and "The interval holds 50%" in out


@pytest.mark.reports("Comparisons of a test file that share a text or a prompt with the training file are left out and counted")
def test_a_test_file_is_checked_against_the_training_file(tmp_path, capsys):
    train = [Preference("", f" fine w{i}", f" poor w{i}") for i in range(100)]
    test = [Preference("", f" fine v{i}", f" poor v{i}") for i in range(30)]
    leaks = [Preference("", f" FINE  w{i}", f" poor u{i}") for i in range(7)]
    write_preferences(tmp_path / "test.jsonl", [*leaks, *test])
    facts = run(tmp_path, train, "--test-file", str(tmp_path / "test.jsonl"))
    assert (facts["counts"]["train"], facts["counts"]["test"], facts["counts"]["left_out"]) == (100, 30, 7)
    assert facts["accuracy"]["num"] == 30 and "7 comparisons are left out" in capsys.readouterr().out
    for flags, message in ((["--test", "0.3"], "leave one of them out"), ([], "all 7 comparisons share a text")):
        write_preferences(tmp_path / "test.jsonl", leaks)
        assert main(["reward", "report", str(tmp_path / "pairs.jsonl"), "--test-file", str(tmp_path / "test.jsonl"), *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.reports("Where one text is in all comparisons, a report is refused instead of calling any of them unseen")
def test_nothing_can_be_kept_aside(tmp_path, capsys):
    write_preferences(tmp_path / "pairs.jsonl", [Preference("", " the hub", f" b{i}") for i in range(80)])
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "80 comparisons hang together by texts that they share" in " ".join(capsys.readouterr().err.split())


@pytest.mark.reports("A report compares the model with taking the longer or the shorter response, whichever wins more often")
def test_length_is_checked_both_ways(tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    pairs = []
    for _ in range(400):
        short, long = (" " + " ".join(rng.choice(words, n)) for n in (4, 12))
        pairs.append(Preference("", short, long))
    facts = run(tmp_path, pairs)
    assert facts["length_rule"] == {"takes": "shorter", "rate": 1.0} and facts["longer_wins"] == 0.0
    out = " ".join(capsys.readouterr().out.split())
    assert "always taking the shorter response gives 100.0%" in out and facts["doubts"][0] in out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "taking the shorter response gives 100.0%" in page and facts["doubts"][0] in page
    noisy = [Preference("", p.chosen, p.rejected) if rng.random() < 0.8 else Preference("", p.rejected, p.chosen) for p in pairs]
    facts = run(tmp_path, noisy, "--overwrite")
    assert facts["length_rule"]["rate"] == pytest.approx(0.8, abs=0.1) and len(facts["doubts"]) == 1


def test_doubts_are_true_sentences():
    def of(low, high, rate, takes="longer"):
        return doubts({"accuracy": {"low": low, "high": high}, "length_rule": {"takes": takes, "rate": rate}})

    assert of(0.7, 0.8, 0.6) == []
    assert of(0.7, 0.8, 0.75) == ["The interval holds what length alone gives: the model may have learned little else."]
    assert of(0.65, 0.7, 0.726, "shorter") == ["Always taking the shorter response is right more often than the model."]
    assert of(0.45, 0.55, 0.52) == ["The interval holds 50%: this file has not taught the model anything that can be shown."]
    assert of(0.2, 0.3, 0.5)[0] == "The interval lies below 50%: the model prefers what people reject."


@pytest.mark.reports("A label that is a probability counts as one in the calibration, and a tie as one half")
def test_calibration_with_soft_labels_by_hand():
    odds = np.log([7 / 3, 7 / 3, 7 / 3, 1.0])  # probabilities of 0.7, and of one half for the tie
    pairs = [Preference("", " long", " s", label) for label in (0.6, 0.8, 0.7, 0.5)]
    found = measures(JudgedComparisons(pairs, odds, np.full(4, 3)), temperature=2.0)
    assert found["calibration_error"] == pytest.approx(0)  # taken for certain, the labels would be 0.3 off
    flatter = 1 / (1 + np.exp(-odds[0] / 2))
    assert found["calibration_error_with_temperature"] == pytest.approx(0.75 * (0.7 - flatter))
    assert found["accuracy"]["num"] == 3 and found["longer_wins"] == 1.0


@pytest.mark.reports("A label within 0.01 of one half is a tie")
def test_near_ties(tmp_path):
    near = [Preference("", f" fine a{i}", f" poor b{i}", 0.5000009 if i % 2 else 0.5099) for i in range(100)]
    facts = run(tmp_path, [*near, *(Preference("", f" fine {i}", f" poor {i}", 0.51) for i in range(300))])
    assert facts["counts"]["ties"] == 100 and facts["counts"]["test_decided"] == facts["accuracy"]["num"] < facts["counts"]["test"] == 80


@pytest.mark.reports("Rows that cannot be read are told with their reasons in the terminal; where most cannot, nothing is reported")
def test_skipped_rows_are_told(tmp_path, capsys):
    rows = [{"prompt": "", "chosen": f" fine {i}", "rejected": f" poor {i}"} for i in range(120)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({**row, **({"preference": "B"} if i < 40 else {})}) + "\n" for i, row in enumerate(rows)))
    assert main(["reward", "report", str(file), "--out", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "40 of 120 rows could not be read (40: 'preference' is not a number in [0, 1], or one of tie" in out
    assert "line 1: 'preference' is 'B'" in out
    file.write_text("".join(json.dumps({**row, **({"preference": "B"} if i < 61 else {})}) + "\n" for i, row in enumerate(rows)))
    assert main(["reward", "report", str(file), "--out", str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "61 of 120 rows could not be read" in error and "Most of the file is not read" in error
    file.write_text("".join(json.dumps({**row, **({"preference": "B"} if i < 20 else {})}) + "\n" for i, row in enumerate(rows[:60])))
    assert main(["reward", "report", str(file), "--out", str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "holds 40 comparisons of different texts" in error and "20 of 60 rows could not be read" in error


def test_too_few_comparisons(tmp_path, capsys):
    write_preferences(tmp_path / "pairs.jsonl", [Preference("p", f" a{i}", f" b{i}") for i in range(20)])
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "at least 50" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_gzip(tmp_path, capsys):
    (tmp_path / "pairs.jsonl.gz").write_bytes(b"\x1f\x8b but no more")
    assert main(["reward", "report", str(tmp_path / "pairs.jsonl.gz"), "--out", str(tmp_path / "out")]) == 2
    assert "pairs.jsonl.gz" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def tiny_model(tmp_path):
    """A folder with a small transformer and its tokenizer of bytes, whose texts end with `</s>`."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, bos_token_id=None, **size)).save_pretrained(tmp_path / "model")
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return str(tmp_path / "model")


def test_a_pretrained_trunk_and_its_tokenizer(tiny_model, tmp_path, capsys):
    pairs = [Preference(f"p {i}", f" fine w{i}", f" poor w{i}") for i in range(120)]
    facts = run(tmp_path, pairs, "--trunk", tiny_model, "--epochs", "1", "--max-tokens", "32")
    assert facts["model"] == "n-grams and a transformer" and facts["accuracy"]["low"] > 0.8
    saved = json.loads((tmp_path / "out" / "reward" / "preference.json").read_text())
    assert (saved["trunk"]["vocab_size"], saved["trunk"]["hidden_size"], saved["eos_token"]) == (257, 16, "</s>")
    model = rewards.make("preference", path=tmp_path / "out" / "reward")
    good, bad = model.score([Episode.from_text("p", " fine w"), Episode.from_text("p", " poor w")])
    assert good > bad
    again = ["reward", "report", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--max-tokens", "32"]
    for flags, message in (
        (["--epochs", "2"], "--epochs is for the transformer of --trunk"),
        (["--trunk", tiny_model, "--epochs", "2"], "settings"),
        (["--trunk", str(tmp_path / "none"), "--out", str(tmp_path / "new")], "no tokenizer file at"),
    ):
        assert main([*again, *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_reward_is_judged_by_right_and_wrong_answers(tmp_path, capsys):
    """RewardBench 2's form: the length of a text as its reward, by subset; answers are scored once."""
    rows = [
        {"id": str(n), "prompt": "q", "chosen": ["one two"], "rejected": ["one", "two", "one two three" if n < 2 else "three"],
         "num_correct": 1, "subset": "Math" if n < 2 else "Focus"} for n in range(5)
    ]  # fmt: skip
    rows += [
        {"id": f"{kind}:1", "prompt": "q", "chosen": ["a b"] * n, "rejected": ["a"], "subset": "Ties"}
        for kind, n in (("ref", 1), ("tied", 2))
    ]
    file, out = tmp_path / "bench.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["reward", "report", str(file), "--out", str(out)]
    assert main([*command, "--reward", "length", "--by", "subset"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    facts = json.loads((out / "report.json").read_text())
    assert [(row["part"], row["rate"], row["num"]) for row in facts["parts"]] == [
        ("Focus", 1, 3),
        ("Math", 0, 2),
        ("Ties", pytest.approx(1.01), 2),
    ]
    assert facts["mean"] == pytest.approx(2.01 / 3) and facts["chance"] == pytest.approx((5 / 4 + 1 / 2 + 2 / 3) / 7)
    assert "mean of the parts 67.0%; always taking the longest answer gives" in told and "ties, score: 1.010" in told
    assert "Ties" in (out / "report.html").read_text()
    scored = (out / "scores.jsonl").stat().st_mtime_ns
    assert [len(json.loads(line)["scores"]) for line in (out / "scores.jsonl").read_text().splitlines()] == [4] * 5 + [2, 3]
    assert main([*command, "--reward", "length"]) == 0 and (out / "scores.jsonl").stat().st_mtime_ns == scored
    assert json.loads((out / "report.json").read_text())["parts"][0]["num"] == 7
    assert main([*command, "--reward", "vader"]) == 2 and "holds a run with other inputs (reward:" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main([*command, "--reward", "length", "--epochs", "2"]) == 2 and "leave out --epochs" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 2 and "lists of right and wrong answers" in " ".join(capsys.readouterr().err.split())


def test_subgroups_are_listed_by_a_column(tmp_path, capsys):
    file = write(tmp_path / "pairs.jsonl")
    rows = [{**json.loads(line), "topic": "ab"[i % 2]} for i, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:400])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["reward", "report", str(file), "--out", str(tmp_path / "out"), "--by", "colour"]) == 2
    assert "--by colour: a column of 2 to 20 different short texts is needed; there are topic" in " ".join(capsys.readouterr().err.split())
    assert main(["reward", "report", str(file), "--out", str(tmp_path / "out"), "--by", "topic"]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    for row in facts["groups"]["topic"]:
        assert re.search(rf"{row['part']} +{row['rate']:.1%} +\[{row['low']:.1%}, {row['high']:.1%}\] +{row['num']}", told)
