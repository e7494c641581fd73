"""Texts as one row of tokens: the same hidden states and gradients as side by side, each prompt once, and only where a model can."""

import numpy as np
import pytest
import torch

from agents.benchmark.performance.architectures import WITH_IMAGES, architectures
from agents.models import sequences
from agents.models.backbones import backbone_of, decoder_only
from agents.models.backbones.joined_texts import join_texts
from agents.models.loading import load_lm
from agents.models.lora import without_adapters
from agents.models.sequences import TextRecord, pack
from rewards.models.lora import add_adapters

from ..conftest import GPT2, LLAMA, VOCAB

MODELS = {
    **{name: model for name, model in architectures(VOCAB).items() if name not in WITH_IMAGES},
    "bloom": {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCAB, "initializer_range": 0.3},
    "lfm2": {**LLAMA, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
}
JOINS = {"gpt2", "llama", "qwen3", "gpt_neox", "opt", "gemma"}  # the others: windows, caps, relative positions, states, an encoder
GROUPS = [
    [TextRecord(np.array([1, 2, 3, 4, 5]), np.array(ids), 0) for ids in ([7, 8, 9, 2], [7], [3, 3, 3, 3, 3, 3], [11, 12])],
    [TextRecord(np.array([6]), np.array(ids), 0) for ids in ([1, 2], [1, 2], [5, 9, 9])],
    [TextRecord(np.array([1, 2, 3, 4]), np.array([5, 6, 7]), 0)],
    [
        TextRecord(np.array([1, 2, 3, 4, 5, 9]), np.array([3, 2]), 1),  # an earlier rollout began it
        TextRecord(np.array([6]), np.array([4, 4, 4]), 0, [(1, np.array([8, 8]))]),  # a dialogue: the environment wrote in between
    ],
]
TEXTS = [group[index] for index in range(4) for group in GROUPS if index < len(group)]  # neighbours share no prompt


@pytest.fixture(autouse=True)
def small_models_join(monkeypatch):
    monkeypatch.setattr(decoder_only, "_WIDE", 0)


def both_ways(backbone, batch):
    """Return hidden states and all gradients, joined if the model can and side by side."""
    results = []
    for can in (backbone.joinable, False):
        backbone.joinable = can
        backbone.lm.zero_grad()
        hidden = backbone.hidden(batch)
        (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in backbone.lm.parameters() if p.grad is not None])
        results.append((hidden.detach(), gradient))
    return results


@pytest.mark.parametrize("name", MODELS)
def test_joined_texts_give_what_texts_side_by_side_give(name):
    backbone, batch = backbone_of(load_lm(MODELS[name])), pack(TEXTS, "cpu")
    backbone.joinable = None
    backbone.hidden(batch)
    joins = backbone.joinable
    (hidden, gradient), (plain, plain_gradient) = both_ways(backbone, batch)
    assert (hidden - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (gradient - plain_gradient).abs().max() <= 1e-5 * plain_gradient.abs().max()
    assert bool(joins) is (name in JOINS)


@pytest.mark.parametrize("model", ["gpt2", "llama", "grouped queries"])
def test_in_float64_only_the_last_digits_differ(monkeypatch, model):
    to = torch.Tensor.to  # `hidden`, norms and rotary embeddings ask for float32
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *args, **kwargs: tensor if torch.float32 in args else to(tensor, *args, **kwargs)
    )
    models = {"gpt2": GPT2, "llama": LLAMA, "grouped queries": {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2}}
    backbone = backbone_of(load_lm({**models[model], "n_positions": 128, "max_position_embeddings": 128}).double())
    rng = np.random.default_rng(0)
    prompts = [rng.integers(VOCAB, size=length) for length in (1, 7, 20, 20, 33)]
    uneven = [TextRecord(prompts[which], rng.integers(VOCAB, size=rng.integers(1, 80)), 0) for which in (0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4)]
    for texts in (TEXTS, [uneven[index] for index in rng.permutation(len(uneven))]):
        batch, backbone.joinable = pack(texts, "cpu"), None
        backbone.hidden(batch)
        assert backbone.joinable
        (hidden, gradient), (plain, plain_gradient) = both_ways(backbone, batch)
        assert hidden.dtype == torch.float64
        assert (hidden - plain).abs().max() <= 1e-12 * plain.abs().max()
        assert (gradient - plain_gradient).abs().max() <= 1e-10 * plain_gradient.abs().max()


def test_each_prompt_is_there_once_and_padding_is_not():
    joined = join_texts(pack(TEXTS, "cpu"))
    # Prompts of 5, 1 and 4 tokens; of each response all but the last token, which is never read: 3 + 0 + 5 + 1, 1 + 1 + 2, 2,
    # 1 + 1 of the text that was begun, 2 + 2 of the dialogue.
    assert joined.ids.shape == (1, 10 + 9 + 4 + 2 + 2 + 4)
    seen, batch = {}, pack(TEXTS, "cpu")
    rows = [row for part in joined.attended for row in part.keys.tolist()]
    for text, ids, length in zip(TEXTS, batch.input_ids.tolist(), batch.lengths(), strict=True):
        own = next(row[:length] for row in rows if joined.ids[0, row[:length]].tolist() == ids[:length])
        assert joined.positions[0, own].tolist() == list(range(length))
        prompt = tuple(text.context[: len(text.context) - text.first_step])
        if length > len(prompt):  # or another text may begin like this prompt
            seen.setdefault(prompt, set()).add(own[0])
    assert all(len(starts) == 1 for starts in seen.values()) and len(seen) == 3


def test_texts_of_like_length_attend_together():
    lengths = [250, 8, 20, 200, 90, 30, 9, 120]
    joined = join_texts(pack([TextRecord(np.array([row]), np.ones(length, int), 0) for row, length in enumerate(lengths)], "cpu"))
    assert joined.ids.shape == (1, sum(lengths))
    assert [part.queries.shape for part in joined.attended] == [(2, 250), (2, 120), (2, 30), (2, 9)]  # from 187.5, 90 and 14 tokens on
    assert all(part.seen is None for part in joined.attended)  # nobody shares a prompt: each text is attended to from its start


def test_what_is_not_sure_to_be_exact_stays_side_by_side(monkeypatch):
    batch = pack(TEXTS, "cpu")
    backbone = backbone_of(load_lm(LLAMA))
    backbone.hidden(pack([GROUPS[2][0], TextRecord(np.array([5, 1, 1]), np.array([5, 6, 7, 8]), 0)], "cpu"))  # nothing is spared
    assert backbone.joinable is None
    backbone.checkpoint_layers()
    backbone.lm.train()
    assert backbone._joined(batch) is None and backbone.joinable is None  # layers that run again would not know of it
    backbone = backbone_of(load_lm(LLAMA))
    monkeypatch.setattr(decoder_only, "_WIDE", 17)
    assert backbone._joined(batch) is None
    monkeypatch.setattr(decoder_only, "_WIDE", 16)
    assert backbone._joined(batch) is not None
    assert backbone.lm.config._attn_implementation == "sdpa"


def test_windows_are_found_out_when_texts_grow_beyond_them():
    backbone = backbone_of(load_lm(architectures(VOCAB)["mistral"]))  # looks back 5 tokens
    short, long = (pack([TextRecord(np.array([1, 2]), np.arange(1, 1 + n), 0)] * 3, "cpu") for n in (3, 9))
    backbone.hidden(short)
    assert backbone.joinable is True
    hidden = backbone.hidden(long)
    assert backbone.joinable is False
    torch.testing.assert_close(hidden[:9], backbone.hidden(pack([TextRecord(np.array([1, 2]), np.arange(1, 10), 0)], "cpu")))


def test_the_base_under_adapters_is_joined_too():
    lm = load_lm(LLAMA)
    backbone, batch = backbone_of(lm), pack(TEXTS, "cpu")
    before = backbone.hidden(batch).detach()
    add_adapters(lm, {"r": 2, "init_lora_weights": False})
    base = without_adapters(backbone)
    torch.testing.assert_close(base.hidden(batch), before)
    assert backbone.joinable
    (hidden, gradient), (plain, plain_gradient) = both_ways(backbone, batch)
    assert (hidden - before).abs().max() > 1e-2
    assert (hidden - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (gradient - plain_gradient).abs().max() <= 1e-5 * plain_gradient.abs().max()


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba", "t5", "bloom"])
def test_a_length_at_a_time_gives_what_all_at_once_gives(name, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [TextRecord(rng.integers(VOCAB, size=2), rng.integers(VOCAB, size=n), 0) for n in (100, 3, 9, 96, 60, 2)]
    backbone, batch = backbone_of(load_lm(MODELS[name])), pack(texts, "cpu")
    # 101, 97 and 61 tokens, which is more than half of 101; and 10, 4 and 3, which are 16 tokens apart at most
    assert [part.input_ids.shape for part, _ in batch.by_length()] == [(3, 101), (3, 10)]
    assert len(batch.split(1)[4][0].by_length()) == len(pack([texts[1], texts[4]], "cpu").by_length()) == 1  # short ones
    backbone.joinable = False
    results = []
    for spares in (0.75, 0.0):
        monkeypatch.setattr(sequences, "SPARES", spares)
        backbone.positions[:] = 0
        ((hidden, gradient), _) = both_ways(backbone, batch)
        results.append((hidden, gradient, backbone.positions.tolist()))
    (hidden, gradient, counted), (plain, plain_gradient, plain_counted) = results
    assert (hidden - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (gradient - plain_gradient).abs().max() <= 1e-5 * plain_gradient.abs().max()
    if name == "t5":  # two prompt tokens, and the start token and all but the last of the response, of each text
        assert (counted, plain_counted) == ([2 * (3 * 102 + 3 * 11), 2 * 282], [2 * 6 * 102, 2 * 282])
    else:  # both_ways passes twice
        assert (counted, plain_counted) == ([2 * (3 * 101 + 3 * 10), 2 * 276], [2 * 6 * 101, 2 * 276])


def test_micro_batches_are_as_wide_as_their_own_texts():
    texts = [TextRecord(np.array([5, 6]), np.arange(1, 1 + n), 0) for n in (2, 3, 9, 4)]
    batch = pack(texts, "cpu")
    parts = batch.split(2)
    assert [part.input_ids.shape for part, _ in parts] == [(2, 4), (2, 10)]
    for (part, actions), pair in zip(parts, (texts[:2], texts[2:]), strict=True):
        alone = pack(pair, "cpu")
        assert part.input_ids.tolist() == alone.input_ids.tolist() and part.predictor.tolist() == alone.predictor.tolist()
        assert part.host[1].tolist() == alone.predictor.tolist() and part.steps.tolist() == alone.steps.tolist()
        assert actions.stop - actions.start == len(alone.predictor)
