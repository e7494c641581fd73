"""The example of a pretrained model, on one of a thousand weights."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.examples.test_examples import load

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'textrl-env[judge]'")


@pytest.fixture(scope="module")
def example():
    return load("smollm2")


def rows(number):
    """Sentences that people like the better the more often they say good."""
    rng = np.random.default_rng(0)
    words = ["the", "film", "was", "long", "and", "it", "good", "bad"]
    texts = [" ".join(rng.choice(words, 9)) + f" {i}" for i in range(number)]
    return [{"text": t, "ratings": [t.count("good") - t.count("bad") + d for d in (-1, 0, 0, 1)]} for t in texts]


def test_no_sentence_is_in_two_parts(example):
    planted = rows(200)
    planted += [{"text": "  " + row["text"].upper(), "ratings": [4]} for row in planted[:60]]  # the same sentences once more
    parts = example.split(planted, 0)
    seen = [{" ".join(row["text"].lower().split()) for row in part} for part in (parts.reward, parts.judge, parts.openings)]
    assert seen[0].isdisjoint(seen[1]) and seen[0].isdisjoint(seen[2]) and seen[1].isdisjoint(seen[2])
    assert [len(part) for part in seen] == [90, 90, 20] and sum(map(len, (parts.reward, parts.judge, parts.openings))) == 260


def test_openings_occur_once_and_leave_something_to_write(example):
    texts = ["a b c d e f g h", "a b c d e x y z", "a b c d e f", "one two three four five six seven eight"]
    prompts = example.prompts_of([{"text": text} for text in texts], 5)
    assert [prompt.text for prompt in prompts] == ["a b c d e", "one two three four five"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<end>"])  # id 256
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}))
    config = AutoConfig.for_model(
        "llama", vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        eos_token_id=256, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_judge_averages_the_hidden_states_of_each_text_alone(example, model):
    from textrl_env import FileTokenizer

    judge = example.Judge(model, FileTokenizer(model))
    texts = ["a good film", "bad", "the film was long and it was good"]
    alone = AutoModelForCausalLM.from_pretrained(model).eval()
    for text, features in zip(texts, judge.features(texts, batch=2), strict=True):
        ids = torch.tensor([judge.tokenizer.encode_batch([text])[0]])
        expected = alone(ids, output_hidden_states=True).hidden_states[2][0].mean(0)
        np.testing.assert_allclose(features, expected.detach().numpy(), atol=1e-5)


def test_from_ratings_to_table_and_picture(example, model, tmp_path, capsys):
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(300)))
    config = example.SmolLM2(
        tmp_path / "ratings.jsonl", model, (0,), ("rloo", "ppo"), iterations=2, texts_per_iteration=8, max_new_tokens=14, test_texts=12,
        out=tmp_path / "out",
    )  # fmt: skip
    example.main(config)
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())["0"]
    texts = [json.loads(line) for line in (tmp_path / "out" / "seed-0" / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == 12 and list(texts[0]) == ["prompt", "base", "rloo", "ppo"]
    assert results["base"]["kl"] == pytest.approx(0, abs=1e-4) and results["rloo"]["kl"] != results["base"]["kl"]
    table = (tmp_path / "out" / "table.md").read_text()
    rise = np.mean(np.array(results["rloo"]["judged"]) - np.array(results["base"]["judged"]))
    assert f"{rise:+.2f} [" in table and (tmp_path / "out" / "smollm2.png").stat().st_size > 10_000
    assert "people agree with the reward in" in said

    (tmp_path / "out" / "results.json").unlink()
    example.main(config)  # nothing is run again
    assert json.loads((tmp_path / "out" / "results.json").read_text())["0"] == results
