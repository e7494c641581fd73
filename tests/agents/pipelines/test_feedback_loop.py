"""Rounds of feedback: each resumable, with simulated annotators or with a study that people answer."""

import dataclasses
import html
import json
import shutil

import numpy as np
import pytest

import agents.pipelines.feedback_loop as loop_module
from agents.cli.main import main
from agents.pipelines.feedback_loop import LabelsMissingError, run_loop
from agents.pipelines.feedback_loop_report import below_chance, write_loop_report
from agents.pipelines.flags import Loop
from rewards import read_preferences
from rewards.feedback.store import FeedbackStore
from textrl_env import make_task

from ..small_reviews import small_task

SMALL = {"labels": 60, "total_tokens": 1500, "texts": 24, "n_episodes": 32}


@pytest.fixture(scope="module", autouse=True)
def small_base(small_reviews_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTRL_CACHE", str(small_reviews_cache))
        patch.setattr(loop_module, "make_task", small_task)
        yield


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    out = tmp_path_factory.mktemp("loop")
    run_loop(Loop(out=out, rounds=2, annotators=('{"flip": 0.1}', '{"temperature": 0.01}'), weigh=True, **SMALL))
    return out


def rounds(out):
    return json.loads((out / "rounds.json").read_text())


def test_every_round_leaves_what_it_did(two_rounds):
    found = rounds(two_rounds)
    task = make_task("review", split="test", prompt_order="sequential")
    for number, row in enumerate(found["rounds"], 1):
        folder = two_rounds / f"round-{number}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["round"] == number and manifest["config"]["labels"] == 60
        answers = read_preferences(folder / "preferences.jsonl")
        assert len(answers) == 60 and {a.annotator for a in answers} == {"simulated-0", "simulated-1"}
        assert row["answers"] == 60 * number and -1 <= row["alpha"] <= 1
        written = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
        base = [json.loads(line) for line in (two_rounds / "base.jsonl").read_text().splitlines()]
        prompts = [r["prompt"] for r in written]
        gold, base_gold = (task.gold(prompts, [r["response"] for r in rows]) for rows in (written, base))
        assert row["gold"] == pytest.approx(gold.mean()) and row["win_rate"]["rate"] == pytest.approx(
            np.mean((gold > base_gold) + 0.5 * (gold == base_gold))
        )
    one, two = ((two_rounds / f"round-{n}" / "pairs.jsonl").read_text() for n in (1, 2))
    assert {json.loads(line)["sources"][0] for line in one.splitlines()} == {"round-0"}
    assert {json.loads(line)["sources"][0] for line in two.splitlines()} == {"round-1"}
    assert "2 rounds of feedback" in (two_rounds / "report.html").read_text()


def test_the_same_command_does_nothing_again_and_a_changed_one_only_what_it_must(two_rounds, monkeypatch):
    before = rounds(two_rounds)
    called = []
    for name in ("write_texts", "fit_preference_model", "train_policy"):
        real = getattr(loop_module, name)
        monkeypatch.setattr(loop_module, name, lambda *a, name=name, real=real, **k: (called.append(name), real(*a, **k))[1])
    config = Loop(out=two_rounds, rounds=2, annotators=('{"flip": 0.1}', '{"temperature": 0.01}'), weigh=True, **SMALL)
    run_loop(config)
    assert rounds(two_rounds) == before and set(called) == {"train_policy"}  # which sees that it is done


@pytest.mark.reports("textrl loop refuses a finished folder with other labels or answers, names a damaged file, and leaves it as it is")
@pytest.mark.slow
def test_a_finished_loop_is_never_replaced_unasked(two_rounds):
    config = Loop(out=two_rounds, rounds=2, annotators=('{"flip": 0.1}', '{"temperature": 0.01}'), weigh=True, **SMALL)
    before = {path: path.read_bytes() for path in two_rounds.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"\(labels: 60 then, 80 now\)"):
        run_loop(dataclasses.replace(config, labels=80))
    with pytest.raises(ValueError, match=r"\(total_tokens: 1500 then, 3000 now\)"):
        run_loop(dataclasses.replace(config, total_tokens=3000))
    for name, text, says in (
        ("round-1/preferences.jsonl", "{}\n", r"\(answers: .* then, .* now\)"),
        ("round-2/stages.json", "{", "stages.json is damaged"),
        ("round-1/policy/policy.zip", "PK", r"\((policy|writer): contents"),
    ):
        (two_rounds / name).write_text(text)
        with pytest.raises(ValueError, match=says):
            run_loop(config)
        (two_rounds / name).write_bytes(before[two_rounds / name])
    run_loop(config)
    kept = {path: path.read_bytes() for path in before if path.suffix not in (".html", ".png")}
    assert kept == {path: before[path] for path in kept}


@pytest.mark.reports("textrl loop --overwrite never deletes a study that people answer")
def test_a_study_is_not_deleted(tmp_path, capsys):
    (tmp_path / "round-1" / "study").mkdir(parents=True)
    assert main(["loop", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "holds a study for people: use another --out" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "round-1" / "study").is_dir()


@pytest.mark.slow
def test_an_interrupted_loop_ends_as_an_undisturbed_one(tmp_path, two_rounds, monkeypatch):
    config = Loop(out=tmp_path, rounds=2, annotators=('{"flip": 0.1}', '{"temperature": 0.01}'), weigh=True, **SMALL)
    for name in ("_choose", "_ask_simulated", "_fit", "train_policy", "_judge"):
        real, calls = getattr(loop_module, name), []

        def interrupted(*arguments, real=real, calls=calls, **keywords):
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(loop_module, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_loop(config)
    run_loop(config)
    for one, two in zip(rounds(tmp_path)["rounds"], rounds(two_rounds)["rounds"], strict=True):
        assert one == two


@pytest.mark.slow
def test_people_answer_a_study(tmp_path):
    config = Loop(out=tmp_path, rounds=1, annotators=("people",), **{**SMALL, "labels": 20})
    with pytest.raises(LabelsMissingError, match="0 of 20 answers"):
        run_loop(config)
    folder = tmp_path / "round-1" / "study"
    store = FeedbackStore(folder)
    who = store.enter("ann")
    gold = make_task("review").gold
    while (shown := store.ask(who)) is not None:
        a, b = gold([shown.item.prompt] * 2, list(shown.item.responses))
        store.answer(who, shown.ticket, {"choice": "a" if a > b else "b" if b > a else "tie"})
    store.close()
    run_loop(config)
    (row,) = rounds(tmp_path)["rounds"]
    assert row["answers"] == 20 and row["alpha"] is None
    assert all(a.annotator == who for a in read_preferences(tmp_path / "round-1" / "preferences.jsonl"))


@pytest.mark.slow
def test_uncertainty_chooses_among_more(tmp_path):
    run_loop(Loop(out=tmp_path, rounds=2, choose="uncertain", **{**SMALL, "labels": 24}))
    assert all(len((tmp_path / f"round-{n}" / "pairs.jsonl").read_text().splitlines()) == 24 for n in (1, 2))


def test_bad_settings(tmp_path, capsys):
    assert main(["loop", "--out", str(tmp_path), "--rounds", "0"]) == 2 and "--rounds 0" in capsys.readouterr().err
    assert main(["loop", "--out", str(tmp_path), "--texts", "1"]) == 2 and "--texts 1" in capsys.readouterr().err  # no standard error
    assert main(["loop", "--out", str(tmp_path), "--annotators", "{", "--texts", "24"]) == 2
    assert main(["loop", "--out", str(tmp_path), "--annotators", '{"flip": 2}', "--labels", "20", "--texts", "24"]) == 2
    assert main(["loop", "--out", str(tmp_path), "--labels", "5"]) == 2


@pytest.mark.reports("A loop says at once and in its report when a reward model agrees with the gold score less often than chance.")
def test_a_reward_below_chance_is_said(two_rounds, tmp_path):
    row = {"round": 2, "reward_accuracy": {"rate": 0.35, "low": 0.24, "high": 0.48, "num": 60}}
    line = below_chance(row)
    assert line.startswith("round 2: the reward model agrees with the gold score on 35% [24%, 48%] of 60 pairs")
    assert "worse than chance" in line and "many answers are wrong" in line
    for accuracy in ({"rate": 0.4, "low": 0.29, "high": 0.52, "num": 60}, {"rate": 0.8, "low": 0.7, "high": 0.9, "num": 60}):
        assert below_chance({"round": 1, "reward_accuracy": accuracy}) is None
    assert below_chance({"round": 1}) is None  # a task without a gold score
    found = rounds(two_rounds)
    found["rounds"][0]["reward_accuracy"] = row["reward_accuracy"]
    (again := shutil.copytree(two_rounds, tmp_path / "again")).joinpath("rounds.json").write_text(json.dumps(found))
    page = html.unescape(write_loop_report(again).read_text())
    assert "worse than chance" in page and page.index("The gold score went from") < page.index("worse than chance") < page.index("<table>")
    for file in (again / "base.jsonl", again / "round-2" / "texts.jsonl"):  # what was written is shown
        assert all(row["response"].strip() in page for row in map(json.loads, file.read_text().splitlines()[:5]))
