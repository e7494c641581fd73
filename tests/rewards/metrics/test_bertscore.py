"""BERTScore against a computation one token at a time, on tiny encoders made here."""

import math

import numpy as np
import pytest
import torch

import rewards
from rewards.metrics.bertscore import BertScoreReward
from textrl_env.episode import Episode
from textrl_env.reward_model import RewardError


def said(response, *references):
    return Episode.from_text("", response, references=references)


WORDS = "the a cat dog sat ran on in mat park was good bad".split()


def save_encoder(folder, kind):
    """A tiny random encoder and its tokenizer of whole words, which puts special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(kind, vocab_size=len(vocabulary), max_position_embeddings=16, pad_token_id=0, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)  # far from one another, so that texts score differently
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"), "bert")


def brute_force_bertscore(folder, response, reference, layer, corpus):
    """Zhang et al. 2020, section 3, one text and one token at a time, on hidden states of texts that are not padded."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()

    def vectors(text):
        ids = [4 + WORDS.index(word) if word in WORDS else 3 for word in text.split()]
        with torch.no_grad():
            states = model(torch.tensor([[1, *ids, 2]]), output_hidden_states=True).hidden_states[layer][0, 1:-1].double().numpy()
        return ids, states / np.linalg.norm(states, axis=1, keepdims=True)

    def idf(token):
        if corpus is None:
            return 1.0
        return math.log((len(corpus) + 1) / (1 + sum(token in vectors(text)[0] for text in corpus)))

    ids_y, y = vectors(response)
    ids_x, x = vectors(reference)
    recall = sum(idf(t) * max(float(u @ v) for v in y) for t, u in zip(ids_x, x, strict=True)) / sum(map(idf, ids_x))
    precision = sum(idf(t) * max(float(u @ v) for u in x) for t, v in zip(ids_y, y, strict=True)) / sum(map(idf, ids_y))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}


TEXTS = ["the cat sat on a mat", "a dog ran", "good", "the the cat was bad in the park xyz"]


@pytest.mark.parametrize(("layer", "corpus"), [(None, None), (1, None), (None, [*TEXTS, "the cat", "a dog"]), (0, ["the dog", "the cat"])])
def test_bertscore_is_brute_force(encoder, layer, corpus):
    episodes = [said(f" {response}", "the cat was on the mat") for response in TEXTS]
    expected = [brute_force_bertscore(encoder, r, "the cat was on the mat", 2 if layer is None else layer, corpus) for r in TEXTS]
    assert len({round(e["f1"], 3) for e in expected}) == 4
    for variant in ("precision", "recall", "f1"):
        model = rewards.make("bertscore", path=encoder, variant=variant, layer=layer, idf=corpus, batch_size=2)
        assert model.score(episodes) == pytest.approx([e[variant] for e in expected], abs=1e-5)


def test_bertscore_of_several_references_is_the_best(encoder):
    model = BertScoreReward(encoder)
    alone = [model.score([said("a cat ran", text)])[0] for text in TEXTS]
    assert model.score([said("a cat ran", *TEXTS)]) == pytest.approx([max(alone)], abs=1e-6)
    assert model.score([said("a cat ran", *TEXTS, "a cat ran"), said("", "the cat")]) == pytest.approx([1.0, 0.0], abs=1e-6)


def test_bertscore_whose_words_stand_in_every_text_weighs_them_alike(encoder):
    plain, weighted = BertScoreReward(encoder), BertScoreReward(encoder, idf=["the cat", "the cat"])
    episode = said("the cat", "cat the cat")
    assert weighted.score([episode]) == plain.score([episode])


@pytest.mark.parametrize(("kind", "longest"), [("bert", 14), ("roberta", 13)])
def test_bertscore_refuses_texts_beyond_the_positions_of_the_encoder(tmp_path, kind, longest):
    """Of 16 positions 2 go to the special tokens; RoBERTa's count begins behind the id of padding, here 0."""
    words = ["cat", "dog"] * 8
    fits, long = (" ".join(words[:number]) for number in (longest, longest + 1))
    model = BertScoreReward(save_encoder(tmp_path, kind), idf=[" ".join(words), "the cat"])
    [whole] = model.embed([fits])
    assert len(whole.vectors) == longest
    for episode in (said(long, "a cat"), said("a cat", long)):
        with pytest.raises(RewardError, match=f"{longest + 1} tokens, and the encoder reads {longest}: .*cat dog"):
            model.score([said("a cat", "the cat"), episode])


def test_bertscore_checks_its_arguments_and_runs_no_code(encoder, tmp_path):
    with pytest.raises(ValueError, match="variant='F1'"):
        BertScoreReward(encoder, variant="F1")
    with pytest.raises(ValueError, match=r"layer=3: .* 0 \(embeddings\) to 2"):
        BertScoreReward(encoder, layer=3)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        BertScoreReward(tmp_path / "none")
    with pytest.raises(ValueError, match="bertscore compares with references"):
        BertScoreReward(encoder).score([said("a")])
    state = torch.get_rng_state()
    model = BertScoreReward(encoder, idf=["a"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.model.training and not any(p.requires_grad for p in model.model.parameters())
    assert repr(model).startswith("BertScoreReward(") and "layer=2, idf=..." in repr(model)
