"""Expert iteration (RAFT): write, keep the best, imitate it, again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.utils.devices import seeded
from textrl_env import Prompt, TextTask

from ..distributed.ranks import digest
from ..evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ..models.loading import LMSource
from ..models.memory_estimate import MemoryEstimate
from ..utils.contents import with_contents
from ..utils.interrupts import stop_request
from ..utils.progress import bar
from ..utils.run_folder import fingerprint
from .common.memory_check import check_imitation
from .common.training_checkpoint import load_training, save_training
from .sft import SFT


class ExpertIteration:
    """Reward-ranked fine-tuning (Dong et al. 2023; Anthony et al. 2017): SFT on the best of n responses to each prompt.

    The best is the one that the environment pays most for, in all: score, rewards of steps and turns, penalties of the task.  What is
    imitated are the tokens that the policy wrote, its end of text too where it wrote one; replies of a dialogue are read only.

    Of several processes that torchrun started each writes and scores texts for its part of the prompts; the best of all are imitated
    together, see `Supervised`.

    Nothing holds the policy to the reference but the bound of best-of-n, log n - (n - 1) / n nats in each iteration.

    Args:
        task: Prompts, tokenizer, lengths.
        model: What `agents.models.loading.load_lm` takes: where the policy starts.
        reward: What an environment's `reward` takes; None: the task's own.
        n: Responses for each prompt.
        n_prompts: Prompts of each iteration.
        steps: Optimizer steps of each iteration.
        learning_rate: Peak of each iteration's one-cycle schedule.
        batch_size: Texts per step.
        seed: Of prompts, sampling and order.
        device: Where the policy writes and learns, see `rewards.utils.devices.get_device`.
        **rules: Settings of the policy, see `PolicySettings`: rules of sampling, and `lora`, `precision`, `micro_batch_size`,
            `gradient_checkpointing` and `compile`, which its training keeps to as well.

    Attributes:
        policy: The policy that writes, and is trained.
        scores: Mean score of all texts written in each iteration.
        memory: What `learn` estimated before it began.
    """

    __module__ = "agents"

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
        device: torch.device | str = "auto",
        **rules: Any,
    ) -> None:
        if n < 2 or n_prompts < 1 or steps < 1:
            raise ValueError(f"n={n}, n_prompts={n_prompts}, steps={steps}: need at least 2, 1 and 1")
        self.task, self.reward = task, task.reward if reward is None else reward
        self.n, self.n_prompts, self.steps, self.seed = n, n_prompts, steps, seed
        with seeded(seed):
            self.policy = make_policy(task, model, device, **rules)
        self.trainer = SFT(
            self.policy.lm, task.tokenizer, train_on_prompts=False,
            learning_rate=learning_rate, batch_size=batch_size, weight_decay=0.0, seed=seed,
            micro_batch_size=self.policy.settings.micro_batch_size,
        )  # fmt: skip
        self.trainer.backbone = self.policy.backbone  # with its precision and compiled passes
        if self.trainer.engine.sharded:
            raise ValueError("expert iteration writes with all weights on each process: leave out shards (--use_fsdp of accelerate launch)")
        if n_prompts < self.trainer.engine.ranks.size:
            raise ValueError(f"n_prompts={n_prompts}: each of {self.trainer.engine.ranks.size} processes writes for one at least, raise it")
        self._rules = rules
        self.scores: list[float] = []
        self.memory: MemoryEstimate | None = None
        self._first: str | None = None  # hash of the weights that training began with

    def learn(self, iterations: int, progress_bar: bool = False, checkpoint: str | Path | None = None) -> ExpertIteration:
        """Write texts and imitate the best of them, `iterations` times.

        Args:
            iterations: Number of iterations, those of the checkpoint included.
            progress_bar: Whether to show a progress bar.
            checkpoint: A folder.  After every iteration the training is saved there; the same call goes on from it, bit by bit.

        Raises:
            ValueError: The checkpoint is damaged, or of other settings; or the training cannot fit into memory.
            KeyboardInterrupt: The user asked to stop; with a checkpoint, the training was saved there first.
        """
        folder, together = None if checkpoint is None else Path(checkpoint), self.trainer.engine.ranks
        facts = {} if folder is None else {"of": fingerprint(self._depends_on())}
        if folder is not None and (saved := load_training(folder, self.policy.lm)) is not None:
            if saved.get("of") != facts["of"]:
                raise ValueError(f"{folder} is a checkpoint of other settings: delete it to start over")
            self.scores = saved["scores"]
        self.memory = self.trainer.memory = self.memory or check_imitation(self)
        done = len(self.scores) if folder is not None else 0
        stopping = nullcontext(False) if folder is None else stop_request("iteration", together.size > 1)
        with bar("ExpertIteration", iterations, progress_bar and together.is_main) as shown, stopping as asked:
            shown.advance(done)
            for _ in range(iterations - done):
                number = len(self.scores)
                rng = np.random.default_rng([self.seed, number])
                drawn = [self.task.start_of(int(i))[0] for i in rng.integers(len(self.task.prompts), size=self.n_prompts)]
                own = drawn[together.rank :: together.size]
                texts = self._write([prompt for prompt in own for _ in range(self.n)], seed=int(rng.integers(2**31)) + together.rank)
                returns = texts.returns.reshape(len(own), self.n)  # (prompts, n)
                best = returns.argmax(1) + np.arange(len(own)) * self.n  # (prompts,): where the best text of each is
                self.trainer.seed = int(rng.integers(2**31))
                parts = together.gather([texts.records[i] for i in best])
                self.trainer.learn([record for part in parts for record in part], self.steps)
                self.policy.drop_caches()
                total, number = together.sums([texts.scores.sum(), len(texts.scores)])
                self.scores.append(float(total / number))
                if folder is not None:
                    save_training(folder, self.policy.lm, {**facts, "scores": self.scores})
                shown.advance(note=f"score {self.scores[-1]:.2f}")
                if folder is not None and together.sums(bool(asked)):
                    raise KeyboardInterrupt(f"Stopped at iteration {len(self.scores)} of {iterations}, saved in {folder}.")
        return self

    def _depends_on(self) -> list[Any]:
        self._first = self._first or digest(self.policy.lm)[0]
        own = [self.n, self.n_prompts, self.steps, self.seed, self.trainer.learning_rate, self.trainer.batch_size, self.task.max_new_tokens]
        prompts = [[prompt.text, list(prompt.references)] for prompt in self.task.prompts]
        reward = with_contents(self.reward, "reward") if isinstance(self.reward, (str, Mapping)) else type(self.reward).__name__
        return [type(self).__name__, own, self._first, prompts, reward, *([self._rules] if self._rules else [])]

    def _write(self, prompts: list[Prompt], seed: int) -> WrittenTexts:
        """Play the task from these prompts, with its constraints, turns and endings."""
        width = self.task.max_prompt_tokens
        task = replace(self.task, prompts=prompts, max_prompt_tokens=width, prompt_order="sequential", prompt_weights=None, group_size=1)
        return write_texts(self.policy, task, len(prompts), self.reward, seed=seed)
