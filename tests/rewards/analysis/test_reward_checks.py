"""Mistakes that a reward model makes in silence: what finds them, and what stays silent."""

import gc
import warnings
from dataclasses import replace

import numpy as np
import pytest

import rewards
from rewards import RewardError, RewardWarning
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVectorEnv, TextTask
from textrl_env.episode import Episode
from textrl_env.reward_model import as_reward_model, checked_scores
from textrl_env.reward_warnings import _SEEN, EVIDENCE

pytestmark = pytest.mark.filterwarnings("error")  # the other tests score toys that are constant or follow the length
RNG = np.random.default_rng(0)
LETTERS = list("abcdefgh")
EPISODES = [
    Episode.from_text(f"question {i % 4}", " ".join(RNG.choice(LETTERS, RNG.integers(4, 12))), references=(str(i % 4),)) for i in range(64)
]


class Scored:
    """Scores each episode by a function, and does what is asked with the list."""

    def __init__(self, one, whole=list):
        self.one, self.whole, self.calls = one, whole, 0

    def score(self, episodes):
        self.calls += 1
        return self.whole([float(self.one(e)) for e in episodes])


def honest(episode):
    """No mistake: the prompt's number, and the share of one letter."""
    return int(episode.prompt[-1]) + episode.response.count("a") / len(episode.response)


def share_of_a(episode):
    return episode.response.count("a") / len(episode.response)


def length(episode):
    return len(episode.response) + honest(episode)


def silently(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rewards.check(*args)


def test_an_honest_model_passes():
    model = Scored(honest)
    found = silently(model, EPISODES)
    assert (found.deterministic, found.uses_prompt) == (True, True) and abs(found.length_correlation) < 0.5
    assert found.scores.tolist() == [honest(e) for e in EPISODES]
    assert model.calls == 4


def sorted_by_score(scores):
    return sorted(scores)


def shifted(scores):
    return scores[1:] + scores[:1]


def two_exchanged(scores):
    return [scores[9], *scores[1:9], scores[0], *scores[10:]]


@pytest.mark.parametrize("whole", [sorted_by_score, shifted, two_exchanged, lambda scores: scores[::-1]])
def test_a_wrong_order_is_an_error(whole):
    with pytest.raises(RewardError, match=r"scores by the place in the batch: it gave '.*return the scores in the order"):
        rewards.check(Scored(honest, whole), EPISODES)


def test_a_set_measured_as_a_whole_keeps_its_order():
    def relative(scores):
        return [score - sum(scores) / len(scores) for score in scores]

    silently(Scored(honest, relative), EPISODES)


def test_a_little_noise_of_half_precision_is_no_disorder():
    rng = np.random.default_rng(0)
    found = silently(Scored(lambda e: honest(e) * (1 + 1e-3 * rng.standard_normal())), EPISODES)
    assert found.deterministic and found.uses_prompt


def test_a_random_model_is_said_to_be_random():
    rng = np.random.default_rng(0)
    with pytest.warns(RewardWarning, match="differently from call to call") as caught:
        found = rewards.check(Scored(lambda e: rng.random()), EPISODES)
    assert (found.deterministic, found.uses_prompt, len(caught)) == (False, None, 1)


def test_a_model_that_ignores_its_prompt():
    with pytest.warns(RewardWarning, match=r"when their prompts were exchanged.*by_design = \('prompt',\)") as caught:
        assert rewards.check(Scored(share_of_a), EPISODES).uses_prompt is False
    assert len(caught) == 1


def test_prompts_that_do_not_differ_tell_nothing():
    same = [Episode.from_text("one question", e.response) for e in EPISODES]
    model = Scored(share_of_a)
    assert silently(model, same).uses_prompt is None and model.calls == 3


def by_references(episode):
    return float(episode.references[0] in "02") + share_of_a(episode)


def by_metadata(episode):
    return episode.metadata["number"] + share_of_a(episode)


@pytest.mark.parametrize("knows", [by_references, by_metadata])
def test_references_and_metadata_go_with_the_prompt(knows):
    episodes = [replace(e, metadata={"number": int(e.references[0])}) for e in EPISODES]
    assert silently(Scored(knows), episodes).uses_prompt is True


def test_a_constant_model():
    with pytest.warns(RewardWarning, match="gave each of 64 texts 0.5: nothing can be learned") as caught:
        rewards.check(Scored(lambda e: 0.5), EPISODES)
    assert len(caught) == 1


@pytest.mark.parametrize(("sign", "word"), [(1, "long"), (-1, "short")])
def test_a_model_that_follows_the_length(sign, word):
    model = Scored(lambda e: sign * length(e))
    with pytest.warns(RewardWarning, match=rf"correlation -?0\.9\d? over 64 texts\): a policy will learn to write {word} texts") as caught:
        found = rewards.check(model, EPISODES)
    expected = np.corrcoef([sign * length(e) for e in EPISODES], [len(e.response) for e in EPISODES])[0, 1]
    assert found.length_correlation == pytest.approx(expected) and len(caught) == 1


def test_what_a_model_declares_is_no_flaw():
    model = Scored(lambda e: len(e.response))
    model.by_design = ("length", "prompt")
    silently(model, EPISODES)

    def function(completions):
        return [float(len(c)) for c in completions]

    function.by_design = ("length", "prompt")
    silently(function, EPISODES)


@pytest.mark.parametrize("reward", ["vader", {"name": "length", "target": 60}, {"name": "forbidden", "words": ["nothing"]}, "repetition"])
def test_rules_declare_what_they_are(reward):
    long = [Episode.from_text(e.prompt, e.response + " a b a b" * (i % 5) + " good" * (i % 7)) for i, e in enumerate(EPISODES)]
    silently(reward, long)


def test_too_few_episodes():
    with pytest.raises(ValueError, match=r"7 episode\(s\): give at least 8"):
        rewards.check("vader", EPISODES[:7])


def test_scores_must_be_valid_still():
    with pytest.raises(RewardError, match="63 scores for 64"):
        rewards.check(Scored(honest, lambda scores: scores[1:]), EPISODES)


def test_the_watch_speaks_once_and_with_enough_evidence():
    model = Scored(lambda e: 0.0)
    checked_scores(model, EPISODES[: EVIDENCE - 1])
    with pytest.warns(RewardWarning, match="gave each of 64 texts 0"):
        checked_scores(model, EPISODES[-1:])
    for _ in range(3):
        checked_scores(model, EPISODES)
    assert model.calls == 5


def test_the_watch_asks_nothing_of_an_honest_model():
    model = Scored(honest)
    checked_scores(model, EPISODES)
    assert model.calls == 1


def test_the_watch_knows_a_function_that_is_wrapped_anew():
    def constant(completions):
        return [1.0] * len(completions)

    with pytest.warns(RewardWarning, match=r"RewardFunction\(constant\) gave each"):
        checked_scores(as_reward_model(constant), EPISODES)
    checked_scores(as_reward_model(constant), EPISODES)


def test_one_and_the_same_text_is_no_evidence():
    model = Scored(lambda e: 0.0)
    for _ in range(3):
        checked_scores(model, EPISODES[:1] * EVIDENCE)
    with pytest.warns(RewardWarning, match="each of 64 texts"):
        checked_scores(model, EPISODES)


def test_check_replaces_the_watch():
    model = Scored(lambda e: 0.0)
    with pytest.warns(RewardWarning):
        rewards.check(model, EPISODES)
    checked_scores(model, EPISODES)


def test_the_watch_forgets_models_that_are_gone():
    gc.collect()  # those of other tests
    model = Scored(honest)
    place = id(model)
    assert place not in _SEEN
    checked_scores(model, EPISODES[:3])
    assert place in _SEEN
    del model
    gc.collect()
    assert place not in _SEEN


def test_models_that_cannot_be_watched_are_left_alone():
    class Slotted:
        __slots__ = ()
        __eq__ = None  # and nobody may compare or hash it

        def score(self, episodes):
            return [0.0] * len(episodes)

    assert checked_scores(Slotted(), EPISODES).tolist() == [0.0] * 64


def test_dense_scores_are_not_watched():
    class Dense(Scored):
        def score_steps(self, episodes):
            return [0.0] * len(episodes)

    for _ in range(3):
        checked_scores(Dense(honest), EPISODES, "score_steps")


def test_an_environment_warns():
    task = TextTask(IntegerTokenizer(12, eos_token_id=0), [Prompt("1 2"), Prompt("3")], max_new_tokens=6, reward=Scored(lambda e: 7.0))
    env = TextGenerationVectorEnv(16, task)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    with pytest.warns(RewardWarning, match=r"gave each of \d+ texts 7") as caught:
        for _ in range(200):
            env.step(rng.integers(0, 12, 16))
    assert len(caught) == 1
