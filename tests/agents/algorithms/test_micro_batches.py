"""Micro-batches: every loss takes no more texts at once than it may, and its gradient is that of the whole minibatch."""

import copy
import itertools
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents import DPO, RLOO, SFT, ExpertIteration, TextPolicyGradient, TextTRPO
from rewards.preferences.preference import Preference
from tests.slow_cases import slow_where
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
    "ratios of texts": {"surrogate": "gspo", "loss_aggregation": "sequence", "off_policy_mask": 0.01, "clip_range": 0.05},
    "geometric means": {"surrogate": "gmpo", "loss_aggregation": "sequence", "clip_range": 0.05},
    "prices of covariances": {"surrogate": "kl-cov", "cov_share": 0.2},
    "critic, clipped values": {"estimator": "gae", "clip_range_vf": 0.1, "vf_coef": 0.5, "policy_kwargs": {"critic": "separate"}},
}
DIALOGUES = {"plain": {"max_new_tokens": 9}, "dialogue": DIALOGUE}
# a text without replies goes the way of one with them
CASES = slow_where(
    lambda environment, name: environment == "plain" and name != "full KL in the loss, ptx, entropy",
    itertools.product(DIALOGUES, LOSSES),
)


@contextmanager
def texts_at_once(lm):
    """Yield a list that fills with the number of texts in every pass of the model that is to be differentiated."""
    sizes = []

    def see(module, args, kwargs):
        if torch.is_grad_enabled():
            sizes.append(len(kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]))

    hook = lm.model.register_forward_pre_hook(see, with_kwargs=True)
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
@pytest.mark.parametrize(("environment", "name"), CASES)
def test_gradients_do_not_depend_on_micro_batches(name, environment):
    agent = written(make(TextPolicyGradient, environment, **LOSSES[name]))
    gradients = {}
    for size in (0, 3):
        np.random.seed(1)
        part = next(agent.rollout_buffer.parts(7, size))
        agent.policy.settings = replace(agent.policy.settings, micro_batch_size=size)
        agent.policy.zero_grad()
        np.random.seed(2)  # of the texts of ptx
        with texts_at_once(agent.policy.lm) as seen:
            notes = agent._add_gradients(part)
        gradients[size] = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]), notes
        assert max(seen) == (size or 7)
    (whole, notes), (parted, parted_notes) = gradients.values()
    torch.testing.assert_close(parted, whole, atol=2e-6, rtol=1e-4)
    assert whole.abs().max() > 1e-3
    assert parted_notes == pytest.approx(notes, abs=1e-5)


def test_every_text_goes_through_the_model_once_beside_those_of_its_prompt():
    agent = written(make(TextPolicyGradient, micro_batch_size=4, ent_coef=0.1))
    passes = []
    hook = agent.policy.lm.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"]), with_kwargs=True
    )
    parts = next(agent.rollout_buffer.parts(16, 4))
    agent._add_gradients(parts)
    hook.remove()
    assert [len(ids) for ids in passes] == [4, 4, 4, 4]  # none is computed again for the backward pass
    for samples, *_ in parts:  # the task deals each prompt four times in a row
        batch = samples.observations
        prompts = {tuple(ids[:length].tolist()) for ids, length in zip(batch.input_ids, batch.prompt_lengths, strict=True)}
        assert len(prompts) == 1
    written_lengths = np.diff(agent.rollout_buffer._offsets)
    assert sum(len(samples.actions) for samples, *_ in parts) == written_lengths.sum() == parts[0].whole.tokens
    assert [last for *_, last in parts] == [False, False, False, True]


@pytest.mark.reports("TRPO keeps to micro_batch_size, trains adapters, and refuses a policy without a critic")
@pytest.mark.slow
def test_trpo_keeps_to_its_micro_batches():
    weights = []
    for size in (0, 3):
        agent = make(TextTRPO, micro_batch_size=size, cg_max_steps=3)
        with texts_at_once(agent.policy.lm) as seen, sdpa_kernel(SDPBackend.MATH):
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
    agent._setup_learn(1)
    np.random.seed(2)
    mixed, _ = agent._ptx_loss(*agent._ptx_parts()[0])
    agent.policy.backbone.autocast = None
    np.random.seed(2)
    precise, _ = agent._ptx_loss(*agent._ptx_parts()[0])
    assert 1e-5 < abs(mixed.item() - precise.item()) < 0.05


TEXTS = [("1 2 3", "4"), ("5", "6 7 8 9 10 11"), ("12 13", "14 15"), ("3", ""), ("2 2 2", "1 2 3 4 5 6 7 8")]
PAIRS = [
    Preference("1 2", "3 4", "5"),
    Preference("7", "8", "9 10 11", label=0.8),
    Preference("4 4", "", "6", margin=0.3),
    Preference("3", "1 2 3 4 5 6", "2"),
]


def token_losses(lm, prompt, response):
    """Of the response and its end, in the model's own precision."""
    ids = [int(token) for token in f"{prompt} {response} 0".split()]
    losses = -lm(torch.tensor([ids])).logits[0, :-1, :VOCAB].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    return losses[len(prompt.split()) - 1 :]


def sft_loss(lm, base):
    return torch.cat([token_losses(lm, *text) for text in TEXTS]).mean()


def dpo_loss(lm, base):
    total = 0.0
    for pair in PAIRS:
        one, two = (
            token_losses(base, pair.prompt, text).sum() - token_losses(lm, pair.prompt, text).sum() for text in (pair.chosen, pair.rejected)
        )
        h = 0.3 * (one - two) - pair.margin
        total = total - pair.label * torch.nn.functional.logsigmoid(h) - (1 - pair.label) * torch.nn.functional.logsigmoid(-h)
    return total / len(PAIRS)


# of 5 texts, or of 4 pairs: 2 at once are between 1, and 3 with a last part that is smaller
PASSES = slow_where(lambda checkpointing, size: size == 2 or (size == 1 and checkpointing), itertools.product((False, True), (0, 1, 2, 3)))


@pytest.mark.parametrize(("gradient_checkpointing", "size"), PASSES)
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_on_texts_micro_batches_add_up_to_the_whole_minibatch_in_float64(name, size, gradient_checkpointing):
    """Texts of 1 to 9 tokens: a mean of the parts' means would be another number."""
    passes = {"micro_batch_size": size, "gradient_checkpointing": gradient_checkpointing}
    tokenizer = IntegerTokenizer(VOCAB, 0)
    if name == "sft":
        trainer, texts, expected = SFT(LLAMA, tokenizer, train_on_prompts=False, **passes), TEXTS, sft_loss
    else:
        trainer, texts, expected = DPO(LLAMA, tokenizer, beta=0.3, **passes), PAIRS, dpo_loss
    base = copy.deepcopy(trainer.lm).double()
    with torch.no_grad():
        for parameter in trainer.lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    exact = copy.deepcopy(trainer.lm).double()
    loss = expected(exact, base)
    loss.backward()
    trainer.lm.train()
    rows = trainer._encode(texts)
    with texts_at_once(trainer.lm) as seen:
        assert trainer._mean_loss(rows, backward=True) == pytest.approx(loss.item(), abs=2e-6)
    assert max(seen) == (size or len(rows)) * (1 if name == "sft" else 2)
    for (key, own), other in zip(trainer.lm.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, atol=2e-6, rtol=1e-4, msg=key)
    assert trainer.evaluate(texts) == pytest.approx(loss.item(), abs=2e-6)


def test_expert_iteration_trains_with_its_policys_adapters_precision_and_micro_batches():
    task = TextTask(IntegerTokenizer(VOCAB, 0), PROMPTS, max_new_tokens=9)
    rules = {"lora": {"r": 2, "lora_alpha": 8}, "precision": "bfloat16", "micro_batch_size": 3}
    agent = ExpertIteration(task, LLAMA, sevens, n=2, n_prompts=8, steps=2, batch_size=8, learning_rate=1e-2, **rules)
    before = {name: parameter.detach().clone() for name, parameter in agent.policy.lm.named_parameters()}
    types = set()  # of passes that are to be differentiated
    up = agent.policy.lm.model.layers[0].mlp.up_proj
    up.register_forward_hook(lambda module, args, out: types.add(out.dtype) if torch.is_grad_enabled() else None)
    with texts_at_once(agent.policy.lm) as seen:
        agent.learn(1)
    assert set(seen) - {1} == {3, 2} and types == {torch.bfloat16}  # one text is what the estimate of memory looks at
    moved = {name for name, parameter in agent.policy.lm.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("lora" in name for name in moved)
