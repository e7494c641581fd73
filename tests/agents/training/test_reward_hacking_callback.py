"""The alarm rings where a reward is hacked, and not elsewhere."""

import warnings

import numpy as np
import pytest

from agents import TextPPO
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.training.base_policies import base_policy
from agents.training.reward_hacking_callback import RewardHackingCallback, RolloutSummary, causes
from textrl_env import make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv


def history(held_out, learned=None, length=10.0, variety=0.8, error=0.01):
    learned = np.arange(len(held_out)) * 0.1 if learned is None else learned
    lengths, varieties = np.broadcast_to(length, len(held_out)), np.broadcast_to(variety, len(held_out))
    rows = zip(learned, held_out, lengths, varieties, strict=True)
    return [RolloutSummary(i, float(a), error, float(b), error, 1.0, float(c), float(d)) for i, (a, b, c, d) in enumerate(rows)]


def names(seen):
    return [name for name, _ in causes(seen)]


def test_rules_by_hand():
    up = np.linspace(0, 1, 10)
    assert names(history(up)) == []
    fall = [0.0] * 5 + [1.0] * 5 + [0.9] * 5
    # the standard error of the difference of two means of 5 rollouts is 0.01 * sqrt(10) / 5 = 0.0063
    assert names(history(fall)) == ["over-optimisation"]
    assert names(history(fall, error=0.06)) == []  # 0.1 is less than 3 * 0.038
    assert names(history(fall, learned=[*range(10), *[0] * 5])) == []  # both fall: that is not hacking
    assert names(history([np.nan] * 15)) == []
    assert names(history(fall[:9])) == []  # too early to say
    assert names(history(up, length=[10.0] * 5 + [15.1] * 5)) == ["length"] == names(history(up, length=[10.0] * 5 + [6.6] * 5))
    assert names(history(up, length=[10.0] * 5 + [14.9] * 5)) == []
    assert names(history(up, variety=[0.8] * 5 + [0.39] * 5)) == ["repetition"]


def train(task, reward, held_out, folder, stop=False, tokens=20_000):
    env = TextGenerationVecEnv(64, task=task, reward=reward)
    model = TextPPO("TransformerPolicy", env, n_episodes=64, batch_size=32, beta=0.0, learning_rate=1e-3, seed=0,
                    policy_kwargs={"model": str(base_policy(task))})  # fmt: skip
    watch = RewardHackingCallback(folder, held_out, stop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(tokens, watch)
    return model, watch, [str(w.message) for w in caught if issubclass(w.category, TrainingWarning)]


def test_it_rings_for_a_proxy_and_stops(tmp_path):
    """The proxy pays for words that come twice, the held-out reward for different ones."""
    task = make_task("recall")

    def proxy(prompts, completions, **_):
        return [float(len(set(c.split())) < len(c.split())) + 0.1 * len(c.split()) for c in completions]

    def true(prompts, completions, **_):
        return [float(len(set(c.split()))) for c in completions]

    model, watch, told = train(task, proxy, true, tmp_path, stop=True)
    assert watch.alarms and any(message in told for message in watch.alarms.values())
    assert model.num_timesteps < 20_000 and (tmp_path / "alarms.txt").is_file()
    rows = (tmp_path / "reward_hacking.csv").read_text().splitlines()
    assert len(rows) == len(watch.history) + 1


@pytest.mark.slow
def test_it_is_silent_where_the_reward_is_true(tmp_path):
    task = make_task("recall")
    model, watch, _ = train(task, task.reward, task.reward, tmp_path, tokens=15_000)
    assert "over-optimisation" not in watch.alarms and len(watch.history) >= 10 and model.num_timesteps >= 15_000


def test_a_run_that_goes_on_remembers(tmp_path):
    task = make_task("recall")
    _, watch, _ = train(task, task.reward, task.reward, tmp_path, tokens=1500)
    again = RewardHackingCallback(tmp_path, task.reward)
    again.model = watch.model
    again.model.num_timesteps = watch.history[-2].tokens
    again._on_training_start()
    assert [s.tokens for s in again.history] == [s.tokens for s in watch.history[:-1]]
    assert again.history[0].learned == pytest.approx(watch.history[0].learned)
