"""The published protocol on reviews, in small."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents.benchmark.studies import published_imdb
from agents.benchmark.studies.published_imdb import PublishedImdb, main, reviews

from ....byte_tokenizer import byte_tokenizer


@pytest.fixture
def config(tmp_path):
    for split in ("train", "test"):
        for kind in ("pos", "neg"):
            (tmp_path / "aclImdb" / split / kind).mkdir(parents=True)
            for i in range(20):
                text = f"{split} film {i} " + "word " * (i + 30) + kind
                (tmp_path / "aclImdb" / split / kind / f"{i}_7.txt").write_text(text, encoding="utf-8")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=257, n_positions=512, n_embd=32, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256, num_labels=2)
    for name, kind in (("policy", GPT2LMHeadModel), ("classifier", GPT2ForSequenceClassification)):
        kind(sizes).save_pretrained(tmp_path / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(tmp_path / name)
    names = {name: str(tmp_path / name) for name in ("model", "classifier")} | {"model": str(tmp_path / "policy")}
    return PublishedImdb(str(tmp_path / "aclImdb"), **names, tokens=1500, texts=12, seeds=1, device="cpu", out=tmp_path / "out.json")


def test_the_task_is_theirs(config):
    train, test = reviews(config, "train", 2000), reviews(config, "test", 12, order="sequential")
    assert train.max_new_tokens == 48 and test.max_prompt_tokens == 64 and len(train.prompts) <= 40 and len(test.prompts) == 12
    words = test.prompts[0].text.split()
    assert words[0] == "test" and "pos" not in words and "neg" not in words  # the first half
    assert {prompt.metadata["label"] for prompt in test.prompts} == {0, 1}  # drawn, not the first files


@pytest.mark.slow
def test_all_seeds_are_run_and_judged(config, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(published_imdb, "TextPPO", lambda *a, _made=published_imdb.TextPPO, **k: made.append(_made(*a, **k)) or made[-1])
    scores = main(config)
    assert "0.602" in capsys.readouterr().out
    kept = json.loads(config.out.read_text())
    assert kept["scores"] == scores and [len(texts) for texts in kept["samples"]] == [8]
    for agent, kl in zip(made, scores["kl"], strict=True):
        assert agent.n_epochs == 5 and agent.learning_rate == 1e-6 and agent.num_timesteps >= 1500
        # Two rollouts of 27 texts whose KL is far below the target: each lowers the coefficient by 2%, as theirs does
        assert agent.rollout_buffer.kl_shaping.controller.beta == pytest.approx(0.1 * 0.98**2)
        assert abs(kl) < 0.5
    # The classifier's probability of the whole first half of the review, of which the policy read 64 tokens, and the text
    halves = [prompt.text for prompt in reviews(config, "test", 12, order="sequential").prompts]
    texts = kept["samples"][0]
    assert all(half.endswith(text["prompt"]) for half, text in zip(halves, texts, strict=False)) and len(halves[0]) > len(
        texts[0]["prompt"]
    )
    model = GPT2ForSequenceClassification.from_pretrained(config.classifier).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config.classifier)
    for half, text in zip(halves, texts, strict=False):
        with torch.no_grad():
            (logits,) = model(**tokenizer(half + text["response"], return_tensors="pt")).logits
        assert text["score"] == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)
