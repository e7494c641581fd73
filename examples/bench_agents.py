"""Agents of Stable-Baselines3, sb3-contrib and TorchRL in the benchmark, each with a small network of its own that starts from nothing.

They embed the token ids of prompt and response, and know neither the base policy nor its distribution, so that their KL is not measured.
Settings follow the import string, as in `bench_agents:SB3PPO:learning_rate=3e-4`.

cd examples
textrl bench --tasks lock,modes --agents bench_agents:SB3PPO,bench_agents:ContribQRDQN,bench_agents:TorchRLReinforce
"""

from __future__ import annotations

from typing import Any

import torch
from sb3_agents import TokenEmbeddings
from sb3_contrib import QRDQN
from stable_baselines3 import PPO
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor
from torchrl_agent import Logits, take_step

POLICY = {"features_extractor_class": TokenEmbeddings, "net_arch": [64]}


def within(tokens: int, rollout: int) -> int:
    """Return the tokens of as many whole rollouts as the budget holds, at least one."""
    return max(1, tokens // rollout) * rollout


class SB3PPO:
    """Stable-Baselines3's PPO.

    Args:
        env: The `TextGenerationVecEnv` to learn in.
        base: Folder of the base policy, which is not used.
        seed: Of everything that is drawn.
        learning_rate: Of Adam.
        n_steps: Tokens of a row in each rollout.
        ent_coef: Weight of the entropy bonus.
    """

    def __init__(self, env: Any, base: str, seed: int, learning_rate: float = 3e-3, n_steps: int = 16, ent_coef: float = 0.01) -> None:
        self.agent = PPO(
            "MultiInputPolicy", env, learning_rate, n_steps, batch_size=256, gamma=1.0, ent_coef=ent_coef, policy_kwargs=POLICY, seed=seed,
            device="cpu",
        )  # fmt: skip

    def learn(self, total_timesteps: int) -> None:
        """Write whole rollouts."""
        self.agent.learn(within(total_timesteps, self.agent.n_steps * self.agent.n_envs))

    def predict(self, observation: dict[str, Any]) -> tuple[Any, Any]:
        """Draw the next token of each row, shape (B,)."""
        return self.agent.predict(observation)


class ContribQRDQN:
    """sb3-contrib's QRDQN, which values every token at every position; it plays the best one.

    Args:
        env: The `TextGenerationVecEnv` to learn in.
        base: Folder of the base policy, which is not used.
        seed: Of everything that is drawn.
        learning_rate: Of Adam.
        gradient_steps: After each token of all rows.
    """

    def __init__(self, env: Any, base: str, seed: int, learning_rate: float = 1e-3, gradient_steps: int = 4) -> None:
        self.agent = QRDQN(
            "MultiInputPolicy", env, learning_rate, buffer_size=20_000, learning_starts=1000, batch_size=128, gamma=1.0, train_freq=1,
            gradient_steps=gradient_steps, target_update_interval=1000, exploration_fraction=0.5,
            policy_kwargs=POLICY | {"n_quantiles": 25}, seed=seed, device="cpu",
        )  # fmt: skip

    def learn(self, total_timesteps: int) -> None:
        """Write whole steps of all rows."""
        self.agent.learn(within(total_timesteps, self.agent.n_envs))

    def predict(self, observation: dict[str, Any]) -> tuple[Any, Any]:
        """Choose the best token of each row, shape (B,)."""
        return self.agent.predict(observation, deterministic=True)


class TorchRLReinforce:
    """The REINFORCE of `examples/torchrl_agent.py`, TorchRL's actor and TensorDicts, on the rows of the benchmark.

    Args:
        env: The `TextGenerationVecEnv` to learn in.
        base: Folder of the base policy, which is not used.
        seed: Of everything that is drawn.
        learning_rate: Of Adam.
        parts: Steps on each rollout, each on a part of its rows.
    """

    def __init__(self, env: Any, base: str, seed: int, learning_rate: float = 1e-2, parts: int = 4) -> None:
        torch.manual_seed(seed)
        env.seed(seed)
        self.env, self.parts = env, parts
        prompt, response = (env.observation_space[name].shape[0] for name in ("prompt", "response"))
        self.n_steps = 2 * response  # so that at least one text of each row ends
        logits = TensorDictModule(Logits(int(env.action_space.n), prompt + response), in_keys=["prompt", "response"], out_keys=["logits"])
        self.actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical)
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning_rate)

    def learn(self, total_timesteps: int) -> None:
        """Write whole rollouts, and take steps on each."""
        obs = self.env.reset()
        rollout = self.n_steps * self.env.num_envs
        for _ in range(within(total_timesteps, rollout) // rollout):
            played, obs = self._play(obs)
            for part in played.split(self.env.num_envs // self.parts):
                take_step(self.actor, self.optimizer, part)

    def _play(self, obs: dict[str, Any]) -> tuple[TensorDict, dict[str, Any]]:
        """Return a rollout, shape (B, S), and the observation after it."""
        steps = []
        for _ in range(self.n_steps):
            step = self._act(obs)
            obs, rewards, dones, _ = self.env.step(step["action"].numpy())
            ended = torch.as_tensor(dones)[:, None]  # (B, 1)
            reward = torch.as_tensor(rewards)[:, None]
            step["next"] = _rows(obs) | {"reward": reward, "done": ended, "terminated": ended}
            steps.append(step)
        return torch.stack(steps, 1), obs

    def _act(self, obs: dict[str, Any]) -> TensorDict:
        with torch.no_grad():
            return self.actor(TensorDict(_rows(obs), batch_size=[len(obs["prompt"])]))

    def predict(self, observation: dict[str, Any]) -> tuple[Any, Any]:
        """Draw the next token of each row, shape (B,)."""
        return self._act(observation)["action"].numpy(), None


def _rows(obs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(obs[name]) for name in ("prompt", "response")}
