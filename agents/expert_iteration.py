"""Expert iteration (RAFT): write, keep the best, imitate it, again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from textrl_env import TextTask

from .best_of import best_of_n
from .checkpoint import load_training, save_training
from .evaluation import make_policy
from .lm import LMSource
from .progress import bar
from .run_folder import fingerprint
from .sft import SFT


class ExpertIteration:
    """Reward-ranked fine-tuning (Dong et al. 2023; Anthony et al. 2017): SFT on the best of n responses to each prompt.

    Nothing holds the policy to the reference but the bound of best-of-n, log n - (n - 1) / n nats in each iteration.

    Args:
        task: Prompts, tokenizer, lengths.
        model: What `agents.lm.load_lm` takes: where the policy starts.
        reward: What an environment's `reward` takes; None: the task's own.
        n: Responses for each prompt.
        n_prompts: Prompts of each iteration.
        steps: Optimizer steps of each iteration.
        learning_rate: Peak of each iteration's one-cycle schedule.
        batch_size: Texts per step.
        seed: Of prompts, sampling and order.
        **rules: Sampling rules of the policy, see `Sampler`.

    Attributes:
        policy: Who writes.
        scores: Mean score of all texts written in each iteration.
    """

    def __init__(
        self,
        task: TextTask,
        model: LMSource,
        reward: Any = None,
        n: int = 4,
        n_prompts: int = 64,
        steps: int = 8,
        learning_rate: float = 3e-4,
        batch_size: int = 32,
        seed: int = 0,
        **rules: Any,
    ) -> None:
        if n < 2 or n_prompts < 1 or steps < 1:
            raise ValueError(f"n={n}, n_prompts={n_prompts}, steps={steps}: need at least 2, 1 and 1")
        self.task, self.reward = task, task.reward if reward is None else reward
        self.n, self.n_prompts, self.steps, self.seed = n, n_prompts, steps, seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = make_policy(task, model, **rules)
        self.trainer = SFT(self.policy.lm, task.tokenizer, learning_rate, batch_size, weight_decay=0.0, train_on_prompts=False, seed=seed)
        self.scores: list[float] = []

    def learn(self, iterations: int, progress_bar: bool = False, checkpoint: str | Path | None = None) -> ExpertIteration:
        """Take this many iterations.

        Args:
            iterations: How many, those of the checkpoint included.
            progress_bar: Show one.
            checkpoint: A folder.  After every iteration the training is saved there; the same call goes on from it, bit by bit.

        Raises:
            ValueError: The checkpoint is damaged, or of other settings.
        """
        folder = None if checkpoint is None else Path(checkpoint)
        own = [self.n, self.n_prompts, self.steps, self.seed, self.trainer.learning_rate, self.trainer.batch_size]
        facts = {"of": fingerprint([type(self).__name__, *own])}
        if folder is not None and (found := load_training(folder, self.policy.lm)) is not None:
            if found.get("of") != facts["of"]:
                raise ValueError(f"{folder} is a checkpoint of other settings: delete it to start over")
            self.scores = found["scores"]
        done = len(self.scores) if folder is not None else 0
        with bar("ExpertIteration", iterations, progress_bar) as shown:
            shown.advance(done)
            for _ in range(iterations - done):
                number = len(self.scores)
                rng = np.random.default_rng([self.seed, number])
                prompts = [self.task.prompts[int(i)].text for i in rng.integers(len(self.task.prompts), size=self.n_prompts)]
                best = best_of_n(
                    self.policy, self.task.tokenizer, prompts, self.n, self.reward, self.task.max_new_tokens, seed=int(rng.integers(2**31))
                )
                self.trainer.seed = int(rng.integers(2**31))
                self.trainer.learn(list(zip(prompts, (b.response for b in best), strict=True)), self.steps)
                self.policy.drop_caches()
                self.scores.append(float(np.mean([b.scores for b in best])))
                if folder is not None:
                    save_training(folder, self.policy.lm, {**facts, "scores": self.scores})
                shown.advance(note=f"score {self.scores[-1]:.2f}")
        return self
