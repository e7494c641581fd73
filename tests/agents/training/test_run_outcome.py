"""What `textrl train` says at its end: figures recomputed from the texts and by transformers, reuse, interruption, leaks, and the page."""

import html
import json
import re
import shlex
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from agents import TextPPO
from agents.cli.main import main
from agents.training import run_outcome
from agents.training.outcome_report import _picture
from agents.training.run_outcome import num_eval_texts
from agents.utils.run_tree import RUN_FILES, run_tree
from textrl_env import make_task

SIZES = ["--total-tokens", "300", "--n-episodes", "16", "--batch-size", "8", "--learning-rate", "1e-2"]
TEXTS = ("texts-before.jsonl", "texts-after.jsonl")


@pytest.fixture
def train(recall_lm, tmp_path):
    def run(*flags, out="run"):
        command = ["train", "--task", "recall", "--model", recall_lm, "--reward", "length", "--out", str(tmp_path / out)]
        assert main([*command, *SIZES, *flags]) == 0
        return tmp_path / out

    return run


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def ages(folder, *names):
    return [(folder / name).stat().st_mtime_ns for name in names]


def test_the_table_recomputed_from_the_texts(train, capsys):
    folder = train("--eval-texts", "40", "--held-out", '{"name": "distinct"}')
    told = " ".join(capsys.readouterr().out.split())
    found = json.loads((folder / "outcome.json").read_text())
    before, after = (read(folder, name) for name in TEXTS)
    task = make_task("recall", split="test")
    assert [r["prompt"] for r in before] == [r["prompt"] for r in after] and len(after) == 40
    assert Counter(r["prompt"] for r in after) == Counter(task.prompts[i % len(task.prompts)].text for i in range(40))
    for name, rows in (("before", before), ("after", after)):
        for measure in ("score", "held_out", "length"):
            assert found[name][measure] == pytest.approx(np.mean([r[measure] for r in rows]))
        words = [r["response"].split() for r in rows]
        pairs = [pair for w in words for pair in pairwise(w)]
        assert found[name]["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
        assert found[name]["perplexity"] == pytest.approx(np.exp(sum(r["nats"] for r in rows) / sum(r["tokens"] for r in rows)))
        assert found[name]["repeated"] == pytest.approx(1 - len({r["response"] for r in rows}) / 40)
        assert found[name]["ended"] == pytest.approx(np.mean([r["finish_reason"] != "length" for r in rows]))
    by_prompt = {}
    for b, a in zip(before, after, strict=True):
        by_prompt.setdefault(b["prompt"], []).append(a["score"] - b["score"])
    gains = [d for of in by_prompt.values() for d in of]
    cases = gains if len(by_prompt) < 10 else [np.mean(of) for of in by_prompt.values()]
    interval = stats.ttest_1samp(cases, 0).confidence_interval()
    assert found["change"]["score"] == pytest.approx([np.mean(cases), *interval])
    signs = np.sign(gains)
    assert [found[name]["rate"] for name in ("better", "equal", "worse")] == [np.mean(signs == sign) for sign in (1, 0, -1)]
    assert found["kl"][0] == pytest.approx(np.mean([r["kl"] for r in after])) and found["kl"][1] < found["kl"][0] < found["kl"][2]
    assert [r["kl"] for r in before] == pytest.approx([0] * 40, abs=1e-5)
    assert found["verdict"] in told and "report: " in told
    for row in (*before[:1], *after[:1]):
        assert " ".join(row["response"].split())[:12] in told


@pytest.mark.parametrize("adapters", [(), ("--lora", '{"r": 2, "target_modules": ["q_proj", "down_proj"]}')])
def test_kl_and_nats_by_transformers(train, tmp_path, adapters):
    """The same log-probabilities from transformers' own forward pass."""
    folder = train("--eval-texts", "20", *adapters)
    first, trained = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "lm", folder / "ppo" / "model"))
    tokenizer, rows = make_task("recall").tokenizer, read(folder, "texts-after.jsonl")
    checked = 0
    for row in rows:
        (prompt,), (response,) = tokenizer.encode_batch([row["prompt"]]), tokenizer.encode_batch([row["response"]])
        response += [tokenizer.eos_token_id] * (row["finish_reason"] == "eos")
        if len(response) != row["tokens"]:  # special tokens are left out of a text
            continue
        checked += 1
        ids = torch.tensor([prompt + response])
        log_probs = []
        for model in (trained, first):
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1, : tokenizer.vocab_size]
            log_probs.append(logits.double().log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum().item())
        assert row["kl"] == pytest.approx(log_probs[0] - log_probs[1], abs=1e-3) and row["nats"] == pytest.approx(-log_probs[1], rel=1e-4)
    assert checked >= 10 and max(row["kl"] for row in rows) > 0.01


def test_what_is_there_is_used_again_and_what_changed_is_made_anew(train, capsys):
    folder = train("--eval-texts", "20")
    then = ages(folder, *TEXTS)
    train("--eval-texts", "20")
    assert ages(folder, *TEXTS) == then
    train("--eval-texts", "24")
    assert len(read(folder, TEXTS[0])) == len(read(folder, TEXTS[1])) == 24
    before, trained = ages(folder, TEXTS[0]), ages(folder, "ppo/policy.zip")
    first = json.loads((folder / "outcome.json").read_text())
    train("--eval-texts", "24", "--total-tokens", "600")
    assert ages(folder, TEXTS[0]) == before  # the first policy is the same, the trained one is not
    assert ages(folder, "ppo/policy.zip") != trained
    last = json.loads((folder / "outcome.json").read_text())
    assert last["before"] == first["before"] and last["after"] != first["after"]
    quiet = train("--eval-texts", "0", out="quiet")
    train("--eval-texts", "0", "--total-tokens", "600", out="quiet")
    assert not any((quiet / name).exists() for name in (*TEXTS, "outcome.json", "report.html"))
    one, two = (TextPPO.load(f / "ppo" / "policy.zip", device="cpu").policy.state_dict() for f in (folder, quiet))
    assert all(torch.equal(one[name], two[name]) for name in one)  # the texts of the end draw nothing from the training's generators
    train("--eval-texts", "20", "--overwrite", out="quiet")
    assert "outcome.json" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_written(train, monkeypatch, capsys):
    whole = train("--eval-texts", "20", out="whole")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_outcome, "texts_before", interrupted)  # Ctrl-C as soon as the first policy begins to write
        with pytest.raises(AssertionError):
            train("--eval-texts", "20")
    folder = whole.with_name("run")
    assert "To go on: textrl train" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "outcome.json").exists() and not (folder / "report.html").exists()
    kept = ages(folder, "ppo/policy.zip", TEXTS[1])
    train("--eval-texts", "20")
    assert ages(folder, "ppo/policy.zip", TEXTS[1]) == kept
    assert [read(folder, name) for name in TEXTS] == [read(whole, name) for name in TEXTS]


def test_prompts_that_training_saw_are_not_called_held_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    train, test = make_task("recall"), make_task("recall", split="test")
    shared = {p.text for p in test.prompts[:20]} & {p.text for p in train.prompts}
    said = run_outcome.seen_in_training(test, train, 20)
    assert ("not held out" in said) == bool(shared)
    assert "are not held out" in run_outcome.seen_in_training(train, train, 20)
    review = run_outcome.seen_in_training(make_task("review", split="test"), make_task("review"), 30)
    assert review == "30 texts of each policy to 30 prompts of the test split, none of which is among the training prompts"


def test_how_many_texts():
    assert num_eval_texts(None, 5_500) == 200 and num_eval_texts(None, 1_340) == 134 and num_eval_texts(None, 30) == 20
    assert num_eval_texts(7, 5_500) == 7 and num_eval_texts(0, 5_500) == 0


def test_the_page(train, capsys):
    folder = train("--eval-texts", "20", "--held-out", '{"name": "distinct"}')
    page = (folder / "report.html").read_text()
    found, after = json.loads((folder / "outcome.json").read_text()), read(folder, TEXTS[1])
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert found["verdict"] in text and found["prompts"] in text
    shown = list(dict.fromkeys(row["prompt"] for row in after))[:20]
    assert re.findall(r"<blockquote>(.*?)</blockquote>", page) == [html.escape(prompt) for prompt in shown]
    for row in after[:1]:
        assert html.escape(row["response"].strip()) in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)  # needs no other file
    axes = _picture(folder / "ppo").axes
    curve = np.genfromtxt(folder / "ppo" / "curve.csv", delimiter=",", names=True)
    watched = np.genfromtxt(folder / "ppo" / "reward_hacking.csv", delimiter=",", names=True)
    drawn = {a.get_ylabel(): a.lines[0].get_xydata().T for a in axes}
    expected = {"reward": curve["learned"], "held-out reward": watched["held_out"], "KL per text\n(nats)": curve["kl_per_sequence"]}
    for label, values in {**expected, "length\n(tokens)": curve["length"]}.items():
        np.testing.assert_allclose(drawn[label], [curve["tokens"], values])
    commands = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", page, re.S)]
    assert main([*shlex.split(commands[0])[1:], "--seed", "1"]) == 0
    assert main([*shlex.split(commands[1])[1:-1], "20"]) == 0
    assert "total-tokens 600" in commands[2] and main(shlex.split(commands[2])[1:]) == 0
    assert main(shlex.split(commands[3].splitlines()[0])[1:]) == 0
    exec(commands[4], {})
    exec(commands[5], loaded := {})
    assert loaded["model"].config.model_type == "llama"
    capsys.readouterr()


def test_every_file_of_a_run_is_explained(train, capsys):
    folder = train("--eval-texts", "20", "--held-out", '{"name": "distinct"}')
    assert main(["evaluate", str(folder), "--texts", "8"]) == 0
    explained = {folder / name for name, _ in run_tree(folder)}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert path in explained or path.parent in explained, path
    told = " ".join(capsys.readouterr().out.split())
    for name in ("report.html", "ppo/policy.zip"):
        assert name in told and RUN_FILES[name.replace("ppo", "*")][:20] in told
