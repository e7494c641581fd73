"""Comparing agents.

Which agent is better, and is the difference more than luck? `textrl bench` runs agents, tasks and seeds in processes of their own,
keeps what is done, and reports with intervals. Here is a small one, and an agent of your own in it: a parrot, which repeats the prompt.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

# %%
# An agent is a class with `learn` and `predict`, as Stable-Baselines3 has them, made with the environment to learn in, the folder of
# the base policy, and a seed.


class Parrot:
    """Repeats the prompt after its first word."""

    def __init__(self, env, base, seed):
        self.env = env

    def learn(self, total_timesteps):
        """May write this many tokens in the environment; a parrot need not."""

    def predict(self, observation):
        """Return the next token of each row, shape (B,), and None."""
        prompts = observation["prompt"]  # (B, P), padded with -1
        written = (observation["response"] >= 0).sum(1)
        at = np.minimum(1 + written, (prompts >= 0).sum(1) - 1)
        return prompts[np.arange(len(prompts)), np.maximum(at, 0)].clip(0), None


# %%
# The lock is opened by copying a code from the prompt, so the parrot is perfect there; on recall it is not.
if __name__ == "__main__":
    command = [
        Path(sys.executable).with_name("textrl"),
        "bench",
        "--tasks",
        "lock-4,recall-4",
        "--agents",
        "comparing_agents:Parrot,rloo,random",
    ]
    command += ["--seeds", "3", "--out", Path("runs/parrot").resolve()]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
    print(done.stdout[done.stdout.index("|") : done.stdout.rindex("|") + 1])

# %%
# `runs/parrot/report.html` has learning curves, profiles and texts. What the statistics are:
# [statistics](../../concepts/statistics.md). Tasks, presets, tuning: [compare agents](../../how-to/benchmark.md).
