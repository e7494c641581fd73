"""Every family of models: cached decoding equals full passes under any schedule, and everything else that must hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
from transformers.activations import FastGELUActivation, NewGELUActivation

from agents import SequenceRolloutBuffer, TextPPO, TransformerPolicy
from agents.benchmark.performance.architectures import ENCODER_DECODERS, WITH_IMAGES, architectures, example_images
from agents.models.backbones import backbone_of
from agents.models.cached_decoder import CachedDecoder
from agents.models.loading import load_lm
from agents.models.sequences import PartialTexts, one_action_each
from tests.slow_cases import slow_but

from ..conftest import VOCAB
from .own_models import Noisy

OWN = {
    "nano": {
        "class": "tests.agents.models.own_models:Nano",
        "vocab_size": VOCAB,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "context_length": 64,
    },
    "gru": {"class": "tests.agents.models.own_models:Recurrent", "vocab_size": VOCAB},
}
MODELS = {**architectures(VOCAB), **OWN}
FAST = "llama", "gemma2", "mamba", "t5", "vision-encoder-decoder", "llava", *OWN  # one of each kind of cache
PROMPT, RESPONSE, ROWS = 5, 12, 4
WIDTH = PROMPT + RESPONSE


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    return {name: backbone_of(load_lm(config)) for name, config in MODELS.items()}


@pytest.fixture
def env_for(make_env, task):
    def make(name, num_envs):
        shown = [replace(p, image=i) for p, i in zip(task.prompts, example_images(len(task.prompts)), strict=True)]
        return make_env(num_envs, task=replace(task, prompts=shown) if name in WITH_IMAGES else task)

    return make


def images_of(name, number):
    return example_images(number) if name in WITH_IMAGES else None


# What happens to a row between two calls: a token is added, or several (the environment wrote), the text is cut back, it ends
# and another begins, it stays, the row goes idle.
MOVES = st.sampled_from(["token", "token", "token", "token", "insert", "insert", "back", "restart", "twin", "stay", "idle"])


@pytest.mark.parametrize("name", slow_but(FAST, MODELS))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=st.lists(st.lists(MOVES, min_size=ROWS, max_size=ROWS), min_size=1, max_size=14), seed=st.integers(0, 99))
def test_cached_equals_full_under_any_schedule(backbones, name, schedule, seed):  # noqa: C901 - one branch a move
    rng = np.random.default_rng(seed)
    backbone, decoder = backbones[name], CachedDecoder()
    texts = PartialTexts(np.full((ROWS, WIDTH), -1), np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64), images_of(name, ROWS))

    def restart(row, twin=False):
        ids, lengths, prompts, images = texts
        source = (row + 1) % ROWS
        if twin and lengths[source]:
            ids[row, : prompts[source]], prompts[row] = ids[source, : prompts[source]], prompts[source]
        else:
            prompts[row] = rng.integers(1, PROMPT + 1)
            ids[row, : prompts[row]] = rng.integers(VOCAB, size=prompts[row])
        if images is not None:
            images[row] = images[source] if rng.random() < 0.5 else rng.integers(256, size=images[row].shape)
        lengths[row] = prompts[row]

    for row in range(ROWS):
        restart(row)
    for moves in [["stay"] * ROWS, *schedule]:
        for row, move in enumerate(moves):
            ids, lengths, prompts, _ = texts
            added = {"token": 1, "insert": int(rng.integers(2, 5))}.get(move, 0)
            room = prompts[row] + RESPONSE - lengths[row]
            if move == "idle":
                lengths[row] = prompts[row] = 0
            elif move in ("restart", "twin") or not lengths[row] or added > room:
                restart(row, move == "twin")
            elif move == "back":
                lengths[row] = max(prompts[row], lengths[row] - 2)
            ids[row, lengths[row] : lengths[row] + added] = rng.integers(VOCAB, size=added)
            lengths[row] += added
            ids[row, lengths[row] :] = -1
        live = texts.lengths > 0
        if not live.any():
            continue
        with torch.no_grad():
            cached = backbone.logits(decoder.last_hidden(backbone, texts)).log_softmax(-1)
            full = backbone.logits(backbone.hidden(one_action_each(texts.only(live), "cpu"))).log_softmax(-1)
        assert (cached - full).abs().max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_family_but_those_without_a_cache_is_cached(backbones, name):
    texts = PartialTexts(np.array([[1, 2, -1], [3, -1, -1]]), np.array([2, 1]), np.array([1, 1]), images_of(name, 2))
    CachedDecoder().last_hidden(backbones[name], texts)  # a warning would be an error here
    assert backbones[name].cacheable == (name != "gru")


def test_a_model_that_ignores_positions_is_found_out(make_env):
    lm = load_lm({**OWN["nano"], "class": "tests.agents.models.own_models:Sloppy"})
    texts = PartialTexts(np.array([[1, 2, -1], [3, -1, -1]]), np.array([2, 1]), np.array([1, 1]))
    backbone, decoder = backbone_of(lm), CachedDecoder()
    with pytest.warns(UserWarning, match="Sloppy decodes without a cache"):
        decoder.last_hidden(backbone, texts)
    texts.ids[0, 2], texts.lengths[0] = 5, 3
    torch.testing.assert_close(decoder.last_hidden(backbone, texts), backbone.hidden(one_action_each(texts, "cpu")))


def test_dropout_that_stays_on_is_found_out():
    assert Noisy(VOCAB)(torch.zeros(1, 2, dtype=torch.int64), None).shape == (1, 2, 16)
    with pytest.raises(ValueError, match="Noisy is random in training mode"):
        load_lm({"class": "tests.agents.models.own_models:Noisy", "vocab_size": VOCAB})


def test_modules_that_lack_something():
    with pytest.raises(TypeError, match=r"Linear lacks vocab_size, hidden_size, logits\(\)"):
        load_lm({"class": "torch.nn:Linear", "in_features": 2, "out_features": 3})
    with pytest.raises(TypeError, match=r"no torch\.nn\.Module"):
        load_lm({"class": "os:system", "command": "true"})
    with pytest.raises(ValueError, match=r"package\.module:Name"):
        load_lm({"class": "torch.nn.Linear"})


def test_encoder_decoders_need_a_first_token():
    config = {**MODELS["bart"], "decoder_start_token_id": None, "pad_token_id": None, "bos_token_id": None}
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        load_lm(config)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_hidden_states_of_encoder_decoders_are_those_of_transformers(name):
    """Prompt as source, start token and response into the decoder; rows of different lengths."""
    lm = load_lm(MODELS[name])
    backbone = backbone_of(lm)
    texts = PartialTexts(np.array([[4, 5, 6, 7, 8, -1], [9, 3, -1, -1, -1, -1]]), np.array([5, 2]), np.array([2, 1]))
    logits = backbone.logits(backbone.hidden(one_action_each(texts, "cpu")))
    for row, (source, target) in enumerate([([4, 5], [6, 7, 8]), ([9], [3])]):
        theirs = lm(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target]])).logits[0, -1]
        torch.testing.assert_close(logits[row], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", slow_but(FAST, MODELS))
def test_gradients_equal_the_per_transition_path(env_for, name):
    """The same rollout through SB3's own buffer, one observation per token, and through ours, one pass per text."""
    grads = {}
    for buffer_class in (DictRolloutBuffer, SequenceRolloutBuffer):
        torch.manual_seed(0)
        np.random.seed(0)
        env = env_for(name, 3)
        settings = dict(n_steps=12, batch_size=36, n_epochs=1, gamma=1.0)
        agent = PPO(
            TransformerPolicy, env, normalize_advantage=False, max_grad_norm=1e9, learning_rate=1e-6, seed=0,
            rollout_buffer_class=buffer_class, policy_kwargs={"model": MODELS[name]}, **settings,
        )  # fmt: skip
        torch.nn.init.normal_(agent.policy.value_head.weight)
        agent.learn(36)
        grads[buffer_class] = {n: p.grad for n, p in agent.policy.named_parameters() if p.grad is not None}
        assert agent.logger.name_to_value["policy/clip_fraction"] == 0
        assert abs(agent.logger.name_to_value["policy/approx_kl"]) < 1e-6
    one, two = grads.values()
    assert one.keys() == two.keys() and len(one) > 3
    scale = max(g.abs().max() for g in one.values())
    assert max((one[n] - two[n]).abs().max() for n in one) < 2e-6 * scale


SPELLED_OUT = {  # architectures that spell out GELU's tanh approximation
    "gpt2": MODELS["gpt2"],
    "gptj": dict(model_type="gptj", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4),
    "fast": {**MODELS["gpt2"], "activation_function": "gelu_fast"},
    "t5": {**MODELS["t5"], "feed_forward_proj": "gated-gelu"},
}


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_fused_activations_change_rounding_only(name):
    config = {**SPELLED_OUT[name], "bos_token_id": None, "eos_token_id": 0}
    lm = load_lm(config).double()
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    theirs = auto.from_config(lm.config).double().eval()
    theirs.load_state_dict(lm.state_dict())
    assert theirs.config.to_dict() == lm.config.to_dict()
    spelled, fused = (
        sum(isinstance(part, kind) for part in model.modules())
        for model, kind in ((theirs, (NewGELUActivation, FastGELUActivation)), (lm, torch.nn.GELU))
    )
    assert spelled == fused == (4 if name == "t5" else 2)
    ids = torch.randint(VOCAB, (3, 9))
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if name == "t5" else {"input_ids": ids}
    gradients = []
    for model in (lm, theirs):
        logits = model(**inputs).logits
        (logits.log_softmax(-1)[..., 0].sum()).backward()
        gradients.append([logits.detach(), *(p.grad for p in model.parameters())])
    for ours, other in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", slow_but((name for name in FAST if name != "gemma2"), MODELS))  # which is saved as llama is
def test_save_and_load(env_for, tmp_path, name):
    env = env_for(name, 4)
    agent = TextPPO("TransformerPolicy", env, n_episodes=8, batch_size=4, n_epochs=1, seed=1, policy_kwargs={"model": MODELS[name]})
    agent.learn(20)
    assert agent.reference is not None and agent.rollout_buffer.stats.kl_per_sequence == pytest.approx(0, abs=1e-4)
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=env)
    obs = env.reset()
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    for policy in (agent.policy, loaded.policy):
        policy.set_training_mode(False)
    expected = agent.policy.get_distribution(tensors).distribution.logits
    assert torch.equal(loaded.policy.get_distribution(tensors).distribution.logits, expected)
    agent.policy.save_pretrained(tmp_path / "folder")
    source = {"class": MODELS[name]["class"], "weights": str(tmp_path / "folder")} if name in OWN else str(tmp_path / "folder")
    again = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=source)
    again.set_training_mode(False)
    torch.testing.assert_close(again.get_distribution(tensors).distribution.logits, expected)
    torch.testing.assert_close(again.predict_values(tensors), agent.policy.predict_values(tensors))
    if name in OWN:
        with pytest.raises(ValueError, match="pass model="):
            load_lm(tmp_path / "folder")
    else:
        auto = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
        auto = AutoModelForImageTextToText if name in WITH_IMAGES else auto
        assert auto.from_pretrained(tmp_path / "folder").config.model_type == name
