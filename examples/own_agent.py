"""An agent of one's own in the benchmark: a class with `learn` and `predict`, named by its import string.

cd examples
textrl bench --tasks lock-4,recall-4 --agents own_agent:Parrot,own_agent:Parrot:stutter=2,ppo,random --seeds 3 --out runs/parrot
"""

import numpy as np


class Parrot:
    """Repeats the prompt after its first word: a perfect lock-picker, and good at little else.

    Args:
        env: The `TextGenerationVecEnv` to learn in.
        base: Folder of the task's base policy, for agents that start from it.
        seed: Of everything that is drawn.
        stutter: How often each word is said; a setting, given as `own_agent:Parrot:stutter=2`.
    """

    def __init__(self, env, base, seed, stutter=1):
        self.stutter = stutter

    def learn(self, total_timesteps):
        """May write this many tokens in `env`; a parrot need not."""

    def predict(self, observation):
        """Return the next token of each row, shape (B,), and None, as Stable-Baselines3 does."""
        prompts = observation["prompt"]  # (B, P), padded with -1
        written = (observation["response"] >= 0).sum(1)
        at = np.minimum(1 + written // self.stutter, (prompts >= 0).sum(1) - 1)
        return prompts[np.arange(len(prompts)), np.maximum(at, 0)].clip(0), None
