"""Which texts are compared with each other: those of one prompt as it was dealt, whatever its ids look like."""

import itertools

import numpy as np
import pytest

from agents import RLOO, TextPolicyGradient
from agents.evaluation.policy_texts import make_policy
from tests.slow_cases import slow_where
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import LLAMA, VOCAB
from ..models.test_cached_decoder import play_and_compare

ENDS_IN_ZERO = [Prompt("5"), Prompt("5 0"), Prompt("5 0 0")]
OTHER_REFERENCES = [Prompt("5", references=(word,)) for word in ("3", "7", "9")]
TABLE = {"model": {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 4, "length": 7}}
OTHER_METADATA = [Prompt("5", metadata={"wanted": word}) for word in ("3", "7", "9")]


GROUPS = {"zeros": ENDS_IN_ZERO, "references": OTHER_REFERENCES, "metadata": OTHER_METADATA}
CASES = itertools.product(("rloo", "group_mean", "grpo"), GROUPS)  # groups are found in the same way for all estimators


def make_env(prompts, reward, group_size=2, num_envs=12):
    task = TextTask(IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=5, group_size=group_size, prompt_order="sequential")
    return TextGenerationVecEnv(num_envs, task=task, reward=reward)


class Levels:
    """Scores each prompt on a level of its own, a thousand apart: a baseline of another prompt would show."""

    def score(self, episodes):
        return [1000.0 * self.level(e) + len(set(e.response_ids.tolist())) for e in episodes]

    def level(self, episode):
        words = "".join(episode.references) + str(episode.metadata.get("wanted", ""))
        return len(episode.prompt_ids) + int(words or "0")


def by_hand(estimator, scores, prompt):
    """The estimators' formulas, text by text."""
    advantages = []
    for i, score in enumerate(scores):
        own = [s for j, s in enumerate(scores) if prompt[j] == prompt[i]]
        others = [s for j, s in enumerate(scores) if prompt[j] == prompt[i] and j != i]
        advantages.append(
            {
                "rloo": score - np.mean(others),
                "group_mean": score - np.mean(own),
                "grpo": (score - np.mean(own)) / (np.std(own, ddof=1) + 1e-4),
            }[estimator]
        )
    return advantages


@pytest.mark.reports("Prompts that end in token 0, and equal prompts with other references or metadata, each have a baseline of their own")
@pytest.mark.parametrize(("estimator", "group"), slow_where(lambda estimator, group: estimator != "rloo" and group != "zeros", CASES))
def test_texts_are_compared_with_those_of_their_own_prompt(group, estimator):
    agent = TextPolicyGradient(
        "TransformerPolicy", make_env(GROUPS[group], Levels()), estimator=estimator, n_episodes=12, batch_size=12, beta=0.0, seed=0,
        policy_kwargs={"model": LLAMA},
    )  # fmt: skip
    agent.learn(1)
    buffer, prompt = agent.rollout_buffer, np.arange(12) // 2 % 3  # dealt in turn, two texts each, and over again
    assert np.ptp(buffer.scores) > 1000
    expected = by_hand(estimator, buffer.scores.tolist(), prompt)
    np.testing.assert_allclose(buffer.advantages[buffer._offsets[:-1]], expected, rtol=1e-5, atol=1e-5)


class OfOnePrompt:
    """Pays for sevens where the reference asks for them, and nothing elsewhere."""

    def score(self, episodes):
        return [float(e.references == ("7",) and 7 in e.response_ids) for e in episodes]


@pytest.mark.reports("Groups that scored alike are found, left out and written again by prompt, also where two prompts have the same text")
def test_equal_groups_are_those_of_a_prompt():
    env = make_env(OTHER_REFERENCES, OfOnePrompt(), group_size=4)
    agent = RLOO(
        "TransformerPolicy", env, n_episodes=12, batch_size=64, beta=0.0, seed=0, skip_equal_groups=True, max_sampling_rounds=5,
        policy_kwargs={"model": LLAMA},
    )  # fmt: skip
    agent.learn(1)
    buffer, infos = agent.rollout_buffer, agent.last_rollout.infos
    assert {info["prompt"] for info in infos} == {"5"}
    of_prompt = [[info["score"] for info in infos if info["prompt_id"] == number] for number in range(3)]
    assert [len(set(scores)) for scores in of_prompt] == [1, 2, 1]
    assert len(of_prompt[1]) >= 12 or len(infos) >= 5 * 12  # as many as were asked for, of the only prompt that teaches
    assert {buffer.segments[i].prompt_id for i in buffer.trained} == {1}
    assert len(buffer.trained) == len(of_prompt[1])


@pytest.mark.reports("An environment that is set later must deal groups as well: without them a baseline would be a division by zero")
def test_an_environment_that_is_set_later_must_deal_groups():
    agent = RLOO("TransformerPolicy", make_env(ENDS_IN_ZERO, Levels()), n_episodes=12, policy_kwargs={"model": LLAMA})
    agent.set_env(make_env(ENDS_IN_ZERO, Levels(), group_size=4))
    with pytest.raises(ValueError, match="deals group_size=1"):
        agent.set_env(make_env(ENDS_IN_ZERO, Levels(), group_size=1))


def test_prompts_that_end_in_zero_are_read_apart():
    env = make_env(ENDS_IN_ZERO, Levels(), num_envs=6)
    policy = make_policy(env.task, LLAMA)
    worst, ends = play_and_compare(policy, env, steps=30)
    assert worst < 1e-5 and ends > 5
