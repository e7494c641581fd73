"""Log-probabilities by blocks of the vocabulary against torch's distributions over whole logits, and where they are used."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from agents import TextPPO
from agents.models import lm_head as head
from agents.models.backbones import backbone_of
from agents.models.cached_decoder import CachedDecoder
from agents.models.lm_head import block_width, head_log_probs, logits_alive
from agents.models.loading import load_lm, save_lm
from agents.models.log_probs import action_log_probs, action_logits, full_kl
from agents.models.sampler import Sampler, pack_kept
from agents.models.sequences import PartialTexts, TextRecord, pack
from rewards.models.lora import add_adapters
from tests.slow_cases import slow_where

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


@pytest.mark.reports("A temperature divides the bias of the head too, in log-probabilities, entropies and gradients.")
@pytest.mark.parametrize("ruled", [False, True], ids=["free", "under rules"])
@pytest.mark.parametrize(("bonus", "temperature"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize(("words", "outputs", "bias"), [(37, 37, False), (37, 41, True), (8, 8, True), (5, 64, False)])
def test_numbers_and_gradients_are_those_of_torch(narrow, ruled, bonus, temperature, words, outputs, bias):
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
        kept = pack_kept(chosen)
        allowed = chosen.clone()
        allowed[withheld[0], withheld[1]] = False
        allowed[:, list(banned)] = False
    weights = torch.randn(2, TOKENS, dtype=torch.float64)
    weights[1] *= bonus

    def whole():
        distribution = torch.distributions.Categorical(logits=(layer(hidden) / temperature)[:, :words].masked_fill(~allowed, -1e9))
        return distribution.log_prob(actions), distribution.entropy()

    leaves = [hidden, *layer.parameters()]
    theirs = gradients_of(whole, weights, leaves)
    ours = gradients_of(lambda: head_log_probs(layer, hidden, actions, words, withheld, banned, kept, temperature), weights, leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    with torch.inference_mode():
        alone = head_log_probs(layer, hidden, actions, words, withheld, banned, kept, temperature)
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
    batch = pack(texts, "cpu", pack_kept(kept).numpy() if cut else None, sampler)
    assert batch.withheld.shape[1] > 0

    def whole():
        distribution = torch.distributions.Categorical(logits=action_logits(backbone, backbone.hidden(batch), batch, sampler, VOCAB))
        return distribution.log_prob(actions), distribution.entropy()

    weights, leaves = torch.randn(2, 12), list(lm.parameters())
    theirs = gradients_of(whole, weights, leaves)
    ours = gradients_of(lambda: action_log_probs(backbone, backbone.hidden(batch), batch, actions, sampler, VOCAB), weights, leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)


ATTENTION = {**LLAMA, "pad_token_id": None}
HEADS = {  # what may stand behind the matrix: a bias, a scale, a cap
    "phi": {**ATTENTION, "model_type": "phi"},
    "gptj": dict(model_type="gptj", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4, initializer_range=0.3),
    "codegen": dict(model_type="codegen", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "cohere": {**ATTENTION, "model_type": "cohere", "logit_scale": 0.25},
    "granite": {**ATTENTION, "model_type": "granite", "logits_scaling": 3.0},
    "gemma3_text": {**MODELS["gemma3_text"], "final_logit_softcapping": 2.0},
    "bart": MODELS["bart"],
    "t5": MODELS["t5"],
}
# the other temperature with a bias, and later with all
TEMPERED = slow_where(lambda temperature, name: temperature == 1.3 and name != "phi", itertools.product((0.5, 1.3), HEADS))
TEXTS = [([1, 2, 3], [4, 5, 6, 7]), ([9], [8]), ([5, 6, 7, 8], [11, 3, 2, 1, 12, 17])]  # prompt and response


def with_everything_at_work(config):
    lm = load_lm({"bos_token_id": None, "eos_token_id": 0, **config})
    for constant in (lm.get_output_embeddings().bias, getattr(lm, "final_logits_bias", None)):
        if constant is not None:
            torch.nn.init.normal_(constant, std=2.0)
    return lm


def by_transformers(lm, temperature):
    """Log-probabilities of all tokens before each action, (N, V), by the module's own logits, one text at a time."""
    rows = []
    for prompt, response in TEXTS:
        if lm.config.is_encoder_decoder:
            start = lm.config.decoder_start_token_id
            logits = lm(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *response[:-1]]])).logits[0]
        else:
            logits = lm(input_ids=torch.tensor([[*prompt, *response[:-1]]])).logits[0, len(prompt) - 1 :]
        rows.append((logits / temperature).log_softmax(-1))
    return torch.cat(rows)


@pytest.mark.reports("At any temperature every path has the model's own probabilities, whatever stands behind the head's matrix.")
@pytest.mark.parametrize(("temperature", "name"), TEMPERED)
@torch.no_grad()
def test_every_path_has_the_models_own_probabilities(make_env, monkeypatch, name, temperature):
    lm = with_everything_at_work(HEADS[name])
    expected = by_transformers(lm, temperature)  # (N, V)
    backbone, sampler = backbone_of(lm), Sampler(temperature=temperature)
    records = [TextRecord(np.array(prompt), np.array(response), 0) for prompt, response in TEXTS]
    batch, actions = pack(records, "cpu"), torch.tensor([token for _, response in TEXTS for token in response])
    log_probs = expected.gather(-1, actions[:, None]).squeeze(-1)
    entropies = -(expected.exp() * expected).sum(-1)
    close = dict(atol=2e-5, rtol=1e-5)
    for at_once in (1 << 24, 2 * VOCAB):  # all at once, and in chunks
        monkeypatch.setattr("agents.models.log_probs.LOGITS_AT_ONCE", at_once)
        ours = action_log_probs(backbone, backbone.hidden(batch), batch, actions, sampler, VOCAB)
        torch.testing.assert_close(ours[0], log_probs, **close)
        torch.testing.assert_close(ours[1], entropies, **close)
        other = backbone_of(with_everything_at_work(HEADS[name]))
        kl = (expected.exp() * (expected - by_transformers(other.lm, temperature))).sum(-1)
        torch.testing.assert_close(full_kl(backbone, other, batch, sampler, VOCAB), kl, **close)
    torch.testing.assert_close(full_kl(backbone, backbone_of(copy.deepcopy(lm)), batch, sampler, VOCAB), torch.zeros(len(actions)), **close)
    # what TRPO and the acting policy read
    whole = action_logits(backbone, backbone.hidden(batch), batch, sampler, VOCAB).log_softmax(-1)
    torch.testing.assert_close(whole, expected, **close)
    decoder, ids, rows = CachedDecoder(), np.full((1, 10), -1), []
    for prompt, response in TEXTS:
        for known in range(len(response)):
            text = [*prompt, *response[:known]]
            ids[:], ids[0, : len(text)] = -1, text
            hidden = decoder.last_hidden(backbone, PartialTexts(ids.copy(), np.array([len(text)]), np.array([len(prompt)])))
            rows.append(sampler.apply_rules(backbone.logits(hidden)).log_softmax(-1))
    torch.testing.assert_close(torch.cat(rows), expected, **close)


@pytest.mark.reports("With a bias on the head and a temperature, the first ratio is 1 and KL to an identical reference 0.")
@pytest.mark.parametrize("name", ["phi", "gptj", "codegen"])
def test_the_first_ratio_is_one_and_kl_to_itself_is_zero(make_env, tmp_path, name):
    save_lm(with_everything_at_work(HEADS[name]), tmp_path / "biased")
    settings = {"model": str(tmp_path / "biased"), "temperature": 0.5}
    agent = TextPPO("TransformerPolicy", make_env(), n_episodes=12, batch_size=12, n_epochs=1, seed=0, policy_kwargs=settings)
    agent.learn(20)
    assert np.abs(agent.rollout_buffer.kl).max() < 1e-5
    assert abs(agent.logger.name_to_value["policy/approx_kl"]) < 1e-6 and agent.logger.name_to_value["policy/clip_fraction"] == 0
