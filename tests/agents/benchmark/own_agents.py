"""Agents as users bring them to a benchmark: one that plays, and several that fail in different ways."""

import os
import signal
import time

import numpy as np


class Plays:
    """Writes tokens at random; notes in a file that it was asked to learn."""

    def __init__(self, env, base, seed, log=None):
        self.env, self.rng, self.log = env, np.random.default_rng(seed), log

    def learn(self, total_timesteps):
        if self.log is not None:
            time.sleep(0.3)
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")

    def predict(self, observation):
        return self.rng.integers(self.env.action_space.n, size=len(observation["prompt"])), None


class Crashes(Plays):
    def learn(self, total_timesteps):
        raise KeyError("what was looked for")


class Diverges(Plays):
    def learn(self, total_timesteps):
        raise FloatingPointError("the loss is nan")


class Hangs(Plays):
    def learn(self, total_timesteps):
        time.sleep(600)


class Dies(Plays):
    def learn(self, total_timesteps):
        os.kill(os.getpid(), signal.SIGKILL)


class CannotPredict:
    def learn(self, total_timesteps):
        pass


class DiesOnce(Plays):
    """Is killed where it first learns, and leaves a file that says so."""

    def learn(self, total_timesteps):
        if not os.path.exists(self.log):
            open(self.log, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class Sleeps(Plays):
    """Learns in three seconds."""

    def learn(self, total_timesteps):
        time.sleep(3)
