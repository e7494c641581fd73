"""Log-probabilities by blocks of the vocabulary against torch's distributions over whole logits, and where they are used."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents.models import lm_head as head
from agents.models.backbones import backbone_of
from agents.models.lm_head import block_width, head_log_probs, logits_alive
from agents.models.loading import load_lm
from agents.models.log_probs import action_log_probs, action_logits
from agents.models.sampler import Sampler, pack_kept
from agents.models.sequences import TextRecord, pack
from rewards.models.lora import add_adapters

from ..conftest import LLAMA, VOCAB
from .test_families import MODELS

TOKENS = 11


@pytest.fixture(params=[0, 1 << 26], ids=["computed again", "kept"])
def narrow(monkeypatch, request):
    """Blocks of 8 columns."""
    monkeypatch.setattr(head, "_NARROWEST", 8)
    monkeypatch.setattr(head, "LOGITS_IN_CACHE", 8)
    monkeypatch.setattr(head, "KEPT_AT_MOST", request.param)


def gradients_of(function, weights, leaves):
    for leaf in leaves:
        leaf.grad = None
    log_probs, entropies = function()
    ((log_probs * weights[0]).sum() + (entropies * weights[1]).sum()).backward()
    return [log_probs, entropies, *(leaf.grad for leaf in leaves if leaf.requires_grad)]


@pytest.mark.parametrize("ruled", [False, True], ids=["free", "under rules"])
@pytest.mark.parametrize("bonus", [0.0, 1.0])
@pytest.mark.parametrize(("words", "outputs", "bias"), [(37, 37, False), (37, 41, True), (8, 8, True), (5, 64, False)])
def test_numbers_and_gradients_are_those_of_torch(narrow, ruled, bonus, words, outputs, bias):
    layer = nn.Linear(6, outputs, bias=bias).double()
    hidden = (3 * torch.randn(TOKENS, 6, dtype=torch.float64)).requires_grad_()
    actions = torch.randint(1, words, (TOKENS,))
    withheld, banned, kept = None, (), None
    allowed = torch.ones(TOKENS, words, dtype=torch.bool)
    if ruled:
        withheld = torch.stack([torch.tensor([0, 3, 3, 9, 0]), torch.zeros(5, dtype=torch.int64)])
        banned = tuple(word for word in (words - 1, 2) if word not in actions)
        chosen = torch.rand(TOKENS, words) < 0.6
        chosen[torch.arange(TOKENS), actions] = True
        kept = torch.from_numpy(pack_kept(chosen))
        allowed = chosen.clone()
        allowed[withheld[0], withheld[1]] = False
        allowed[:, list(banned)] = False
    weights = torch.randn(2, TOKENS, dtype=torch.float64)
    weights[1] *= bonus

    def whole():
        distribution = torch.distributions.Categorical(logits=layer(hidden)[:, :words].masked_fill(~allowed, -1e9))
        return distribution.log_prob(actions), distribution.entropy()

    leaves = [hidden, *layer.parameters()]
    theirs = gradients_of(whole, weights, leaves)
    ours = gradients_of(lambda: head_log_probs(layer, hidden, actions, words, withheld, banned, kept), weights, leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    with torch.inference_mode():
        alone = head_log_probs(layer, hidden, actions, words, withheld, banned, kept)
    assert torch.equal(alone[0], ours[0]) and torch.equal(alone[1], ours[1])


def test_a_frozen_head_gets_no_gradient_and_hidden_states_do(narrow):
    layer = nn.Linear(6, 20).requires_grad_(False)
    hidden = torch.randn(TOKENS, 6, requires_grad=True)
    log_probs, _ = head_log_probs(layer, hidden, torch.zeros(TOKENS, dtype=torch.int64), 20)
    log_probs.sum().backward()
    assert layer.weight.grad is None and hidden.grad.abs().min() > 0


def test_large_logits_neither_overflow_nor_vanish(narrow):
    layer = nn.Linear(1, 40, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 40)[:, None])
    hidden = torch.tensor([[3e4], [-3e4], [0.0]])
    log_probs, entropies = head_log_probs(layer, hidden, torch.tensor([39, 39, 7]), 40)
    torch.testing.assert_close(log_probs, torch.tensor([0.0, -6e4, -float(np.log(40))]))
    torch.testing.assert_close(entropies, torch.tensor([0.0, 0.0, float(np.log(40))]))


def test_what_is_kept_is_bounded():
    assert block_width(384, 131_072, True) == 2728 and block_width(384, 131_072, False) == 43_688
    assert block_width(8, 131_072, True) == 131_072 and block_width(100_000, 131_072, True) == 512
    assert logits_alive(384, 4096, True, True) == 2 * 384 * 2728 + 384 * 4096
    assert logits_alive(384, 4096, False, True) == 2 * 384 * 2728
    assert logits_alive(1024, 131_072, True, True) == 2 * 1024 * 1024  # 512 MiB are computed again


def test_which_models_have_a_plain_head():
    plain = {name for name, config in MODELS.items() if backbone_of(load_lm(config)).head is not None}
    # Gemma 2 and 3 cap their logits, BART adds to them, T5 scales what it ties; a module of one's own is only asked for them
    assert plain == set(MODELS) - {"gemma3_text", "gemma2", "bart", "t5", "nano", "gru"}
    lm = load_lm(LLAMA)
    adapted = copy.deepcopy(lm)
    add_adapters(adapted, {"r": 2})
    assert backbone_of(adapted).head is adapted.lm_head
    hook = lm.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    assert backbone_of(lm).head is None
    hook.remove()
    add_adapters(lm, {"r": 2, "target_modules": ["lm_head"]})
    assert backbone_of(lm).head is None


@pytest.mark.parametrize("cut", [False, True], ids=["all tokens", "kept sets"])
def test_texts_under_every_rule(narrow, cut):
    rng = np.random.default_rng(0)
    lm = load_lm(LLAMA)
    backbone = backbone_of(lm)
    texts = [TextRecord(rng.integers(1, VOCAB, 3), rng.integers(3, VOCAB, n), 0) for n in (4, 1, 7)]
    actions = torch.from_numpy(np.concatenate([t.actions for t in texts]))
    kept = torch.rand(12, VOCAB) < 0.6
    kept[torch.arange(12), actions] = True
    sampler = Sampler(temperature=0.7, min_new_tokens=2, eos_token_id=0, banned_tokens=(1, 2), no_repeat_ngram=2)
    batch = pack(texts, "cpu", pack_kept(kept) if cut else None, sampler)
    assert batch.repeats.shape[1] > 0

    def whole():
        distribution = torch.distributions.Categorical(logits=action_logits(backbone, backbone.hidden(batch), batch, sampler, VOCAB))
        return distribution.log_prob(actions), distribution.entropy()

    weights, leaves = torch.randn(2, 12), list(lm.parameters())
    theirs = gradients_of(whole, weights, leaves)
    ours = gradients_of(lambda: action_log_probs(backbone, backbone.hidden(batch), batch, actions, sampler, VOCAB), weights, leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)
