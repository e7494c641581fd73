"""Measures by hand, supervised training, base policies, corpora, and the command line."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import yaml

from agents.algorithms.sft import SFT
from agents.cli.main import main, resolve
from agents.cli.train_flags import Train
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.models.loading import load_lm
from agents.training.base_policies import base_policy
from agents.training.text_corpus import corpus_task, read_lines
from rewards.utils.intervals import win_rate
from textrl_env import BaseRecipe, IntegerTokenizer

from ..conftest import LLAMA, VOCAB, sevens


def test_win_rate_by_hand():
    """Wilson's interval for 8 of 10 is [0.490, 0.943] (Agresti and Coull 1998, formula 2)."""
    ours, theirs = np.array([1.0] * 7 + [0, 0, 0]), np.array([0.0] * 7 + [0, 0, 1])
    rate = win_rate(ours, theirs)  # 7 wins, 2 ties
    assert rate.rate == 0.8
    assert (rate.low, rate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    with pytest.raises(ValueError, match="pair by pair"):
        win_rate(ours, theirs[:3])


def test_texts_to_one_prompt_are_one_case_of_a_win_rate():
    """Eight texts to each of four prompts that win on three of them say no more than four texts: 3 of 4, and less sure than 24 of 32.

    By hand: (2^2 * 3 + 6^2) * 4/3 / 32^2 = 1/16 is the variance between prompts, .75 * .25 / 3 that of 3 independent cases.
    """
    ours, prompts = np.repeat([1.0, 1.0, 1.0, 0.0], 8), [f"p{i}" for i in range(4) for _ in range(8)]
    rate, alone = win_rate(ours, np.full(32, 0.5), prompts), win_rate(ours, np.full(32, 0.5))
    cases = 3 * (1.959964 / 3.182446) ** 2  # Student's t with 3 degrees of freedom in the place of z
    widened = 1 + 3.8415 / cases
    centre, half = (0.75 + 1.9207 / cases) / widened, 1.959964 * math.sqrt(0.1875 / cases + 0.9604 / cases**2) / widened
    assert (rate.rate, rate.num) == (0.75, 32) and (rate.low, rate.high) == pytest.approx((centre - half, centre + half), abs=1e-3)
    assert alone.rate == 0.75 and rate.low < alone.low - 0.2
    one = win_rate(ours, np.full(32, 0.5), ["p"] * 32)  # of a single prompt an interval can only speak of that one
    assert one == alone


def test_texts_come_back_in_the_order_of_their_prompts(task):
    ordered = dataclasses.replace(task, prompt_order="sequential")
    policy, reference = make_policy(ordered, LLAMA), load_lm(LLAMA)
    state = torch.random.get_rng_state()
    texts = write_texts(policy, ordered, 7, sevens, reference=reference, seed=3, num_rows=2)
    assert torch.equal(state, torch.random.get_rng_state())
    prompts = [p.text for p in task.prompts]
    assert sorted(texts.prompts) == sorted(prompts * 2 + prompts[:1])
    assert texts.scores.tolist() == sevens(texts.prompts, texts.responses)
    assert [len(r.split()) for r in texts.responses] == [n - (f == "eos") for n, f in zip(texts.lengths, texts.finish_reasons, strict=True)]
    again = write_texts(policy, ordered, 7, sevens, seed=3, num_rows=2)
    assert again.responses == texts.responses
    with pytest.raises(ValueError, match="sequential"):
        write_texts(policy, task, 7)


def test_sft_learns_a_rule_and_leaves_prompts_alone_when_told():
    """After 'x' comes 'x + 1': the loss falls from log V to that of the first token alone."""
    rng = np.random.default_rng(0)
    starts = rng.integers(1, VOCAB - 4, 400)
    texts = [(str(x), f"{x + 1} {x + 2} {x + 3}") for x in starts]
    model = {**LLAMA, "initializer_range": 0.02}
    trained = SFT(model, IntegerTokenizer(VOCAB), batch_size=16, learning_rate=1e-2, train_on_prompts=False).learn(texts, 150)
    # the prompt is given and the end comes when 4 tokens are there: nothing is left to guess
    assert trained.losses[0] == pytest.approx(math.log(VOCAB), abs=0.1)
    assert trained.evaluate(texts) < 0.05
    again, twin = (SFT(model, IntegerTokenizer(VOCAB), batch_size=16).learn(texts, 5) for _ in range(2))
    assert again.losses == twin.losses
    with pytest.raises(ValueError, match="no texts"):
        again.learn([], 3)
    with pytest.raises(ValueError, match="has 24 tokens, the tokenizer 99"):
        SFT(LLAMA, IntegerTokenizer(99))


@pytest.mark.reports("Texts beyond the last prompt start over at the first one; returns, tokens and texts of one row belong together")
def test_texts_and_their_tokens_belong_together(task):
    ordered = dataclasses.replace(task, prompt_order="sequential", missing_eos_penalty=20.0)
    texts = write_texts(make_policy(ordered, LLAMA), ordered, 10, sevens, seed=3, num_rows=4)
    assert texts.prompts == ["1 2 3"] * 4 + ["4"] * 3 + ["5 6 7 8 9 10"] * 3
    for prompt, response, score, paid, reason, record in zip(
        texts.prompts, texts.responses, texts.scores, texts.returns, texts.finish_reasons, texts.records, strict=True
    ):
        assert record.context.tolist() == [int(i) for i in prompt.split()]
        assert ordered.tokenizer.decode_batch([record.actions]) == [response]
        assert paid == score - 20.0 * (reason == "length") and (record.actions[-1] == 0) == (reason == "eos")
    assert len(set(texts.finish_reasons)) == 2


def test_base_policies_are_built_once(task, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path))
    recipe = BaseRecipe(corpus=lambda: [("1 2", "3")] * 8, model=LLAMA, steps=3, batch_size=4)
    with_recipe = dataclasses.replace(task, recipe=recipe)
    folder = base_policy(with_recipe)
    time = (folder / "model.safetensors").stat().st_mtime_ns
    assert base_policy(with_recipe) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == time
    other = dataclasses.replace(task, recipe=dataclasses.replace(recipe, steps=4))
    assert base_policy(other) != folder
    with pytest.raises(ValueError, match="no recipe"):
        base_policy(task)


class Swapped(IntegerTokenizer):
    """Swaps the numbers 20 and 21."""

    def encode_batch(self, texts):
        return [[{20: 21, 21: 20}.get(i, i) for i in ids] for ids in super().encode_batch(texts)]


@pytest.mark.reports("A cached base policy is not used for a tokenizer that differs only in late texts, or in how texts end")
def test_a_cached_base_policy_depends_on_every_text_and_on_the_end(task, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path))
    texts = [("1 2", "3")] * 300 + [("4", "20")]
    recipe = BaseRecipe(corpus=lambda: texts, model=LLAMA, steps=1, batch_size=4)
    tokenizers = (IntegerTokenizer(VOCAB), Swapped(VOCAB), IntegerTokenizer(VOCAB, 23), IntegerTokenizer(VOCAB - 1))
    tasks = [dataclasses.replace(task, tokenizer=tokenizer, recipe=recipe) for tokenizer in tokenizers]
    assert len({base_policy(made) for made in tasks}) == 4
    assert base_policy(tasks[0]) == base_policy(dataclasses.replace(tasks[0], max_new_tokens=5))


SENTENCES = [f"the {a} film was {b} and the {c} was {b}" for a in ("old", "new") for b in ("fine", "dull") for c in ("score", "cast")]


def test_a_corpus_becomes_a_task(tmp_path):
    task = corpus_task(SENTENCES, [*SENTENCES, "too short"], tmp_path, opening_words=3, max_new_tokens=20)
    assert [p.text for p in task.prompts] == [" ".join(s.split()[:3]) for s in SENTENCES]
    assert task.recipe.corpus()[0] == ("the old film", "was fine and the score was fine")
    assert task.tokenizer.decode_batch(task.tokenizer.encode_batch(SENTENCES)) == [" " + s for s in SENTENCES]
    assert task.recipe.model["vocab_size"] == task.tokenizer.vocab_size
    before = (tmp_path / "tokenizer.json").read_bytes()
    corpus_task(["something else entirely here now"], SENTENCES, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    with pytest.raises(ValueError, match="none of 1 sentences has 6 words"):
        corpus_task(SENTENCES, ["too short"], tmp_path)


def test_reading_lines(tmp_path):
    file = tmp_path / "text.txt"
    with pytest.raises(FileNotFoundError, match=r"text\.txt"):
        read_lines(file)
    file.write_bytes(b"one\n\n two \ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"line 4.*latin-1"):
        read_lines(file)
    assert read_lines(file, "latin-1") == ["one", "two", "café"]
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="no sentence"):
        read_lines(file)


def test_train_from_files_and_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES * 3))
    monkeypatch.setattr("agents.training.text_corpus.corpus_task", lambda *args: corpus_task(*args, steps=20, max_new_tokens=8))
    settings = {
        "corpus": [str(tmp_path / "corpus.txt")],
        "out": str(tmp_path / "run"),
        "total_tokens": 900,
        "n_episodes": 16,
        "batch_size": 8,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = [
        "train",
        "--config",
        str(tmp_path / "run.yaml"),
        "--reward",
        '{"name": "keyword", "keywords": ["fine"]}',
        "--temperature",
        "0.9",
    ]
    assert main(command) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["temperature"] == 0.9 and saved["n_episodes"] == 16 and saved["learning_rate"] == 5e-4
    checkpoint = tmp_path / "run" / "ppo" / "policy.zip"
    time = checkpoint.stat().st_mtime_ns
    assert main(command) == 0
    assert checkpoint.stat().st_mtime_ns == time
    files = ["--corpus", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "sft")]
    assert main(["train", *files, "--algo", "sft", "--steps", "5"]) == 0
    assert load_lm(tmp_path / "sft" / "sft" / "model").config.hidden_size == 128
    assert "policy.zip" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("stepz: 3\n", r"unknown settings stepz \(did you mean 'steps'\?\); known: .*steps"),
        ("- 3\n", "expected settings"),
        (None, "no such file"),
    ],
)
def test_bad_configuration_files(tmp_path, content, match):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=match):
        resolve(Train, ["--config", str(file)])


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    assert main([]) == 2
    assert main(["dance"]) == 2
    assert "COMMAND" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert main(["train", "--corpus", str(tmp_path / "nothing.txt"), "--out", str(tmp_path)]) == 2
    assert "no text file at" in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_is_a_line_and_not_a_traceback(monkeypatch, capsys):
    def pressed(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.cli.train.run_train", pressed)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "\nStopped. The stages that were finished are kept. To go on: textrl train\n"
