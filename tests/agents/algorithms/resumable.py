"""A training run that test_resume.py kills: `python -m tests.agents.algorithms.resumable FOLDER WHERE`."""

import os
import signal
import sys
from pathlib import Path

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextPPO
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask

MODEL = {
    "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
TOTAL = 1100


def sevens(prompts, completions):
    return [float(c.split().count("7")) for c in completions]


def make_env():
    task = TextTask(IntegerTokenizer(24), [Prompt("1 2 3"), Prompt("4"), Prompt("5 6")], 9, prompt_order="shuffled")
    return TextGenerationVecEnv(8, task=task, reward=sevens)


def make_model():
    return TextPPO(
        "TransformerPolicy", make_env(), n_episodes=16, batch_size=4, n_epochs=2, learning_rate=3e-3, seed=3, device="cpu",
        beta={"beta": 0.1, "target": 0.5, "horizon": 64}, policy_kwargs={"model": MODEL},
    )  # fmt: skip


class Killer(BaseCallback):
    """Saves where told in the third rollout, and then dies in a rollout or in an update."""

    def __init__(self, folder, where):
        super().__init__()
        self.path, self.where, self.steps = folder / "model.zip", where, 0

    def _on_rollout_start(self):
        self.steps = 0

    def _on_rollout_end(self):
        if self.model.num_rollouts == 3 and self.where == "update":
            self.model.save(self.path)
            self.steps = 0
            self.model.policy.optimizer.register_step_post_hook(self._on_update)

    def _on_update(self, *_):
        self.steps += 1
        if self.steps == 3:  # of 8
            os.kill(os.getpid(), signal.SIGKILL)

    def _on_step(self):
        self.steps += 1
        if self.model.num_rollouts == 3 and self.where == "rollout":
            if self.steps == 2:
                self.model.save(self.path)
            if self.steps == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        return True


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_model().learn(TOTAL, callback=Killer(Path(sys.argv[1]), sys.argv[2]))
