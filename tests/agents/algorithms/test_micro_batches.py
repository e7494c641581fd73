"""Micro-batches: every loss takes no more texts at once than it may, and its gradient is that of the whole minibatch."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents import RLOO, TextPolicyGradient, TextTRPO
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import LLAMA, VOCAB, sevens
from ..rollouts.test_rollout_buffer import DIALOGUE

PROMPTS = [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")]
PTX = {"ptx_coef": 0.5, "ptx_texts": [("1 2", "7 7 7"), ("3", "5"), ("4 4", "1 2 3 4 5")]}
LOSSES = {
    "full KL in the loss, ptx, entropy": {"kl_in": "loss", "kl_estimator": "full", "ent_coef": 0.1, **PTX},
    "full KL in reward and loss": {"kl_estimator": "full", "loss_aggregation": "budget"},
    "k3, text by text": {"kl_in": "loss", "kl_estimator": "k3", "loss_aggregation": "sequence", "dual_clip": 3.0},
    "critic, clipped values": {"estimator": "gae", "clip_range_vf": 0.1, "vf_coef": 0.5, "policy_kwargs": {"critic": "separate"}},
}
DIALOGUES = {"plain": {"max_new_tokens": 9}, "dialogue": DIALOGUE}


@contextmanager
def texts_at_once(agent):
    """Yield a list that fills with the number of texts in every pass of the policy's model that is to be differentiated."""
    sizes = []

    def see(module, args, kwargs):
        if torch.is_grad_enabled():
            sizes.append(len(kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]))

    hook = agent.policy.lm.model.register_forward_pre_hook(see, with_kwargs=True)
    yield sizes
    hook.remove()


def make(algorithm, environment="plain", micro_batch_size=0, **settings):
    task = TextTask(IntegerTokenizer(VOCAB, 0), PROMPTS, group_size=4, **DIALOGUES[environment])
    env = TextGenerationVecEnv(16, task=task, reward=sevens)
    env.seed(3)
    kwargs = {"model": LLAMA, "top_k": 20, "min_new_tokens": 2, **settings.pop("policy_kwargs", {}), "micro_batch_size": micro_batch_size}
    return algorithm("TransformerPolicy", env, n_episodes=16, batch_size=7, beta=0.3, seed=0, policy_kwargs=kwargs, **settings)


def written(agent):
    """Write a rollout, away from the reference, and move the policy on, so that ratios are not 1."""
    agent.policy.lm.lm_head.weight.data *= 1.3
    agent._setup_learn(1)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    agent.num_rollouts = 2
    if hasattr(agent, "_estimate"):
        agent._estimate()
    agent.policy.lm.lm_head.weight.data *= 1.05
    agent.policy.set_training_mode(True)
    return agent


@pytest.mark.reports("Every loss keeps to micro_batch_size, full KL and ptx too, and its gradient is that of the whole minibatch")
@pytest.mark.parametrize("environment", DIALOGUES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_do_not_depend_on_micro_batches(name, environment):
    agent = written(make(TextPolicyGradient, environment, **LOSSES[name]))
    np.random.seed(1)
    part = next(agent.rollout_buffer.parts(7))
    gradients = {}
    for size in (0, 3):
        agent.policy.settings = replace(agent.policy.settings, micro_batch_size=size)
        agent.policy.zero_grad()
        np.random.seed(2)  # of the texts of ptx
        with texts_at_once(agent) as seen:
            loss, notes = agent._part_loss(part)
            loss.backward()
        gradients[size] = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]), notes
        assert max(seen) == (size or 7)
    (whole, notes), (parted, parted_notes) = gradients.values()
    torch.testing.assert_close(parted, whole, atol=2e-6, rtol=1e-4)
    assert whole.abs().max() > 1e-3
    assert parted_notes == pytest.approx(notes, abs=1e-5)


@pytest.mark.reports("TRPO keeps to micro_batch_size, trains adapters, and refuses a policy without a critic")
def test_trpo_keeps_to_its_micro_batches():
    weights = []
    for size in (0, 3):
        agent = make(TextTRPO, micro_batch_size=size, cg_max_steps=3)
        with texts_at_once(agent) as seen, sdpa_kernel(SDPBackend.MATH):
            agent.learn(1)
        assert max(seen) == (size or 16)
        weights.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5
    adapted = make(TextTRPO, cg_max_steps=3, policy_kwargs={"lora": {"r": 2, "lora_alpha": 8}})
    before = {name: p.detach().clone() for name, p in adapted.policy.named_parameters()}
    adapted.learn(1)
    moved = {name for name, p in adapted.policy.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_B" in name for name in moved) and all("lora" in name or name.startswith("value_head") for name in moved)
    with pytest.raises(ValueError, match="TRPO trains a critic"):
        make(TextTRPO, policy_kwargs={"critic": "none"})


@pytest.mark.reports("Next-token learning beside the policy's (ptx) computes in the policy's precision")
def test_ptx_computes_in_the_policys_precision():
    agent = make(RLOO, policy_kwargs={"precision": "bfloat16"}, **PTX)
    np.random.seed(2)
    mixed = agent._ptx_loss()
    agent.policy.backbone.autocast = None
    np.random.seed(2)
    assert 1e-5 < abs(mixed.item() - agent._ptx_loss().item()) < 0.05
