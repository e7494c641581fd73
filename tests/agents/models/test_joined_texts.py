"""Texts as one row of tokens: the same hidden states and gradients as side by side, each prompt once, and only where a model can."""

import numpy as np
import pytest
import torch

from agents.benchmark.performance.architectures import WITH_IMAGES, architectures
from agents.models.backbones import backbone_of, decoder_only
from agents.models.backbones.joined_texts import join_texts
from agents.models.loading import load_lm
from agents.models.lora import without_adapters
from agents.models.sequences import TextRecord, pack
from rewards.models.lora import add_adapters

from ..conftest import GPT2, LLAMA, VOCAB

MODELS = {
    **{name: model for name, model in architectures(VOCAB).items() if name != WITH_IMAGES},
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


def test_in_float64_only_the_last_digits_differ(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # of `hidden`; GPT-2 itself never asks for float32
    backbone, batch = backbone_of(load_lm(GPT2).double()), pack(TEXTS, "cpu")
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
    seen = {}
    assert [len(part.queries) for part in joined.attended] == [3, len(TEXTS)]
    for row, text in enumerate(TEXTS):
        own = joined.attended[1].keys[row][: len(text.context)]
        assert joined.ids[0, own].tolist() == text.context.tolist()
        assert joined.positions[0, own].tolist() == list(range(len(text.context)))
        seen.setdefault(tuple(text.context[: len(text.context) - text.first_step]), set()).add(int(own[0]))
    assert all(len(starts) == 1 for starts in seen.values()) and len(seen) == 3


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
