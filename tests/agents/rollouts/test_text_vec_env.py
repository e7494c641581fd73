"""What wraps an environment reaches the training, or is refused by name."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from agents import (
    GRPO,
    NLPO,
    RLOO,
    Reinforce,
    ReinforcePlusPlus,
    SequenceRolloutBuffer,
    TextA2C,
    TextMaskablePPO,
    TextPPO,
    TextTRPO,
    TransformerPolicy,
)
from agents.cli.main import main
from agents.rollouts.reference_kl_wrappers import ReferenceKL, ReferenceKLVecEnv
from agents.rollouts.text_vec_env import text_env_of
from tests.slow_cases import slow_but
from textrl_env import TextGenerationEnv, TextGenerationVectorEnv

from ..conftest import LLAMA, sevens

KINDS = [TextPPO, TextA2C, TextTRPO, TextMaskablePPO, NLPO, RLOO]
ALGORITHMS = [*KINDS, GRPO, Reinforce, ReinforcePlusPlus]  # the last three are RLOO's class with other defaults


class Own(TextGenerationEnv):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, -reward, *rest


class Doubled(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, 2 * rewards, dones, infos


class Cut(Doubled):
    def reset(self):
        obs = self.venv.reset()
        obs["prompt"][:, 0] = 7
        return obs


WRAPPED = {  # name of the class in the message, wrapper of the scalar environment, what to do instead
    "TransformReward": (lambda env: wrappers.TransformReward(env, lambda r: 10 * r), "reward="),
    "TimeLimit": (lambda env: wrappers.TimeLimit(env, 3), "max_new_tokens="),
    "TransformObservation": (lambda env: wrappers.TransformObservation(env, lambda o: o, None), "VecEnvWrapper"),
    "FrameStackObservation": (lambda env: wrappers.FrameStackObservation(env, 2), "VecEnvWrapper"),
    "NormalizeReward": (wrappers.NormalizeReward, "VecEnvWrapper"),
    "RecordEpisodeStatistics": (wrappers.RecordEpisodeStatistics, "VecMonitor"),
    "Monitor": (Monitor, "VecMonitor"),
    "ReferenceKL": (lambda env: ReferenceKL(env, LLAMA, 0.1), "beta= and reference="),
    "Own": (lambda env: Own(env.task, env.reward_model), "reward="),
}


def make(env, algorithm=TextPPO, **settings):
    name = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    return algorithm(name, env, **{"n_episodes": 8, "beta": 0.0, "policy_kwargs": {"model": LLAMA}, "seed": 0, **settings})


@pytest.fixture
def scalar(task):
    return lambda **settings: TextGenerationEnv(task, reward=sevens, **settings)


@pytest.mark.reports("A gymnasium wrapper around a scalar environment is refused by name with the fix by every text algorithm")
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_of_scalar_environments_are_refused_by_name(scalar, name, tmp_path):
    wrap, fix = WRAPPED[name]
    message = rf"{name} would be lost.*instead, .*{fix}"
    for algorithm in ALGORITHMS:
        with pytest.raises(TypeError, match=message):
            make(wrap(scalar(group_size=2)), algorithm)
    agent = make(scalar())
    with pytest.raises(TypeError, match=message):
        agent.set_env(wrap(scalar()))
    agent.save(tmp_path / "agent")
    with pytest.raises(TypeError, match=message):
        TextPPO.load(tmp_path / "agent", env=wrap(scalar()))


@pytest.mark.reports("All wrappers are named, also those that gym.make or the id adds, in the text algorithms and in textrl play")
def test_all_wrappers_are_named(scalar, capsys):
    with pytest.raises(TypeError, match=r"NormalizeReward, TimeLimit would be lost.*VecEnvWrapper; give the environment max_new_tokens="):
        make(wrappers.NormalizeReward(wrappers.TimeLimit(scalar(), 3)))
    with pytest.raises(TypeError, match="TimeLimit would be lost"):
        make(gym.make("textrl/Exact-Smooth-v0", max_episode_steps=3))
    make(gym.make("textrl/Exact-Smooth-v0"), policy_kwargs={"model": {**LLAMA, "vocab_size": 6}})  # its own two check, and change nothing
    gym.register("Short-v0", "textrl_env:TextGenerationEnv", max_episode_steps=3, kwargs={"task": "exact-smooth"})
    try:
        with pytest.raises(TypeError, match="TimeLimit would be lost"):
            make("Short-v0")
        assert main(["play", "Short-v0"]) == 2
        assert "TimeLimit would be lost" in capsys.readouterr().err
    finally:
        gym.registry.pop("Short-v0")


@pytest.mark.reports("Vectors of scalar environments are refused by the text algorithms, wrapped inside or not")
@pytest.mark.parametrize("vector", [
    lambda one: DummyVecEnv([one]),
    lambda one: DummyVecEnv([lambda: wrappers.TransformReward(one(), lambda r: 10 * r)]),
    lambda one: make_vec_env(one, 2),
    lambda one: TextGenerationVectorEnv(2, one().task),
    lambda one: wrappers.vector.TransformReward(TextGenerationVectorEnv(2, one().task), lambda r: 10 * r),
])  # fmt: skip
def test_other_vectors_are_refused(scalar, vector):
    with pytest.raises(TypeError, match="pass a TextGenerationVecEnv, by itself or in Stable-Baselines3's VecEnvWrappers"):
        make(vector(scalar))


@pytest.mark.reports("The reward that a VecEnvWrapper changed is the reward that trains, in every text algorithm")
@pytest.mark.parametrize("algorithm", slow_but(KINDS, ALGORITHMS))
def test_rewards_of_batched_wrappers_train(make_env, algorithm):
    agent = make(Doubled(make_env(group_size=2)), algorithm)
    agent.learn(1)
    raw = np.array([info["score"] for info in agent.last_rollout.infos])
    assert raw.any()
    assert sorted(agent.rollout_buffer.scores) == sorted(2 * raw)


@pytest.mark.reports("VecNormalize's rewards train; with norm_obs=True it is refused, by the policy in stock algorithms too")
def test_normalised_rewards_train_and_normalised_observations_are_refused(make_env):
    agent = make(VecNormalize(make_env(), norm_obs=False, clip_reward=0.25))
    agent.learn(1)
    assert max(info["score"] for info in agent.last_rollout.infos) >= 1
    assert agent.rollout_buffer.rewards.max() == 0.25
    normalized = VecNormalize(make_env(), norm_obs_keys=["prompt"])
    for wrapper in (normalized, VecFrameStack(make_env(), 2), Cut(make_env())):
        with pytest.raises(TypeError, match=f"one of the wrappers VecMonitor, {type(wrapper).__name__} changes the observations"):
            make(wrapper).learn(1)
    stock = PPO(
        TransformerPolicy, VecNormalize(make_env(), norm_obs_keys=["prompt"]), n_steps=4, batch_size=4,
        rollout_buffer_class=SequenceRolloutBuffer, policy_kwargs={"model": LLAMA},
    )  # fmt: skip
    with pytest.raises(TypeError, match="not token ids: a wrapper changed them"):
        stock.learn(1)


@pytest.mark.reports("VecMonitor and ReferenceKLVecEnv around the batched environment are used")
def test_monitors_and_the_reference_wrapper_are_used(make_env, tmp_path):
    agent = make(VecMonitor(ReferenceKLVecEnv(make_env(), LLAMA, 0.5), str(tmp_path / "episodes")))
    agent.learn(1)
    agent.env.close()
    written = (tmp_path / "episodes.monitor.csv").read_text().splitlines()[2:]
    assert [float(line.split(",")[0]) for line in written] == [pytest.approx(ep["r"]) for ep in agent.ep_info_buffer]
    raw = np.array([info["score"] for info in agent.last_rollout.infos])
    assert agent.rollout_buffer.scores.sum() < raw.sum() - 1  # beta times the log-probability of the reference was added


@pytest.mark.reports("What a scalar environment was given reaches the batched one: seed, render mode, reward assigned later")
def test_settings_of_the_scalar_environment_are_kept(scalar):
    env = scalar(render_mode="ansi")
    env.reset(seed=5)
    env.reward_model = lambda completions: [4.0 for _ in completions]
    first, second = (make(env, seed=None) for _ in range(2))
    texts = text_env_of(first.env)
    assert texts.render_mode == "ansi" and texts.reward_model is env.reward_model and texts.task is env.task
    prompts = [made.env.reset()["prompt"].tolist() for made in (first, second)]
    again = text_env_of(second.env)
    again.seed(5)
    assert prompts[0] == prompts[1] == again.reset()["prompt"].tolist()
