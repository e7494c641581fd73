"""KL to a reference for other people's agents: the reference's log-probability as a reward.

Each step's reward becomes `reward + beta * log pi_ref(token | text)`.  An agent that says how likely its token was
(`env.log_probs = ...` before `step`) also gets `- beta * log pi(token | text)`; together that is the k1 estimator, and a text
sums to `score - beta * log(pi / pi_ref)`, what `SequenceRolloutBuffer` gives our own agents.

Without the agent's log-probability an entropy bonus has to stand in for `- beta * log pi`.  This is the same objective only
where the entropy of later states enters the *return*, as in soft Q-learning or SAC:

    E[R] + beta * E[log pi_ref] + beta * E[sum_t H(pi(. | text_t))] = E[R] - beta * KL(pi || pi_ref).

The bonus of PPO and A2C (`ent_coef`) is part of the *loss*: it holds up the entropy of the states that are visited, but gives
no credit for reaching states in which entropy, and so the bonus, is large.  Its fixed point is another policy.  Exact gradient
ascent on an enumerable task (3 tokens, texts of 3, random rewards and reference, beta 0.5; test_reference_kl.py) ends at

    J(pi) = E[R] - beta * KL, optimum beta * log E_ref[exp(R / beta)]       0.525
    with - beta * log pi in the reward                                      0.525
    with an entropy bonus of beta in the loss                               0.477

On three other draws of the rewards the bonus fell short by 0.004, 0.013 and 0.006.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn

from .cache import CachedDecoder
from .lm import LMSource, frozen, load_lm
from .sampler import Sampler
from .sequences import lm_head, texts_of

Reference = LMSource | nn.Module


class ReferenceScore:
    """Log-probabilities of the reference for the tokens of many texts, a step at a time.

    Args:
        reference: A language model: folder or hub id, configuration as plain data, or a module.
        beta: Coefficient, at least 0.
        vocab_size: Of the environment.
        sampler: Static rules of the agent's sampler; KL is measured between distributions under the same rules.

    Raises:
        ValueError: Beta is negative or not finite, the reference has too few tokens, or the sampler cuts.
    """

    def __init__(self, reference: Reference, beta: float, vocab_size: int, sampler: Sampler | None = None) -> None:
        if not 0 <= beta < np.inf:
            raise ValueError(f"beta={beta}: must be at least 0 and finite")
        lm: Any = reference if isinstance(reference, nn.Module) else frozen(load_lm(reference))
        self.lm, found = lm, lm.config.vocab_size
        if found < vocab_size:
            raise ValueError(f"the reference has {found} tokens, the environment {vocab_size}: they must share a tokenizer")
        self.beta, self.vocab_size, self.sampler = float(beta), vocab_size, sampler or Sampler()
        if self.sampler.cuts:
            raise ValueError("top_k and top_p depend on the model that acts: give the reference static rules only")
        self._cache = CachedDecoder()
        self._obs: dict[str, np.ndarray] = {}

    def see(self, obs: Any) -> None:
        """Keep the observations that the next actions answer: prompt (B, P) and response (B, T)."""
        self._obs = obs

    @torch.no_grad()
    def rewards(self, actions: np.ndarray, log_probs: Any) -> np.ndarray:
        """Return what the actions add to the rewards, shape (B,), float64; 0 for idle rows.

        Args:
            actions: Shape (B,).
            log_probs: The agent's log-probabilities of them, shape (B,), or None.

        Raises:
            ValueError: The log-probabilities have another shape, or are NaN, infinite or positive.
        """
        actions = np.asarray(actions)
        texts, lengths, steps = texts_of({key: torch.as_tensor(value) for key, value in self._obs.items()})
        live = lengths > 0
        added = np.zeros(len(actions))
        if self.beta and live.any():
            hidden = self._cache.last_hidden(self.lm, texts, lengths)  # (R, D)
            raw = lm_head(self.lm, hidden)[:, : self.vocab_size]
            logits = self.sampler.apply_rules(raw, torch.as_tensor(steps[live], device=raw.device))
            chosen = torch.as_tensor(actions[live], device=raw.device).long()[:, None]
            added[live] = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).double().cpu().numpy()
        if log_probs is not None:
            added[live] -= self._checked(log_probs, len(actions))[live]
        return self.beta * added

    @staticmethod
    def _checked(log_probs: Any, number: int) -> np.ndarray:
        values = np.asarray(log_probs, np.float64)
        if values.shape != (number,):
            raise ValueError(f"log_probs have shape {values.shape}: pass one for each of {number} actions")
        if not np.isfinite(values).all() or (values > 1e-6).any():
            raise ValueError(f"log_probs={values.tolist()}: each must be finite and at most 0")
        return values


class ReferenceKL(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """`ReferenceScore` for the scalar environment; set `log_probs` to one number before a step.

    `info["kl_reward"]` is what a step's reward holds of it; `info["score"]` at the end of a text stays the reward model's.

    Args:
        env: A text environment.
        reference: See `ReferenceScore`.
        beta: See `ReferenceScore`.
        sampler: See `ReferenceScore`.
    """

    def __init__(self, env: gym.Env[Any, Any], reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        RecordConstructorArgs.__init__(self, reference=reference, beta=beta, sampler=sampler)
        gym.Wrapper.__init__(self, env)
        self.kl = ReferenceScore(reference, beta, _vocab_size(env.action_space), sampler)
        self.log_probs: float | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new text."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.kl.see({key: value[None] for key, value in obs.items()})
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Append a token."""
        log_probs = None if self.log_probs is None else [self.log_probs]
        added = float(self.kl.rewards(np.asarray([action]), log_probs)[0])
        self.log_probs = None
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.kl.see({key: value[None] for key, value in obs.items()})
        return obs, float(reward) + added, terminated, truncated, {**info, "kl_reward": added}


class ReferenceKLVector(VectorWrapper):
    """`ReferenceScore` for gymnasium's vector environment; set `log_probs` (B,) before a step.

    Args:
        env: A batched text environment.
        reference: See `ReferenceScore`.
        beta: See `ReferenceScore`.
        sampler: See `ReferenceScore`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        super().__init__(env)
        self.kl = ReferenceScore(reference, beta, _vocab_size(env.single_action_space), sampler)
        self.log_probs: Any = None

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new text in every row."""
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # its annotation forgets the list
        self.kl.see(obs)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Append one token to every text."""
        added = self.kl.rewards(actions, self.log_probs)
        self.log_probs = None
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        self.kl.see(obs)
        return obs, rewards + added, terminated, truncated, {**infos, "kl_reward": added, "_kl_reward": np.ones(len(added), bool)}


class ReferenceKLVecEnv(VecEnvWrapper):
    """`ReferenceScore` for Stable-Baselines3's environment; set `log_probs` (B,) before a step.

    Args:
        venv: A batched text environment.
        reference: See `ReferenceScore`.
        beta: See `ReferenceScore`.
        sampler: See `ReferenceScore`.
    """

    def __init__(self, venv: VecEnv, reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        super().__init__(venv)
        self.kl = ReferenceScore(reference, beta, _vocab_size(venv.action_space), sampler)
        self.log_probs: Any = None
        self._added = np.zeros(venv.num_envs)

    def reset(self) -> VecEnvObs:
        """Start a new text in every row."""
        obs = self.venv.reset()
        self.kl.see(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Score the tokens, then pass them on."""
        self._added = self.kl.rewards(actions, self.log_probs)
        self.log_probs = None
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token to every text."""
        obs, rewards, dones, infos = self.venv.step_wait()
        self.kl.see(obs)
        for info, added in zip(infos, self._added, strict=True):
            info["kl_reward"] = float(added)
        return obs, rewards + self._added.astype(np.float32), dones, infos


def _vocab_size(space: Any) -> int:
    if not isinstance(space, gym.spaces.Discrete):
        raise TypeError(f"action space {space}: a text environment has Discrete(vocabulary size)")
    return int(space.n)
