"""Decoding with copied weights: what full passes give, and the module's own parameters never notice."""

import itertools
import os

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from agents import TextPPO
from agents.models import decoding_weights
from agents.models.backbones import backbone_of
from agents.models.cached_decoder import CachedDecoder
from agents.models.decoding_weights import DecodingWeights, copied_bytes
from agents.models.loading import load_lm
from agents.models.lora import adapters_off, merged
from agents.models.sequences import PartialTexts, one_action_each
from agents.policies.transformer_policy import TransformerPolicy
from rewards.models.lora import adapted_layers, add_adapters
from tests.slow_cases import slow_where
from textrl_env.utils.model_files import model_folder

from ..conftest import GPT2, LLAMA, VOCAB
from .test_cached_decoder import play_and_compare
from .test_lora import EXACT

pytest.importorskip("peft")

T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "eos_token_id": 0,
    "pad_token_id": 0, "decoder_start_token_id": 0, "initializer_factor": 2.0,
}  # fmt: skip
MODELS = {"llama": LLAMA, "gpt2": GPT2, "t5": T5}


@pytest.fixture(params=["folded", "folded and packed"])
def packs(request, monkeypatch):
    """Both ways, whatever the size of the model; says whether matrices are packed."""
    monkeypatch.setattr(decoding_weights, "PACKED_FROM", 0 if request.param == "folded and packed" else 1 << 60)
    return request.param == "folded and packed"


def make_policy(env, model, lora=None, **settings):
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-2, model=model, lora=lora, **settings)
    with torch.no_grad():
        for name, parameter in policy.lm.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    policy.set_training_mode(False)
    return policy


@torch.no_grad()
def bound(policy):
    """Of log-probabilities: 1e-5 times the scale of the logits."""
    ids = torch.arange(VOCAB)[None, :12]
    given = {"decoder_input_ids": ids} if policy.lm.config.is_encoder_decoder else {}
    return 1e-5 * max(1.0, float(policy.lm(input_ids=ids, **given).logits.abs().max()))


def weights_of(lm):
    return {name: tensor.clone() for name, tensor in lm.state_dict().items()}


def is_untouched(lm, before):
    same = all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())
    return same and not any("forward" in vars(module) for module in lm.modules())


# packed is what was folded, whatever it was
FOLDED = slow_where(
    lambda name, way: way == "folded and packed" and name in ("dora", "ranks", "some layers"),
    itertools.product(EXACT, ("folded", "folded and packed")),
)


@pytest.mark.parametrize(("name", "packs"), FOLDED, indirect=["packs"])
def test_every_kind_of_adapter_is_folded_in(make_env, packs, name):
    env = make_env(num_envs=5)
    policy = make_policy(env, LLAMA, EXACT[name])
    before = weights_of(policy.lm)
    worst, ends = play_and_compare(policy, env, steps=25)
    assert ends > 5
    assert worst < bound(policy)
    assert is_untouched(policy.lm, before)
    forwards = policy._weights[policy.backbone]._forwards
    assert set(adapted_layers(policy.lm).values()) <= set(forwards)
    assert copied_bytes(policy.lm) >= sum(layer.get_base_layer().weight.nbytes for layer in adapted_layers(policy.lm).values())


@pytest.mark.parametrize("lora", [None, {"r": 2}])
@pytest.mark.parametrize("name", MODELS)
def test_packed_layers_give_what_full_passes_give(make_env, monkeypatch, name, lora):
    monkeypatch.setattr(decoding_weights, "PACKED_FROM", 0)
    env, products, multiply = make_env(num_envs=5), [], decoding_weights._multiply
    monkeypatch.setattr(decoding_weights, "_multiply", lambda *given: (products.append(1), multiply(*given))[1])
    policy = make_policy(env, MODELS[name], lora)
    before = weights_of(policy.lm)
    worst, _ = play_and_compare(policy, env, steps=25)
    assert worst < bound(policy)
    assert len(products) > 100
    assert is_untouched(policy.lm, before)


def test_the_layer_is_that_of_the_saved_model(packs):
    lm = load_lm(GPT2)
    add_adapters(lm, {"r": 2, "init_lora_weights": False})
    saved, weights, x = merged(lm), DecodingWeights(backbone_of(lm)), torch.randn(3, 16)
    name = "transformer.h.0.attn.c_attn"
    with weights, torch.no_grad():
        layer = lm.get_submodule(name)(x)
    expected = saved.get_submodule(name)(x)
    assert torch.allclose(layer, expected, atol=1e-6) if packs else torch.equal(layer, expected)


def test_adapters_at_their_start_change_no_bit(make_env, monkeypatch):
    """Folded in, zeros leave the weights as they are; two products beside would round."""
    seen = []
    for lora in (None, {"r": 2}):
        env = make_env(num_envs=4)
        torch.manual_seed(1)
        policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-2, model=LLAMA, lora=lora)
        policy.set_training_mode(False)
        obs = env.reset()
        torch.manual_seed(2)
        for _ in range(8):
            with torch.no_grad():
                actions, _, log_probs = policy(obs_as_tensor(obs, policy.device))
            seen.append(log_probs)
            obs = env.step(actions.numpy())[0]
    assert torch.equal(torch.stack(seen[:8]), torch.stack(seen[8:]))


class Stop(nn.Module):
    """Raises what it is told to in the middle of a pass."""

    def __init__(self, layer, error):
        super().__init__()
        self.layer, self.error = layer, error

    def forward(self, *args, **kwargs):
        if self.error is not None:
            raise self.error
        return self.layer(*args, **kwargs)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_interrupted_step_leaves_the_module_as_it_was(make_env, packs, error):
    env = make_env(num_envs=4)
    policy = make_policy(env, LLAMA, {"r": 2})
    obs = env.reset()
    with torch.no_grad():
        actions, _, _ = policy(obs_as_tensor(obs, policy.device))
    obs = env.step(actions.numpy())[0]
    before, layers = weights_of(policy.lm), policy.lm.model.layers
    layer, layers[1].mlp = layers[1].mlp, Stop(layers[1].mlp, error)
    with torch.no_grad(), pytest.raises(type(error)):
        policy(obs_as_tensor(obs, policy.device))
    layers[1].mlp = layer
    assert is_untouched(policy.lm, before)
    worst, _ = play_and_compare(policy, env, steps=10)
    assert worst < 1e-5


def test_the_base_under_the_adapters_is_itself(make_env, packs):
    """A reference that shares the module computes without the adapters, between the steps too."""
    env = make_env(num_envs=3)
    policy, ids = make_policy(env, LLAMA, {"r": 2}), torch.tensor([[1, 2, 3]])
    base = load_lm(LLAMA)
    base.load_state_dict({k.replace(".base_layer", ""): v for k, v in policy.lm.state_dict().items() if "lora_" not in k})
    obs = obs_as_tensor(env.reset(), policy.device)
    with torch.no_grad():
        policy(obs)
        with adapters_off(policy.lm):
            assert torch.equal(policy.lm(ids).logits, base(ids).logits)
            _, _, off = policy(obs, deterministic=True)
        _, _, on = policy(obs, deterministic=True)
        texts = make_policy(env, LLAMA)
        texts.lm.load_state_dict(base.state_dict())
        _, _, expected = texts(obs, deterministic=True)
    torch.testing.assert_close(off, expected, atol=1e-5, rtol=0)
    assert (on - off).abs().max() > 1e-3


def test_changed_weights_are_seen(make_env, packs):
    """Without a word from whoever changed them: copies and keys of the old ones are not used again."""
    env = make_env(num_envs=4)
    policy = make_policy(env, LLAMA, {"r": 2})
    for _ in range(3):
        worst, _ = play_and_compare(policy, env, steps=4)
        assert worst < 1e-5
        with torch.no_grad():
            for parameter in policy.actor_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_mixed_precision_keeps_the_adapters_apart(make_env, packs):
    env = make_env(num_envs=3)
    policy = make_policy(env, LLAMA, {"r": 2}, precision="bfloat16")
    play_and_compare(policy, env, steps=5)
    assert not policy._weights[policy.backbone]._forwards


def test_copies_go_when_the_update_comes(make_env, packs):
    env = make_env(num_envs=3)
    policy = make_policy(env, LLAMA, {"r": 2}, critic="separate")
    play_and_compare(policy, env, steps=5)
    assert all(weights._forwards or not packs for weights in policy._weights.values())
    assert policy._weights[policy.backbone]._forwards
    policy.set_training_mode(True)
    assert not any(weights._forwards for weights in policy._weights.values())


def test_the_first_ratio_is_one_and_kl_starts_at_zero(make_env, packs):
    """Tokens are drawn with copies, and scored by the update and the reference without."""
    seen = []

    class Watched(TextPPO):
        def train(self):
            self.policy.set_training_mode(True)
            with torch.no_grad():
                for part in self.rollout_buffer.get(3):
                    _, log_probs, _ = self.policy.evaluate_actions(part.observations, part.actions.long().flatten())
                    seen.append((float((log_probs - part.old_log_prob.flatten()).exp().sub(1).abs().max()), self.rollout_buffer.kl))
            super().train()

    settings = {"model": LLAMA, "lora": {"r": 2}}
    agent = Watched("TransformerPolicy", make_env(), n_episodes=6, batch_size=3, learning_rate=3e-2, seed=0, policy_kwargs=settings)
    agent.learn(90)
    assert len(seen) >= 4
    assert max(ratio for ratio, _ in seen) < bound(agent.policy)
    assert np.abs(seen[0][1]).max() < 1e-5
    assert np.abs(seen[-1][1]).max() > 1e-2  # by now the adapters are somewhere


@torch.no_grad()
def greedy(lm, prompts, new_tokens):
    """Write the likeliest tokens; return them, shape (B, T), and the largest difference from full passes by the scale of logits."""
    backbone = backbone_of(lm)
    weights = DecodingWeights(backbone)
    decoder, lengths = CachedDecoder(weights=weights), np.array([len(prompt) for prompt in prompts])
    ids = np.full((len(prompts), max(lengths) + new_tokens), -1)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    worst = 0.0
    for step in range(new_tokens):
        texts = PartialTexts(ids, lengths + step, lengths)
        hidden = decoder.last_hidden(backbone, texts)
        with weights:
            logits = backbone.logits(hidden)  # (B, V)
        if step % 5 == 1:
            full = backbone.logits(backbone.hidden(one_action_each(texts, "cpu")))
            worst = max(worst, float((logits.log_softmax(-1) - full.log_softmax(-1)).abs().max() / full.abs().max()))
        ids[np.arange(len(ids)), lengths + step] = logits.argmax(-1).numpy()
    return np.stack([row[n : n + new_tokens] for row, n in zip(ids, lengths, strict=True)]), worst


@torch.no_grad()
def by_transformers(lm, prompts, new_tokens):
    """The same by `generate`, in one batch that is padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    read = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rules = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return lm.generate(input_ids=ids, attention_mask=read, **rules)[:, width:].numpy()


def with_random_adapters(lm, std):
    add_adapters(lm, {"r": 8})
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    return lm


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_texts_are_those_of_transformers(packs, name, adapters):
    lm = load_lm(MODELS[name]).eval()
    if adapters:
        with_random_adapters(lm, 0.1)
    prompts = [np.random.default_rng(row).integers(1, VOCAB, 1 + row % 7).tolist() for row in range(20)]
    texts, worst = greedy(lm, prompts, 12)
    assert np.array_equal(texts, by_transformers(lm, prompts, 12))
    assert worst < 1e-5


SMOLLM2 = os.environ.get("TEXTRL_SMOLLM2", "")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isfile(SMOLLM2), reason="TEXTRL_SMOLLM2 names no .gguf file of SmolLM2-135M")
@pytest.mark.parametrize("adapters", [False, True])
def test_greedy_texts_of_a_pretrained_model(adapters):
    from transformers import AutoTokenizer

    lm = load_lm(SMOLLM2).eval()
    if adapters:
        with_random_adapters(lm, 0.01)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(SMOLLM2))
    openings = ("The film", "I went to the cinema because", "In the year 1900, a small town", "2 + 2 =", "Dear Sir or Madam, I")
    prompts = [
        tokenizer(f"{opening} {more}".strip()).input_ids for opening in openings for more in ("", "was", "said that", "and the other")
    ]
    texts, worst = greedy(lm, prompts, 16)
    assert np.array_equal(texts, by_transformers(lm, prompts, 16))
    assert worst < 1e-5
