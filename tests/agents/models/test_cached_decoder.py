"""Cached decoding equals full passes, whatever the rows do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import obs_as_tensor

from agents.benchmark.performance.architectures import architectures
from agents.models.backbones import backbone_of, kv_cache
from agents.models.cached_decoder import CachedDecoder
from agents.models.loading import load_lm
from agents.models.sequences import PartialTexts, one_action_each
from agents.policies.transformer_policy import TransformerPolicy

from ..conftest import EOS, MODELS, VOCAB


def make_policy(env, config, **rules):
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=config, **rules)
    torch.nn.init.normal_(policy.value_head.weight)
    policy.set_training_mode(False)
    return policy


@torch.no_grad()
def uncached(policy, obs, actions):
    live = obs["prompt"][:, 0] >= 0
    rows = {key: torch.as_tensor(value[live]) for key, value in obs.items()}
    values, log_probs, _ = policy.evaluate_actions(rows, torch.as_tensor(actions[live]))
    return live, values.flatten().numpy(), log_probs.numpy()


@torch.no_grad()
def play_and_compare(policy, env, steps, scripted=None):
    obs, worst, ends = env.reset(), 0.0, 0
    for step in range(steps):
        if not (obs["prompt"][:, 0] >= 0).any():
            break
        actions, values, log_probs = policy(obs_as_tensor(obs, policy.device))
        actions = actions.numpy()
        live, full_values, full_log_probs = uncached(policy, obs, actions)
        worst = max(worst, np.abs(values.numpy().ravel()[live] - full_values).max(), np.abs(log_probs.numpy()[live] - full_log_probs).max())
        if scripted is not None:
            actions = scripted(step, actions)
        obs, _, dones, _ = env.step(actions)
        ends += int(dones.sum())
    return worst, ends


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_end_and_restart_at_different_times(make_env, name):
    env = make_env(num_envs=7)
    worst, ends = play_and_compare(make_policy(env, MODELS[name]), env, steps=60)
    assert ends > 20
    assert worst < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_go_idle_leave_the_batch(make_env, name):
    env = make_env(num_envs=8)
    env.begin_rollout(11)
    policy = make_policy(env, MODELS[name])
    worst, ends = play_and_compare(policy, env, steps=99)
    assert ends == 11
    assert worst < 1e-5
    assert len(policy._caches["acting"]._rows) < 8


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_what_an_interrupted_pass_left_is_not_used(monkeypatch, kind):
    """Each call that moves buffers or reads a layer is interrupted in turn, and the same decoder goes on with other texts."""
    backbone, decoder = backbone_of(load_lm(architectures(VOCAB)[kind])), CachedDecoder()
    ids, calls, last = np.random.default_rng(0).integers(1, VOCAB, (5, 45)), 0, 0

    def texts(*lengths):
        written = np.arange(45) < np.array(lengths)[:, None]
        return PartialTexts(np.where(written, ids, -1), np.array(lengths), np.minimum(lengths, 2))

    course = [texts(3, 3, 0, 5, 2), texts(4, 4, 0, 6, 3), texts(34, 0, 3, 7, 9), texts(35, 6, 4, 0, 10)]
    expected = [backbone.hidden(one_action_each(part.only(np.flatnonzero(part.lengths)), "cpu")).detach() for part in course]
    decoder.last_hidden(backbone, course[0])  # the check at first use

    def interrupted(function):
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(kv_cache, "_laid_out", interrupted(kv_cache._laid_out))
    monkeypatch.setattr(kv_cache.KeysAndValues, "update", interrupted(kv_cache.KeysAndValues.update))
    monkeypatch.setattr(kv_cache.RecurrentState, "lay_out", interrupted(kv_cache.RecurrentState.lay_out))
    monkeypatch.setattr(kv_cache.RecurrentState, "close", interrupted(kv_cache.RecurrentState.close))
    while calls >= last:
        decoder.drop()
        last, calls = last + 1, 0
        for part, hidden in zip(course, expected, strict=True):
            try:
                found = decoder.last_hidden(backbone, part)
            except KeyboardInterrupt:
                continue
            torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-4)
    assert last > 12


def test_actions_other_than_the_ones_drawn(make_env):
    """The environment may be given another token than the policy drew: the cache follows the text, not the policy."""
    env = make_env(num_envs=5)
    rng = np.random.default_rng(1)

    def scripted(step, actions):
        return np.where(rng.random(5) < 0.15, EOS, rng.integers(1, VOCAB, 5))

    worst, _ = play_and_compare(make_policy(env, MODELS["llama"]), env, 50, scripted)
    assert worst < 1e-5


def test_the_cache_is_dropped_when_weights_change(make_env):
    env = make_env()
    policy = make_policy(env, MODELS["llama"])
    obs = env.reset()
    for change in ("train", "load"):
        actions, _, _ = policy(obs_as_tensor(obs, policy.device))
        obs = env.step(actions.numpy())[0]
        state = {k: v + 0.1 * torch.randn_like(v) for k, v in policy.state_dict().items()}
        if change == "train":
            policy.set_training_mode(True)
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            policy.set_training_mode(False)
        else:
            policy.load_state_dict(state)
        with torch.no_grad():
            actions, values, log_probs = policy(obs_as_tensor(obs, policy.device))
        _, full_values, full_log_probs = uncached(policy, obs, actions.numpy())
        np.testing.assert_allclose(log_probs.numpy(), full_log_probs, atol=1e-5)
        np.testing.assert_allclose(values.numpy().ravel(), full_values, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_texts(make_env):
    env = make_env(num_envs=3)
    policy = make_policy(env, MODELS["llama"])
    play_and_compare(policy, env, steps=150)
    assert policy._caches["acting"].memory <= 3 * 32 * 2 * 2 * 8 * 4  # rows, columns, layers, keys and values, size, bytes


def test_predict_does_not_disturb_a_rollout(make_env):
    env, other = make_env(num_envs=4), make_env(num_envs=2, seed=9)
    policy = make_policy(env, MODELS["llama"])
    obs, elsewhere = env.reset(), other.reset()
    for _ in range(12):
        with torch.no_grad():
            actions, _, log_probs = policy(obs_as_tensor(obs, policy.device))
        _, _, full = uncached(policy, obs, actions.numpy())
        np.testing.assert_allclose(log_probs.numpy(), full, atol=1e-5)
        elsewhere = other.step(policy.predict(elsewhere)[0])[0]
        obs = env.step(actions.numpy())[0]


def test_the_copies_of_a_prompt_are_read_once(task):
    """Two groups of four: two prompts go through the model, and every copy goes on by itself."""
    from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

    env = TextGenerationVecEnv(8, task=replace(task, group_size=4), reward=lambda completions: [0.0] * len(completions))
    env.seed(0)
    policy = make_policy(env, MODELS["llama"])
    rows, feed = [], policy.backbone.feed

    def watched(fed, states):
        rows.append((len(fed.ids), states.plan.fresh))
        return feed(fed, states)

    policy._caches["acting"].last_hidden(policy.backbone, texts_of_prompts(env.reset()))  # the check at first use
    policy.drop_caches()
    policy.backbone.feed = watched
    env.seed(0)
    play_and_compare(policy, env, steps=1)
    distinct = len({tuple(row) for row in env.core.observe()["prompt"].tolist()})
    assert rows[0] == (distinct, True) and distinct <= 2
    worst, _ = play_and_compare(policy, env, steps=30)
    assert worst < 1e-5


def texts_of_prompts(obs):
    from agents.models.sequences import texts_of

    return texts_of({key: torch.as_tensor(value) for key, value in obs.items()})


WINDOW = {
    "model_type": "gpt_neo", "vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]], "window_size": 16, "bos_token_id": None, "eos_token_id": EOS, "initializer_range": 0.3,
}  # fmt: skip


@pytest.mark.reports(
    "Cached decoding is tried at the length of the task's texts: a window that it does not know is found, and the ratio is 1."
)
@pytest.mark.parametrize(("response", "cached"), [(10, True), (30, False)])
def test_a_window_is_met_at_the_length_of_the_tasks_texts(make_env, task, recwarn, response, cached):
    env = make_env(num_envs=5, task=replace(task, max_new_tokens=response))  # prompts take up to 6 tokens
    policy = make_policy(env, WINDOW, banned_tokens=(EOS,))
    worst, _ = play_and_compare(policy, env, steps=2 * response)
    assert worst < 1e-5
    assert policy.backbone.cacheable is cached
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (not cached) and all(
        "GPTNeoForCausalLM decodes without a cache" in line and "at 36 tokens" in line for line in said
    )


@pytest.mark.reports("A model that was tried on short texts is tried again when longer ones come.")
def test_longer_texts_are_tried_again():
    backbone, decoder = backbone_of(load_lm(WINDOW)), CachedDecoder()

    def ask(width):
        ids = np.full((1, width), -1)
        ids[0, 0] = 3
        decoder.last_hidden(backbone, PartialTexts(ids, np.array([1]), np.array([1])))
        return backbone.cacheable

    assert ask(6) and ask(16)
    with pytest.warns(UserWarning, match=r"GPTNeo.*without a cache.*at 40 tokens"):
        assert not ask(40)


@pytest.mark.reports("For a task of short texts the try of cached decoding stays as short as it was: 8 tokens.")
def test_short_tasks_are_tried_on_short_texts(monkeypatch):
    backbone, widths = backbone_of(load_lm(MODELS["llama"])), []
    hidden = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda batch: (widths.append(batch.input_ids.shape[1]), hidden(batch))[1])
    CachedDecoder().last_hidden(backbone, PartialTexts(np.array([[1, 2, -1, -1, -1, -1, -1]]), np.array([2]), np.array([1])))
    assert len(widths) == 6 and max(widths) <= 8
