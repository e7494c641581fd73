"""Rewards from checkpoints: against transformers itself, one text at a time and without padding."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rewards
from rewards import RewardError
from textrl_env import Episode

from .checkpoints import VOCAB, WORDS, save, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def classifier(folder):
    return folder / "classifier", save(
        folder / "classifier", "bert", AutoModelForSequenceClassification, num_labels=3, id2label={0: "bad", 1: "neutral", 2: "good"}
    )


@pytest.fixture(scope="module")
def scalar(folder):
    return folder / "scalar", save(folder / "scalar", "gpt2", AutoModelForSequenceClassification, num_labels=1, pad_token_id=0)


@pytest.fixture(scope="module")
def lm(folder):
    return folder / "lm", save(folder / "lm", "gpt2", AutoModelForCausalLM)


@pytest.fixture(scope="module")
def encoder(folder):
    return folder / "encoder", save(folder / "encoder", "bert", AutoModel)


def texts(n=30, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [Episode.from_text("the film", "".join(" " + w for w in rng.choice(WORDS, rng.integers(1, longest)))) for _ in range(n)]


def ids(text):
    return [VOCAB[word] for word in text.split()]


def test_classifier(classifier):
    path, model = classifier
    batch = texts()
    rows = [torch.tensor([[2, *ids(e.prompt + e.response), 3]]) for e in batch]
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row).logits for row in rows]).double()
    for output, values in {"logit": logits, "probability": logits.softmax(1), "log_probability": logits.log_softmax(1)}.items():
        for label in (0, 2, "good"):
            reward = rewards.make("classifier", path=str(path), label=label, output=output, batch_size=7)
            np.testing.assert_allclose(reward.score(batch), values[:, 2 if label == "good" else label], atol=1e-5)


def test_classifier_that_reads_responses_alone(classifier):
    path, model = classifier
    reward = rewards.make("classifier", path=path, label=1, output="logit", reads="response")
    row = torch.tensor([[2, VOCAB["good"], 3]])
    assert reward.score([Episode.from_text("the", " good")])[0] == pytest.approx(
        float(model(input_ids=row).logits[0, 1].detach()), abs=1e-5
    )
    assert np.isfinite(reward.score([Episode.from_text("the", "")])).all()


def test_a_long_text_loses_its_beginning(classifier):
    path, model = classifier
    row = torch.tensor([[2, *ids("a b c d e f g"), 3]])
    reward = rewards.make("classifier", path=path, label=0, output="logit", max_tokens=9)
    assert reward.score([Episode.from_text("the film was", " a b c d e f g")])[0] == pytest.approx(
        float(model(input_ids=row).logits[0, 0].detach()), abs=1e-5
    )
    assert np.isfinite(rewards.make("classifier", path=path).score(texts(2, longest=90))).all()  # 24 positions


def test_scalar_head(scalar):
    path, model = scalar
    batch = texts()
    with torch.no_grad():
        expected = [float(model(input_ids=torch.tensor([[*ids(e.prompt + e.response), 4]])).logits) for e in batch]
    reward = rewards.make("scalar_head", path=path, batch_size=8)
    np.testing.assert_allclose(reward.score(batch), expected, atol=1e-5)
    assert np.std(expected) > 0.1 and np.isfinite(reward.score([Episode.from_text("", "")])).all()


def test_likelihood(lm):
    path, model = lm
    batch = [*texts(), Episode.from_text("", " good film"), Episode.from_text("the", "")]
    batch[3] = Episode(*[getattr(batch[3], f) for f in ("prompt", "response", "prompt_ids", "response_ids", "action_mask")], "length")
    sums, counts = [], []
    for e in batch:
        tail = [4] if e.finish_reason == "eos" else []
        row = [4, *ids(e.prompt), *ids(e.response), *tail]  # without a beginning-of-text token the end-of-text one opens the text
        n = len(ids(e.response)) + len(tail)
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(log_probs[i - 1, row[i]]) for i in range(len(row) - n, len(row))))
        counts.append(n)
    means = np.array(sums) / counts
    for output, values in {"sum": sums, "mean": means, "perplexity": -np.exp(-means)}.items():
        np.testing.assert_allclose(rewards.make("likelihood", path=path, output=output, batch_size=5).score(batch), values, rtol=1e-4)


def test_likelihood_leaves_out_the_beginning_of_a_prompt_and_nothing_of_a_response(lm):
    """Of a window of 8 tokens the first is what opens the text; a response of 7 with its end fits alone, one of 8 does not."""
    path, model = lm
    reward = rewards.make("likelihood", path=path, output="sum", max_tokens=8)
    row = [4, *ids(" film" * 6), 4]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
    whole = sum(float(log_probs[i - 1, row[i]]) for i in range(1, len(row)))
    assert reward.score([Episode.from_text("the good the", " film" * 6)])[0] == pytest.approx(whole, rel=1e-4)
    cut = rewards.make("likelihood", path=path, max_tokens=8)._ids("the good film the", " film" * 4, True, None)
    assert cut == ([4, *ids(" film the"), *ids(" film" * 4), 4], 5)
    with pytest.raises(RewardError, match="a response has 8 tokens with its end, and the model reads 7"):
        reward.score([Episode.from_text("the", " film" * 7)])


def test_a_response_without_tokens_is_as_likely_as_chance(lm):
    empty = Episode.from_text("the", "")
    cut = Episode("the", "", empty.prompt_ids, empty.response_ids, empty.action_mask, "length")
    assert rewards.make("likelihood", path=lm[0]).score([cut])[0] == pytest.approx(-np.log(len(VOCAB)))


def test_embedding(encoder):
    path, model = encoder

    def embed(text):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[2, *ids(text), 3]])).last_hidden_state[0].double()
        mean = states.mean(0)
        return mean / mean.norm()

    batch = [Episode.from_text("the film", r, references=("good film", "bad a b")) for r in (" good", " bad", " good film", " a b c d e")]
    expected = [max(float(embed(e.response) @ embed(r)) for r in e.references) for e in batch]
    reward = rewards.make("embedding", path=path)
    np.testing.assert_allclose(reward.score(batch), expected, atol=1e-5)
    assert reward.score(batch)[2] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        rewards.make("embedding", path=path, against="prompt").score(batch),
        [float(embed(e.response) @ embed("the film")) for e in batch],
        atol=1e-5,
    )
    with pytest.raises(RewardError, match="'p' has none"):
        reward.score([Episode.from_text("p", "x")])


def test_texts_that_come_again_are_not_read_again(classifier, lm):
    for name, path in (("classifier", classifier[0]), ("likelihood", lm[0])):
        reward = rewards.make(name, path=path)
        calls = []
        reward.checkpoint.model.register_forward_hook(lambda module, args, output, calls=calls: calls.append(1))
        first = reward.score(texts())
        n = len(calls)
        assert reward.score(texts()[::-1]) == first[::-1] and len(calls) == n > 0


def test_half_precision(classifier):
    exact, half = (
        np.array(rewards.make("classifier", path=classifier[0], dtype=dtype).score(texts())) for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - half).max() < 0.1


def test_orders_and_copies(classifier):
    reward = rewards.make("classifier", path=classifier[0])
    assert rewards.check(reward, texts()).deterministic and copy.deepcopy(reward) is reward


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [("classifier", {"label": 3}, "good"), ("classifier", {"label": "great"}, "good"), ("classifier", {"output": "x"}, "output"),
     ("classifier", {"dtype": "int8"}, "float32"), ("classifier", {"batch_size": 0}, "batch_size"), ("scalar_head", {}, "3 outputs")],
)  # fmt: skip
def test_wrong_arguments(classifier, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        rewards.make(name, path=classifier[0], **arguments)


def test_a_pickle_is_not_loaded(folder, classifier):
    _path, model = classifier
    other = folder / "pickled"
    model.config.save_pretrained(other)
    save_tokenizer(other, "bert")
    torch.save(model.state_dict(), other / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        rewards.make("classifier", path=other)


def of_template(prompt, response, typed=()):
    episode = Episode.from_text(prompt, response)
    return dataclasses.replace(episode, typed=typed)


@pytest.mark.reports("Rewards of checkpoints read special tokens that somebody spelled as text, a chat template's as tokens")
def test_special_tokens_in_texts_are_text(classifier, scalar, lm, encoder):
    unknown = [VOCAB["[UNK]"]] * 3  # "<", "eos", ">"
    plain = [VOCAB["the"], *unknown, VOCAB["film"]]
    path, model = scalar
    reward = rewards.make("scalar_head", path=path)
    assert reward.checkpoint.encode(["the <eos> film"], end=True) == [[*plain, 4]]

    def score(row):
        return float(model(input_ids=torch.tensor([row])).logits.detach()[0, 0])

    assert reward.score([Episode.from_text("the", " <eos> film")]) == pytest.approx([score([*plain, 4])], abs=1e-5)
    rendered = [of_template("the <eos> film", " <eos>"), of_template("the <eos> film", " <eos>", ((4, 9),))]
    rows = [[VOCAB["the"], 4, VOCAB["film"], *unknown, 4], [*plain, *unknown, 4]]
    assert reward.score(rendered) == pytest.approx([score(row) for row in rows], abs=1e-5)

    reward = rewards.make("classifier", path=classifier[0])
    assert reward.checkpoint.encode(["good [SEP] <eos>"]) == [[2, VOCAB["good"], 1, 1, 1, 1, 1, 1, 3]]
    embedded = rewards.make("embedding", path=encoder[0]).checkpoint.encode(["[CLS]"])
    assert embedded == [[2, 1, 1, 1, 3]]
    ids, n = rewards.make("likelihood", path=lm[0])._ids("the <eos>", " good <eos>", True, None)
    assert (ids, n) == ([4, VOCAB["the"], *unknown, VOCAB["good"], *unknown, 4], 5)
    ids, n = rewards.make("likelihood", path=lm[0])._ids("the <eos>", " good <eos>", False, ())
    assert (ids, n) == ([4, VOCAB["the"], 4, VOCAB["good"], *unknown], 4)
    bertscore = rewards.make("bertscore", path=encoder[0])
    assert bertscore._tokenize(["[SEP] film"]) == [{"input_ids": [2, 1, 1, 1, VOCAB["film"], 3], "special_tokens_mask": [1, 0, 0, 0, 0, 1]}]


@pytest.mark.reports("A checkpoint whose tokenizer has ids that its model lacks says so")
@pytest.mark.parametrize("name", ["classifier", "bertscore"])
def test_a_tokenizer_that_is_larger_than_its_model(tmp_path, name):
    save(tmp_path, "bert", AutoModelForSequenceClassification if name == "classifier" else AutoModel)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["poor"])
    tokenizer.save_pretrained(tmp_path)
    reward = rewards.make(name, path=tmp_path)
    message = f"its tokenizer gives the id {len(VOCAB)}, its model has {len(VOCAB)} embeddings"
    with pytest.raises(ValueError, match=message):
        reward.score([Episode.from_text("the film", " poor", references=("good",))])
    assert np.isfinite(reward.score([Episode.from_text("the film", " good", references=("good",))])).all()
