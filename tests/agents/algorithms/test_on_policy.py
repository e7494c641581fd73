"""A2C, TRPO and MaskablePPO on texts: right on tasks with a known optimum, and unmodified with our policy and buffer."""

import numpy as np
import pytest
import torch
from sb3_contrib import TRPO, MaskablePPO
from stable_baselines3 import A2C
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents import NLPO, Reinforce, SequenceRolloutBuffer, TextA2C, TextMaskablePPO, TextPPO, TextTRPO, TransformerPolicy
from agents.benchmark.performance.architectures import architectures
from agents.evaluation.exact_optimum import optimality_gap
from agents.policies.maskable_policy import MaskableTransformerPolicy
from agents.rollouts.maskable_rollout_buffer import MaskableSequenceRolloutBuffer
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.tasks.exact import TASKS

from ..conftest import LLAMA, VOCAB

SETTINGS = {
    TextPPO: dict(n_episodes=256, batch_size=64),
    TextMaskablePPO: dict(n_episodes=256, batch_size=64),
    TextA2C: dict(n_episodes=64, rate=0.1),
    TextTRPO: dict(n_episodes=128, batch_size=64, target_kl=0.1),
}


def make(algorithm, task="Long", tokens=1, **settings):
    table = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": TASKS[task].vocab_size, "length": TASKS[task].length + 1}
    name = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    settings = {**SETTINGS[algorithm], **settings}
    rate = settings.pop("rate", 5e-2)
    return algorithm(
        name, TASKS[task].id, learning_rate=lambda left: rate * left, beta=0.3, seed=0,
        policy_kwargs={"model": table, "critic": "separate"}, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", slow_but([TextPPO], SETTINGS))
def test_the_optimum_is_reached(algorithm):
    agent = make(algorithm)
    start = optimality_gap(agent.policy.backbone, agent.rollout_buffer.reference, "Long", 0.3)
    assert start.closed == pytest.approx(0, abs=1e-9)
    agent.learn(40_000)
    assert optimality_gap(agent.policy.backbone, agent.rollout_buffer.reference, "Long", 0.3).closed > 0.9


def test_maskable_ppo_is_ppo_where_nothing_is_masked():
    weights = []
    for algorithm in (TextPPO, TextMaskablePPO):
        agent = make(algorithm, n_episodes=64)
        agent.learn(600)
        weights.append(agent.policy.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("algorithm", [TextA2C, TextTRPO, TextMaskablePPO])
def test_save_load_and_go_on_as_if_nothing_had_happened(algorithm, tmp_path):
    agent = make(algorithm, n_episodes=64)
    agent.learn(400)
    agent.save(tmp_path / "agent")
    agent.learn(800, reset_num_timesteps=False)
    again = algorithm.load(tmp_path / "agent", env=agent.env.unwrapped)
    again.learn(800, reset_num_timesteps=False)
    for (name, one), two in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_trpo_s_gradients_are_the_library_s(make_env, monkeypatch):
    weights = []
    for method in (TextTRPO._compute_actor_grad, TRPO._compute_actor_grad):
        monkeypatch.setattr(TextTRPO, "_compute_actor_grad", method)
        settings = dict(n_episodes=16, batch_size=8, cg_max_steps=3, policy_kwargs={"model": LLAMA}, seed=0)
        agent = TextTRPO("TransformerPolicy", make_env(), **settings)
        agent.learn(1)  # more steps of the conjugate gradient, and rounding grows
        weights.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5


MODELS = [LLAMA, architectures(VOCAB)["gpt_neox"], architectures(VOCAB)["t5"]]


@pytest.mark.parametrize("model", slow_but(MODELS[1:], MODELS), ids=["llama", "gpt_neox", "t5"])
def test_trpo_moves_every_weight_of_the_trunk_and_keeps_its_bound(make_env, model):
    """GPT-NeoX's attention has "value" in its names, which the library takes for the critic's."""
    agent = TextTRPO("TransformerPolicy", make_env(), n_episodes=16, batch_size=8, target_kl=0.01, policy_kwargs={"model": model})
    before = {name: p.detach().clone() for name, p in agent.policy.lm.named_parameters()}
    agent.learn(60)
    still = [name for name, p in agent.policy.lm.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if "bias" not in name]  # softmax ignores the keys' biases
    assert 0 < agent.logger.name_to_value["policy/approx_kl"] <= 0.0101
    assert agent.logger.name_to_value["policy/line_search_success"] == 1


@pytest.mark.reports("A policy's parameters have the same names in named_parameters() and state_dict(), whatever the model calls them")
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "t5"])
def test_parameters_have_one_name(make_env, name):
    env = make_env()
    policy = TransformerPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, model=architectures(VOCAB)[name], critic="separate"
    )  # fmt: skip
    state, tied = policy.state_dict(keep_vars=True), [value for _, value in policy.named_parameters(remove_duplicate=False)]
    for name, parameter in policy.named_parameters():
        assert state[name] is parameter, name
    assert {id(value) for value in tied} == {id(value) for value in state.values() if isinstance(value, torch.nn.Parameter)}


@pytest.mark.reports("sb3-contrib's own TRPO is refused where a model's names would pass its attention for the critic's")
def test_the_librarys_trpo_is_refused_where_it_goes_by_misleading_names(make_env):
    kwargs = {"model": architectures(VOCAB)["gpt_neox"]}
    agent = TRPO(
        TransformerPolicy, make_env(num_envs=4), batch_size=8, rollout_buffer_class=SequenceRolloutBuffer, n_steps=12, policy_kwargs=kwargs
    )
    with pytest.raises(ValueError, match=r"query_key_value.* among them: use TextTRPO"):
        agent.learn(48)


@pytest.mark.parametrize("name", ["a2c", "trpo", "maskable"])
def test_the_unmodified_libraries_run_with_policy_and_buffer(make_env, name):
    env = make_env(num_envs=4)
    kwargs = {"policy_kwargs": {"model": LLAMA}, "rollout_buffer_class": SequenceRolloutBuffer, "n_steps": 12, "gamma": 1.0}
    if name == "a2c":
        agent = A2C(TransformerPolicy, env, use_rms_prop=False, **kwargs)
    elif name == "trpo":
        agent = TRPO(TransformerPolicy, env, batch_size=8, **kwargs)
    else:
        agent = MaskablePPO(
            MaskableTransformerPolicy, env, batch_size=8, n_epochs=1, **{**kwargs, "rollout_buffer_class": MaskableSequenceRolloutBuffer}
        )
    before = {name: p.detach().clone() for name, p in agent.policy.lm.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        agent.learn(96)
    assert any(not torch.equal(p, before[name]) for name, p in agent.policy.lm.named_parameters())


def test_unmodified_maskable_ppo_obeys_the_masks():
    task = TextTask(IntegerTokenizer(8, 0), [Prompt("1 2")], max_new_tokens=6, constraint={"allowed_tokens": [0, 3, 4]})
    env = TextGenerationVecEnv(8, task=task, reward=lambda completions: [float(c.count("3")) for c in completions])
    agent = MaskablePPO(
        MaskableTransformerPolicy, env, n_steps=16, batch_size=8, n_epochs=2, gamma=1.0, learning_rate=1e-2,
        rollout_buffer_class=MaskableSequenceRolloutBuffer, policy_kwargs={"model": {**LLAMA, "vocab_size": 8}},
    )  # fmt: skip
    agent.learn(256)
    assert set(np.unique(agent.rollout_buffer.actions)) <= {0, 3, 4}
    assert agent.rollout_buffer.kept.shape[1] == 1  # a bit for each of eight tokens


@pytest.mark.reports("Stock MaskablePPO learns from minibatches of single tokens with our buffer, which turned its weights to NaN")
@pytest.mark.parametrize(("num_envs", "n_steps", "batch_size"), [(3, 3, 4), (2, 2, 1), (1, 1, 1), (5, 1, 2)])
def test_unmodified_maskable_ppo_with_minibatches_of_one_token(num_envs, n_steps, batch_size):
    task = TextTask(IntegerTokenizer(8, 0), [Prompt("1 2")], max_new_tokens=1)  # texts of one token
    env = TextGenerationVecEnv(num_envs, task=task, reward=lambda completions: [float(c.count("3")) for c in completions])
    agent = MaskablePPO(
        MaskableTransformerPolicy, env, n_steps=n_steps, batch_size=batch_size, n_epochs=1,
        rollout_buffer_class=MaskableSequenceRolloutBuffer, policy_kwargs={"model": {**LLAMA, "vocab_size": 8}},
    )  # fmt: skip
    agent.learn(2 * num_envs * n_steps)
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())
    texts = np.concatenate([samples.actions for samples in agent.rollout_buffer.get(batch_size)])
    assert all(len(samples.actions) > 1 for samples in agent.rollout_buffer.get(batch_size))
    assert sorted(texts) == sorted(agent.rollout_buffer.actions.tolist() * (2 if num_envs * n_steps == 1 else 1))  # each once


@pytest.mark.reports("A rollout of one token trains every text algorithm on its reward, or is refused; nothing becomes NaN or silently 0")
@pytest.mark.parametrize("algorithm", [TextPPO, TextA2C, TextTRPO, TextMaskablePPO, NLPO, Reinforce])
def test_a_rollout_of_one_token(algorithm):
    task = TextTask(IntegerTokenizer(8, 0), [Prompt("1 2")], max_new_tokens=1)
    env = TextGenerationVecEnv(1, task=task, reward=lambda completions: [3.0 for _ in completions])
    name = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    agent = algorithm(name, env, n_episodes=1, beta=0.0, policy_kwargs={"model": {**LLAMA, "vocab_size": 8}})
    agent.learn(1)
    assert agent.rollout_buffer.advantages == pytest.approx(3)
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


@pytest.mark.reports("Runs with neighbouring seeds have prompts of their own")
def test_neighbouring_seeds_share_no_prompts():
    prompts = [Prompt(f"{i // 400 + 1} {i // 20 % 20 + 1} {i % 20 + 1}") for i in range(8000)]
    task = TextTask(IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=2, reward="length")
    drawn = []
    for seed in (0, 1, 2, 1):
        agent = TextA2C("TransformerPolicy", TextGenerationVecEnv(32, task=task), n_episodes=64, seed=seed, policy_kwargs={"model": LLAMA})
        agent.learn(1)
        drawn.append([segment.prompt_id for segment in agent.rollout_buffer.segments])
    assert drawn[1] == drawn[3]
    # of 64 prompts with another 64 of 8,000: 0.5 expected by chance; rows that are seeded as SB3 does share 62
    assert all(len(set(drawn[a]) & set(drawn[b])) <= 5 for a, b in ((0, 1), (1, 2), (0, 2)))
