"""Texts are written on while servers score others: nothing but the time changes."""

import dataclasses
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor, VecNormalize

from agents import RLOO, LocalDecoder, TextPPO
from agents.rollouts.collect import play_episodes
from agents.rollouts.text_vec_env import can_write_ahead
from rewards import HttpReward, ImprovementReward, NormalizedReward, RewardError, SumReward
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ...rewards.remote.servers import FaultyServer
from ..conftest import LLAMA, sevens


class Plain(VecEnvWrapper):
    """Does nothing; but who knows that of a wrapper?"""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


class Watcher(BaseCallback):
    """Keeps what callbacks see, and stops after so many texts."""

    def __init__(self, stop_after=10**9):
        super().__init__()
        self.seen, self.stop_after = [], stop_after

    def _on_step(self):
        ends = [{k: v for k, v in info.items() if k not in ("terminal_observation", "text")} for info in self.locals["infos"] if info]
        for info in ends:
            info["episode"].pop("t")
        self.seen += [(self.model.num_timesteps, info) for info in ends]
        return len(self.seen) < self.stop_after


def count_sevens(body):
    return {"scores": [float(item["response"].split().count("7")) for item in body["episodes"]]}


def reward_at(server):
    """A reward whose parts change with the batches and the order in which texts are scored."""
    served = HttpReward(server.url, batch_size=2, concurrency=3)
    terms = {"served": NormalizedReward(served), "sevens": sevens}
    return SumReward(terms, {"served": [[0, 1.0], [40, 0.2]], "sevens": 0.1})


def make(task, reward, algorithm=TextPPO, plain=False, rows=5, **settings):
    env = TextGenerationVecEnv(rows, task=task, reward=reward)
    own = {"policy_kwargs": {"model": LLAMA}, "learning_rate": 3e-3, "n_episodes": 16, "seed": 0, "device": "cpu"}
    if algorithm is TextPPO:
        own["batch_size"] = 8
    agent = algorithm("TransformerPolicy", Plain(env) if plain else env, **{**own, **settings})
    agent.set_logger(configure(None, []))
    return agent


def learned(agent, rollouts=2):
    """Return what rollouts, log and weights became, without the seconds."""
    watcher, logs = Watcher(), []
    record = agent.logger.dump
    agent.logger.dump = lambda step: (logs.append(dict(agent.logger.name_to_value)), record(step))
    for _ in range(rollouts):
        agent.learn(1, watcher, log_interval=1, reset_num_timesteps=False)
    buffer = agent.rollout_buffer
    arrays = {name: getattr(buffer, name) for name in ("actions", "rewards", "scores", "returns", "advantages", "log_probs", "kl")}
    timeless = [{k: v for k, v in log.items() if not k.startswith("time/") and not k.endswith("seconds")} for log in logs]
    return watcher.seen, timeless, arrays, agent.policy.state_dict(), [info["r"] for info in agent.ep_info_buffer]


@pytest.mark.parametrize(("algorithm", "generated"), [(TextPPO, False), pytest.param(RLOO, False, marks=pytest.mark.slow), (TextPPO, True)])
def test_everything_is_the_same_but_later(task, algorithm, generated):
    task = dataclasses.replace(task, group_size=2)
    found = []
    for plain in (True, False):
        with FaultyServer(count_sevens, delay=0.005) as server:
            agent = make(task, reward_at(server), algorithm, plain)
            agent.generator = LocalDecoder() if generated else None
            assert can_write_ahead(agent.env) != plain
            found.append(learned(agent))
            assert server.most <= 3
    (seen, logs, arrays, weights, returns), again = found
    assert len(seen) >= 32 and len({info["score"] for _, info in seen}) > 5 and len(logs) >= 2
    assert (seen, logs, returns) == (again[0], again[1], again[4])
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[2][name], values, err_msg=name)
    assert all(torch.equal(again[3][name], values) for name, values in weights.items())


def test_texts_are_written_while_others_are_scored(task):
    written, more = [0], threading.Condition()

    def answer(body):
        with more:
            at = written[0]
            waited.append(more.wait_for(lambda: written[0] >= at + 3, timeout=10))
        return count_sevens(body)

    def count(*_):
        with more:
            written[0] += 1
            more.notify_all()

    waited = []
    with FaultyServer(answer) as server:
        agent = make(task, HttpReward(server.url), n_episodes=40, rows=4)
        agent.policy.register_forward_hook(count)
        steps = play_episodes(agent.policy, agent.env, agent.rollout_buffer, 40)
        while not waited:
            next(steps)
        assert waited[0]
        steps.close()


def test_a_text_that_fails_stops_the_rollout_with_the_same_message(task):
    def answer(body):
        bad = [i for i, item in enumerate(body["episodes"]) if item["response"].split().count("7") == 1]
        return {"scores": ["no number" if i in bad else 1.0 for i in range(len(body["episodes"]))]}

    messages = []
    for plain in (True, False):
        with FaultyServer(answer, delay=0.002) as server:
            agent = make(task, HttpReward(server.url, concurrency=1), plain=plain, n_episodes=32)
            with pytest.raises(RewardError, match="'no number'") as caught:
                agent.learn(1)
            messages.append(str(caught.value).replace(server.url, ""))
            time.sleep(0.1)
            asked = len(server.bodies)
            server.answer = count_sevens
            agent.learn(1)  # nothing of it is left
            assert agent.num_texts == 32 and len(server.bodies) > asked
    assert messages[0] == messages[1]


def test_what_is_stopped_asks_for_no_more(task):
    with FaultyServer(count_sevens, delay=0.05) as server:
        reward = HttpReward(server.url, concurrency=1, batch_size=1)
        agent = make(task, reward, n_episodes=64)
        agent.learn(1, Watcher(stop_after=2))
        time.sleep(0.2)
        asked = len(server.bodies)
        time.sleep(0.3)
        assert len(server.bodies) == asked < 40 and agent.num_texts == 0 and not reward._cache._begun


def test_ctrl_c_ends_the_wait(task):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(body):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    try:
        with FaultyServer(interrupt) as server:
            agent = make(task, HttpReward(server.url, concurrency=1))
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                agent.learn(1)
            assert time.monotonic() - started < 30 and len(server.bodies) == 1
            server.answer = count_sevens
            agent.learn(1)
            assert agent.num_texts == 16
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_sees_steps_late_waits_for_each(task):
    with FaultyServer(count_sevens) as server:
        served, env = HttpReward(server.url), lambda reward, **settings: TextGenerationVecEnv(2, task=task, reward=reward, **settings)
        assert can_write_ahead(env(served)) and can_write_ahead(VecMonitor(env(served)))
        assert can_write_ahead(env(SumReward({"a": SumReward({"b": NormalizedReward(served)}), "c": sevens})))
        rewards = [sevens, SumReward({"a": sevens}), SumReward({"a": served, "b": ImprovementReward(sevens)})]
        for late in (
            VecMonitor(Plain(env(served))), VecNormalize(env(served), norm_obs=False), env(served, render_mode="human"), *map(env, rewards)
        ):  # fmt: skip
            assert not can_write_ahead(late)
