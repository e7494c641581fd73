"""Rollouts whose texts a generator wrote: the environment plays the tokens, the policy scores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from textrl_env.envs.core import TextCore

from ..generation.generator import Generator, Request, Written, checked
from ..models.sampler import LOG_ZERO
from ..models.sequences import TextRecord, pack
from ..policies.sampling_record import SamplingRecord
from ..policies.transformer_policy import TransformerPolicy
from .collect import Act
from .text_vec_env import text_env_of


class _Scored(NamedTuple):
    """A response of n tokens, with the generator's log-probability, and the policy's value and log-probability of each, shape (n,) each."""

    tokens: np.ndarray
    drawn: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray


def generated_actions(generator: Generator, policy: TransformerPolicy, env: VecEnv, batch_size: int) -> Act:
    """Return what `play_episodes` takes as `act`: the tokens of a generator.

    The environment deals the same prompts, and plays the generator's tokens: ends, scores and infos come from the environment.  Tokens
    after an end that only the environment sees (a stop string, the task's own `ends`) are dropped.  One call of the generator writes the
    texts of all rows that begin at a step: an environment of `num_episodes` rows calls it once.

    Args:
        generator: Writes the texts, with the policy's weights of now.
        policy: Computes values and log-probabilities of what was written.
        env: A `TextGenerationVecEnv`, wrapped or not.
        batch_size: Texts in one pass of the policy.

    Raises:
        ValueError: The generator cannot follow the task or the policy's sampler; from the function, its answer is malformed.
    """
    core = text_env_of(env).core
    check_can_follow(policy, core)
    generator.load(policy)
    rest: dict[int, Iterator[tuple[int, float, float, float]]] = {}  # what is left of each row's text, see _Scored

    def act(obs: dict[str, np.ndarray], starts: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        live = obs["prompt"][:, 0] >= 0  # (E,)
        if len(begun := np.flatnonzero(live & starts)):
            written = _write(generator, policy, core, obs["prompt"][begun], batch_size)
            rest.update({row: zip(*text, strict=True) for row, text in zip(begun.tolist(), written, strict=True)})
        step = np.zeros((4, len(live)))  # (4, E): as in _Scored
        step[:, live] = np.transpose([next(rest[row]) for row in np.flatnonzero(live).tolist()])
        tokens, drawn, values, log_probs = step
        return tokens.astype(np.int64), torch.as_tensor(values[:, None], dtype=torch.float32), _as_acted(policy, log_probs, drawn)

    return act


def check_can_follow(policy: TransformerPolicy, core: TextCore) -> None:
    """Check that a generator knows every rule by which the policy draws tokens.

    Raises:
        ValueError: There is a rule that generators do not know.
    """
    sampler, task = policy.sampler, core.task
    lacking = (
        (task.reply is not None, "a dialogue (the task's reply)", "play it without a generator"),
        (task.image_shape is not None, "the prompts' pictures", "play it without a generator"),
        (core.constraint is not None, "action masks (the task's constraint and min_new_tokens)", "give the policy min_new_tokens or bans"),
        (
            sampler.cuts,
            f"top_k={sampler.top_k}, top_p={sampler.top_p}, min_p={sampler.min_p}, whose kept tokens an update must know",
            "leave them at 0, 1 and 0, and lower the temperature instead",
        ),
        (sampler.no_repeat_ngram > 0, f"no_repeat_ngram={sampler.no_repeat_ngram}", "set it to 0, or penalise repetition in the reward"),
        (policy.mask is not None, "the learned mask of NLPO", "train with another algorithm"),
    )
    for there, what, fix in lacking:
        if there:
            raise ValueError(f"a generator cannot follow {what}: {fix}, or set model.generator = None")


def _write(generator: Generator, policy: TransformerPolicy, core: TextCore, prompts: np.ndarray, size: int) -> list[_Scored]:
    """Have the generator continue R prompts, and the policy score the responses.

    Args:
        generator: Writes.
        policy: Scores.
        core: What is played.
        prompts: As observed, shape (R, P), -1 beyond each.
        size: Texts in one pass of the policy.
    """
    task = core.task
    stop_ids = tuple(sorted({*task.eos_token_ids, *task.stop_ids}))
    seed = int(torch.randint(2**31 - 1, ()))  # from torch's generator, whose state is in checkpoints
    packed = tuple(row[row >= 0] for row in prompts)
    request = Request(packed, task.max_new_tokens, policy.sampler, stop_ids, policy.vocab_size, seed)
    return _score(policy, request.prompts, checked(request, generator.generate(request)), size)


@torch.no_grad()
def _score(policy: TransformerPolicy, prompts: tuple[np.ndarray, ...], written: list[Written], size: int) -> list[_Scored]:
    """Compute values and log-probabilities in full passes, texts of like length together.

    Raises:
        ValueError: A response holds a token that the policy's rules forbid.
    """
    scored: dict[int, _Scored] = {}
    responses = [one.tokens for one in written]
    order = np.argsort([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], kind="stable")
    for indices in (order[start : start + size].tolist() for start in range(0, len(order), size)):
        batch = pack([TextRecord(prompts[i], responses[i], 0) for i in indices], policy.device, sampler=policy.sampler)
        actions = torch.as_tensor(np.concatenate([responses[i] for i in indices]), device=policy.device)  # (N,)
        values, log_probs, _ = policy.evaluate_actions(batch, actions)
        if (log_probs < LOG_ZERO / 2).any():
            token = int(actions[log_probs.argmin()])
            raise ValueError(
                f"the generator wrote token {token} where the rules of {policy.sampler} forbid it: it must follow the request's"
            )
        edges = np.cumsum([len(responses[i]) for i in indices])[:-1]
        columns = (np.split(column.flatten().cpu().numpy(), edges) for column in (values, log_probs))
        scored |= {i: _Scored(*written[i], *scores) for i, *scores in zip(indices, *columns, strict=True)}
    return [scored[i] for i in range(len(responses))]


def _as_acted(policy: TransformerPolicy, log_probs: np.ndarray, drawn: np.ndarray) -> torch.Tensor:
    """Return log-probabilities as `TransformerPolicy.forward` hands them to the buffer, shape (E,)."""
    acted = torch.as_tensor(log_probs, dtype=torch.float32)
    acted.acting = SamplingRecord(policy.sampler, None, policy.backbone.autocast, drawn)  # type: ignore[attr-defined]
    return acted
