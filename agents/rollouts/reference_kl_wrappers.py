"""KL to a reference for other people's agents: the reference's log-probability as a reward.

Each step's reward becomes `reward + beta * log pi_ref(token | text)`.  An agent that gives its own log-probability
(`env.log_probs = ...` before `step`) also gets `- beta * log pi(token | text)`; together that is the k1 estimator, and a text
sums to `score - beta * log(pi / pi_ref)`, what `SequenceRolloutBuffer` gives our own agents.  A step or reset consumes
`log_probs`: set them before each step.  Set them on the wrapper itself, or from outside further wrappers with
`set_wrapper_attr("log_probs", ...)` (gymnasium) or `set_attr("log_probs", ...)` (SB3); a plain assignment to an outer wrapper
would stay there unread.  Action masks of the environment are not asked for, since nobody says whether the agent follows them:
the reference is that of all tokens, where the buffer's is that of the legal ones, and a masked agent's rewards differ by what
it gives the others.

Without the agent's log-probability an entropy bonus has to stand in for `- beta * log pi`.  This is the same objective only
where the entropy of later states enters the *return*, as in soft Q-learning or SAC:

    E[R] + beta * E[log pi_ref] + beta * E[sum_t H(pi(. | text_t))] = E[R] - beta * KL(pi || pi_ref).

The bonus of PPO and A2C (`ent_coef`) is part of the *loss*: it holds up the entropy of the states that are visited, but gives
no credit for reaching states in which entropy, and so the bonus, is large.  Both end at `pi = softmax(Q / beta)`, where a text
that goes on is worth `beta * logsumexp(Q / beta)` to the one and `E_pi[Q]`, without the entropy ahead, to the other: another
policy.  J(pi) = E[R] - beta * KL of both on tasks that can be enumerated (3 tokens, texts of 3, random rewards and reference,
beta 0.5), by backward induction and by exact gradient ascent (test_reference_kl_wrappers.py):

    draw of rewards and reference                       0       1       2       3
    optimum, beta * log E_ref[exp(R / beta)]        0.668   0.525   1.089   2.943
    with - beta * log pi in the reward              0.668   0.525   1.089   2.943
    with an entropy bonus of beta in the loss       0.664   0.477   1.076   2.938
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ..models.cached_decoder import CachedDecoder
from ..models.sampler import LOG_ZERO, Sampler
from ..models.sequences import texts_of, withheld_after
from ..models.upload import Upload
from .reference_model import Reference, as_reference


class ReferenceScore:
    """Log-probabilities of the reference for the tokens of many texts, a step at a time.

    Args:
        reference: A language model: folder or hub id, configuration as plain data, or a module.  Of a module
            that trains (gradients or training mode on) a frozen copy is taken.
        beta: Coefficient, at least 0.
        observation_space: Of one text: `prompt` and `response`.
        action_space: Of one text: `Discrete(V)`.  A reference with more tokens is renormalised on these V.
        sampler: Static rules of the agent's sampler; KL is measured between distributions under the same rules.

    Raises:
        TypeError: The environment writes no texts, or the module is no language model.
        ValueError: Beta is negative or not finite, the reference has too few tokens or positions, or the sampler cuts.
    """

    def __init__(
        self, reference: Reference, beta: float, observation_space: Any, action_space: Any, sampler: Sampler | None = None
    ) -> None:
        if not 0 <= beta < np.inf:
            raise ValueError(f"beta={beta}: must be at least 0 and finite")
        if not isinstance(action_space, spaces.Discrete) or not {"prompt", "response"} <= set(getattr(observation_space, "spaces", {})):
            raise TypeError(f"spaces {observation_space} and {action_space}: a text environment has Dict(prompt, response) and Discrete(V)")
        self.beta, self.vocab_size, self.sampler = float(beta), int(action_space.n), sampler or Sampler()
        ends = getattr(action_space, "eos_token_ids", self.sampler.ends)
        if self.sampler.min_new_tokens and set(self.sampler.ends) != set(ends):
            raise ValueError(f"the sampler's eos_token_id={self.sampler.eos_token_id}: the environment ends texts with {list(ends)}")
        if self.sampler.cuts:
            raise ValueError("top_k and top_p depend on the model that acts: give the reference static rules only")
        self.backbone = as_reference(reference, observation_space, self.vocab_size)
        self._cache = CachedDecoder()
        self._obs: dict[str, np.ndarray] = {}

    def see(self, obs: Any) -> None:
        """Keep the observations that the next actions answer: prompt (B, P) and response (B, T)."""
        self._obs = obs

    @torch.no_grad()
    def rewards(self, actions: Any, log_probs: Any) -> np.ndarray:
        """Return what the actions add to the rewards, shape (B,), float64; 0 for idle rows.

        Args:
            actions: Shape (B,), integers in [0, V); ignored where a row is idle.
            log_probs: The agent's log-probabilities of them, shape (B,), on whatever device, or None.

        Raises:
            RuntimeError: No text was begun.
            TypeError: The actions are not integers.
            ValueError: Actions or log-probabilities have another shape or are out of range, or the sampler's rules forbid an action.
        """
        if not self._obs:
            raise RuntimeError("no text is being written: call reset() before step()")
        texts = texts_of(self._obs)
        live = texts.lengths > 0
        tokens = self._tokens(actions, live)
        own = None if log_probs is None else _checked_log_probs(log_probs, len(live))
        added = np.zeros(len(live))
        if self.beta and live.any():
            upload = Upload(self.backbone.device)
            withheld = upload.add(withheld_after(texts.only(live), self.sampler))
            hidden = self._cache.plan(self.backbone, texts, upload)()  # (R, D)
            raw = self.backbone.logits(hidden)[:, : self.vocab_size]  # (R, V)
            logits = self.sampler.apply_rules(raw, withheld())
            chosen = torch.as_tensor(tokens[live], device=raw.device).long()[:, None]  # (R, 1)
            added[live] = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).cpu().double().numpy()
            if (added[live] < LOG_ZERO / 2).any():
                token = tokens[live][added[live].argmin()]
                raise ValueError(f"token {token} is one that the rules of {self.sampler} forbid: give sampler= the rules of the agent")
        if own is not None:
            added[live] -= own[live]
        return self.beta * added

    def _tokens(self, actions: Any, live: np.ndarray) -> np.ndarray:
        tokens = np.asarray(actions)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"actions have dtype {tokens.dtype}: pass integer token ids")
        if tokens.shape != live.shape:
            raise ValueError(f"actions have shape {tokens.shape}: pass one token id for each of {len(live)} rows")
        bad = tokens[live & ((tokens < 0) | (tokens >= self.vocab_size))]
        if len(bad):
            raise ValueError(f"token id {bad[0]} is outside the vocabulary [0, {self.vocab_size})")
        return tokens


class ReferenceKL(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """`ReferenceScore` for the scalar environment; set `log_probs` to one number before a step.

    `info["kl_reward"]` is what a step's reward holds of it; `info["score"]` at the end of a text stays the reward model's.

    Wraps a text environment; the other arguments are those of `ReferenceScore`.
    """

    def __init__(self, env: gym.Env[Any, Any], reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        RecordConstructorArgs.__init__(self, reference=reference, beta=beta, sampler=sampler)
        gym.Wrapper.__init__(self, env)
        self.kl = ReferenceScore(reference, beta, env.observation_space, env.action_space, sampler)
        self.log_probs: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new text."""
        self.log_probs = None
        obs, info = self.env.reset(seed=seed, options=options)
        self.kl.see({key: value[None] for key, value in obs.items()})
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Append a token."""
        log_probs, self.log_probs = self.log_probs, None
        log_probs = None if log_probs is None else _array(log_probs).reshape(-1)
        added = float(self.kl.rewards(np.reshape(action, -1), log_probs)[0])
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.kl.see({key: value[None] for key, value in obs.items()})
        return obs, float(reward) + added, terminated, truncated, {**info, "kl_reward": added}


class ReferenceKLVector(VectorWrapper):
    """`ReferenceScore` for gymnasium's vector environment; set `log_probs` (B,) before a step.

    Wraps a batched text environment; the other arguments are those of `ReferenceScore`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        super().__init__(env)
        self.kl = ReferenceScore(reference, beta, env.single_observation_space, env.single_action_space, sampler)
        self.log_probs: Any = None

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new text in every row."""
        self.log_probs = None
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # its annotation forgets the list
        self.kl.see(obs)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Append one token to every text."""
        log_probs, self.log_probs = self.log_probs, None
        added = self.kl.rewards(actions, log_probs)
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = (terminated | truncated) & (self.env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP)  # (B,) no action will count
        self.kl.see({**obs, **{key: np.where(ended[:, None], -1, obs[key]) for key in ("prompt", "response")}})
        return obs, rewards + added, terminated, truncated, {**infos, "kl_reward": added, "_kl_reward": np.ones(len(added), bool)}


class ReferenceKLVecEnv(VecEnvWrapper):
    """`ReferenceScore` for Stable-Baselines3's environment; set `log_probs` (B,) before a step.

    Wraps a batched text environment; the other arguments are those of `ReferenceScore`.
    """

    def __init__(self, venv: VecEnv, reference: Reference, beta: float, sampler: Sampler | None = None) -> None:
        super().__init__(venv)
        self.kl = ReferenceScore(reference, beta, venv.observation_space, venv.action_space, sampler)
        self.log_probs: Any = None
        self._added = np.zeros(venv.num_envs)

    def reset(self) -> VecEnvObs:
        """Start a new text in every row."""
        self.log_probs = None
        obs = self.venv.reset()
        self.kl.see(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Score the tokens, then pass them on."""
        log_probs, self.log_probs = self.log_probs, None
        self._added = self.kl.rewards(actions, log_probs)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token to every text."""
        obs, rewards, dones, infos = self.venv.step_wait()
        self.kl.see(obs)
        for info, added in zip(infos, self._added, strict=True):
            info["kl_reward"] = float(added)
        return obs, rewards + self._added.astype(np.float32), dones, infos

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment inside, or `log_probs` here: SB3's wrappers around this one call it.

        Raises:
            ValueError: `log_probs` were given for some rows only.
        """
        if attr_name != "log_probs":
            return super().set_attr(attr_name, value, indices)
        if indices is not None:
            raise ValueError(f"indices={indices}: pass the log_probs of all rows, and no indices")
        self.log_probs = value


def _array(numbers: Any) -> np.ndarray:
    return np.asarray(numbers.detach().cpu().double() if torch.is_tensor(numbers) else numbers, np.float64)


def _checked_log_probs(log_probs: Any, number: int) -> np.ndarray:
    values = _array(log_probs)
    if values.shape != (number,):
        raise ValueError(f"log_probs have shape {values.shape}: pass one for each of {number} actions")
    bad = values[~np.isfinite(values) | (values > 1e-6)]
    if len(bad):
        raise ValueError(f"log_probs hold {bad[0]}: each must be finite and at most 0")
    return values
