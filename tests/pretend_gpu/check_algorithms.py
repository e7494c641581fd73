"""Every algorithm on the pretend GPU, and its weights beside the CPU's on the same texts."""

import numpy as np
import pytest
import torch

from agents import GRPO, NLPO, RLOO, OnlineDPO, Reinforce, ReinforcePlusPlus, TextA2C, TextMaskablePPO, TextPPO, TextTRPO
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..agents.conftest import EOS, LLAMA, VOCAB, sevens
from .check_waits import RULES, T5

ALGORITHMS = [TextPPO, TextA2C, TextTRPO, TextMaskablePPO, NLPO, RLOO, GRPO, Reinforce, ReinforcePlusPlus, OnlineDPO]
POLICIES = {
    "adapters": {"lora": {"r": 2}},
    "a critic of its own": {"critic": "separate"},
    "rules": {**RULES, "top_k": 9, "min_p": 0.01},
    "micro-batches": {"micro_batch_size": 3, "gradient_checkpointing": True},
    "an encoder": {"model": T5},
    "texts joined": {"model": {**LLAMA, "hidden_size": 256}},
}


def make(algorithm, device, task_settings=None, policy=None, **settings):
    group_size = 4 if algorithm in (RLOO, GRPO) else 2 if algorithm is OnlineDPO else 1
    prompts = [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=9, group_size=group_size, **(task_settings or {}))
    env = TextGenerationVecEnv(6, task=task, reward=sevens)
    env.seed(3)
    name = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    settings = {"n_episodes": 16, **({} if algorithm is TextA2C else {"batch_size": 8}), **settings}
    if algorithm is TextTRPO:
        settings["cg_max_steps"] = 3  # more steps of the conjugate gradient, and rounding grows
    return algorithm(name, env, policy_kwargs={"model": LLAMA, **(policy or {})}, seed=0, device=device, **settings)


def learned(agent, rollouts):
    """Train, and return the actions of the last rollout, and the weights as one vector on the host.

    Both devices draw with the same generator of numbers, but on the CPU it has made the weights before: from here on both begin alike.
    """
    torch.manual_seed(5)
    np.random.seed(5)
    for _ in range(rollouts):
        agent.learn(1, reset_num_timesteps=False)
    return agent.rollout_buffer.actions, weights(agent)


def weights(agent):
    return torch.cat([p.detach().cpu().double().flatten() for p in agent.policy.parameters()])


def compare(pretend_gpu, atol=1e-5, rollouts=1, **settings):
    agents = [make(device=device, **settings) for device in ("cpu", pretend_gpu)]
    before = weights(agents[0])
    assert torch.equal(before, weights(agents[1]))
    (actions, host), (same, device) = (learned(agent, rollouts) for agent in agents)
    assert {p.device.type for p in agents[1].policy.parameters()} == {"pretend"}
    np.testing.assert_array_equal(actions, same)
    assert (host - before).abs().max() > 10 * atol
    torch.testing.assert_close(device, host, atol=atol, rtol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_the_same_texts_its_weights_become_the_cpu_s(pretend_gpu, algorithm):
    compare(pretend_gpu, algorithm=algorithm, rollouts=1 if algorithm is TextTRPO else 4)  # its line search makes rounding large


def test_from_one_seed_texts_differ_as_between_any_two_devices(pretend_gpu):
    """Which is why weights after so many tokens do, too: the CPU's generator made the weights before it draws."""
    agents = [make(RLOO, device) for device in ("cpu", pretend_gpu)]
    drawn = []
    for agent in agents:
        agent.learn(1)
        drawn.append(agent.rollout_buffer.actions.tolist())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_kind_of_policy(pretend_gpu, policy):
    wide = policy.get("model", LLAMA).get("hidden_size") == 256  # Adam makes steps of gradients that are mostly rounding
    compare(pretend_gpu, algorithm=TextPPO, policy=policy, atol=3e-4 if wide else 2e-5, learning_rate=1e-3)


def test_bfloat16(pretend_gpu):
    """Its rounding decides some draws, so that texts are not the CPU's; but the update finds the distribution they were drawn from."""
    agent = make(TextPPO, pretend_gpu, policy={"precision": "bfloat16"}, n_epochs=1, batch_size=16)
    before = weights(agent)
    agent.learn(1)
    assert agent.logger.name_to_value["train/clip_fraction"] == 0
    assert 0 < (weights(agent) - before).abs().max() < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_in": "loss", "kl_estimator": "k3"},
        {"kl_estimator": "full", "loss_aggregation": "sequence"},
        {"whiten_advantages": True, "clip_range_high": 0.3, "dual_clip": 3.0, "ent_coef": 0.1, "target_kl": 0.5},
    ],
)
def test_every_kind_of_policy_gradient(pretend_gpu, settings):
    compare(pretend_gpu, algorithm=RLOO, **settings)


@pytest.mark.parametrize("algorithm", [TextPPO, TextMaskablePPO, NLPO])
def test_action_masks(pretend_gpu, algorithm):
    compare(pretend_gpu, algorithm=algorithm, task_settings={"constraint": {"banned_tokens": [4, 6, 8, 9, 10]}})


def test_a_dialogue(pretend_gpu):
    compare(pretend_gpu, algorithm=TextPPO, task_settings={"reply": lambda episodes: ["5 6"] * len(episodes), "max_turns": 2})


@pytest.mark.filterwarnings("ignore:training was saved on pretend and goes on on cpu:UserWarning")
def test_a_saved_agent_goes_on_where_it_was(pretend_gpu, tmp_path):
    agent = make(TextPPO, pretend_gpu)
    agent.learn(1)
    agent.save(tmp_path / "agent")
    for device in ("cpu", pretend_gpu):
        again = TextPPO.load(tmp_path / "agent", env=agent.env.unwrapped, device=device)
        assert torch.equal(weights(again), weights(agent))
        moments = {t.device.type for state in again.policy.optimizer.state.values() for t in state.values() if t.dim()}
        assert moments == {torch.device(device).type}
        again.learn(1, reset_num_timesteps=False)
        assert not torch.equal(weights(again), weights(agent))
