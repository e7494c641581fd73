"""KL controllers by hand, and the KL of cut distributions by brute force."""

import numpy as np
import pytest
import torch

from agents.rollouts.kl_controller import AdaptiveKLController, KLController, as_kl_controller
from tests.slow_cases import slow_but


def test_fixed():
    controller = as_kl_controller(0.3)
    controller.update(100.0, 64)
    assert controller.beta == 0.3


def test_adaptive_by_hand():
    controller = AdaptiveKLController(beta=0.1, target=6.0, horizon=1000)
    controller.update(6.6, 100)  # error 0.1 -> factor 1 + 0.1 * 100 / 1000
    assert controller.beta == pytest.approx(0.1 * 1.01)
    controller.update(60.0, 100)  # clipped to 0.2
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(0.0, 100)
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_bounds_and_state():
    controller = AdaptiveKLController(beta=0.1, target=6.0, horizon=1, bounds=(0.05, 0.2))
    controller.update(60.0, 1000)
    assert controller.beta == 0.2
    other = AdaptiveKLController(beta=0.1)
    other.load_state_dict(controller.state_dict())
    assert other.beta == 0.2


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_a_bad_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        KLController(beta)


RULES = [{}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.6, "min_new_tokens": 2, "top_p": 0.8}]


@pytest.mark.parametrize("rules", slow_but(RULES[-1:], RULES))
def test_mean_kl_of_rollouts_equals_the_exact_kl(make_env, rules):
    """Two-token texts: enumerate the acting distribution, renormalise the reference on what it kept, sum exactly."""
    from agents.models.loading import frozen, load_lm
    from agents.models.sampler import restrict
    from agents.policies.transformer_policy import TransformerPolicy
    from agents.rollouts.collect import play_episodes
    from agents.rollouts.rollout_buffer import SequenceRolloutBuffer
    from textrl_env import IntegerTokenizer, Prompt, TextTask
    from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

    from ..conftest import LLAMA, VOCAB

    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3")], max_new_tokens=2)
    env = TextGenerationVecEnv(500, task=task, reward=lambda completions: [0.0] * len(completions))
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, **rules)
    reference = frozen(load_lm(LLAMA))  # other random weights
    buffer = SequenceRolloutBuffer(1, env.observation_space, env.action_space, "cpu", n_envs=500, reference=reference, beta=0.0)
    for _ in play_episodes(policy, env, buffer, 20_000):
        pass
    assert np.isfinite(buffer.kl).all()

    @torch.no_grad()
    def both(texts, step):
        """log pi and log pi_ref of the next token of each text."""
        withheld = policy.sampler.withheld([], [np.full(len(texts), step)])
        withheld = None if withheld is None else torch.from_numpy(withheld)
        ours, theirs = (policy.sampler.apply_rules(lm(torch.tensor(texts)).logits[:, -1], withheld) for lm in (policy.lm, reference))
        kept = policy.sampler.cut(ours)
        return restrict(ours, kept).log_softmax(-1), restrict(theirs, kept).log_softmax(-1)

    first, first_ref = both([[1, 2, 3]], 0)
    second, second_ref = both([[1, 2, 3, token] for token in range(VOCAB)], 1)
    p = first[0].exp()
    p_goes_on = p.clone()
    p_goes_on[0] = 0  # end of text: there is no second token
    exact = (p * (first[0] - first_ref[0])).sum() + (p_goes_on * (second.exp() * (second - second_ref)).sum(-1)).sum()
    sums = np.add.reduceat(buffer.kl, buffer._offsets[:-1])
    error = sums.std() / np.sqrt(len(sums))
    assert buffer.stats.kl_per_sequence == pytest.approx(float(exact), abs=4 * error)
    assert float(exact) > 10 * error
