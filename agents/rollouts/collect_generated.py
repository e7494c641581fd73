"""Rollouts whose texts a generator wrote: the environment plays the tokens, the policy scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from textrl_env.envs.core import TextCore
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..generation.generator import Generator, Request, checked
from ..models.sequences import TextRecord, pack
from ..policies.sampling_record import SamplingRecord
from ..policies.transformer_policy import TransformerPolicy
from .collect import Played
from .rollout_buffer import SequenceRolloutBuffer


class _Scored(NamedTuple):
    """A response, and for each of its tokens what the policy says: three arrays of one length."""

    tokens: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray


def play_generated(
    generator: Generator,
    policy: TransformerPolicy,
    env: VecEnv,
    buffer: SequenceRolloutBuffer,
    num_episodes: int,
    use_masking: bool = True,
    more: Callable[[], int] = lambda: 0,
) -> Iterator[Played]:
    """Do what `rollout.play_episodes` does, with texts that a generator wrote.

    The environment deals the prompts it would have dealt, and plays the tokens: ends, scores and infos come from it.  Tokens after
    an end that only it sees (a stop string, the task's own `ends`) are dropped.  All rows that begin are written in one call, so
    that an environment of `num_episodes` rows calls the generator once.

    Args:
        generator: Writes.
        policy: Scores what was written.
        env: A `TextGenerationVecEnv`, wrapped or not.
        buffer: Emptied first.
        num_episodes: How many.
        use_masking: As in `play_episodes`; there are no masks here.
        more: As in `play_episodes`.

    Yields:
        Every step after it was stored.

    Raises:
        ValueError: The generator cannot follow the task or the policy's sampler, or its answer is not one.
    """
    texts = env.unwrapped
    assert isinstance(texts, TextGenerationVecEnv)
    check_can_follow(policy, texts.core)
    buffer.reset()
    generator.load(policy)
    try:
        while num_episodes:
            texts.begin_rollout(num_episodes)
            obs: Any = env.reset()
            starts = np.ones(env.num_envs, bool)
            rest: dict[int, Iterator[tuple[int, float, float]]] = {}  # what is left of each row's text
            while (live := obs["prompt"][:, 0] >= 0).any():
                if len(begun := np.flatnonzero(live & starts)):
                    written = _write(generator, policy, texts.core, obs["prompt"][begun], buffer.kl_shaping.batch_size)
                    rest |= {row: zip(*text, strict=True) for row, text in zip(begun.tolist(), written, strict=True)}
                step = np.zeros((3, env.num_envs))
                step[:, live] = np.transpose([next(rest[row]) for row in np.flatnonzero(live).tolist()])
                chosen, value = step[0].astype(np.int64), torch.as_tensor(step[1:2].T, dtype=torch.float32)
                new_obs, rewards, dones, infos = env.step(chosen)
                buffer.add(obs, chosen, rewards, starts, value, _as_acted(policy, step[2]))
                obs, starts = new_obs, dones
                yield Played(int(live.sum()), dones, infos)
            num_episodes = more()
        buffer.compute_returns_and_advantage(torch.zeros(env.num_envs), starts)
    finally:
        texts.end_rollout()


def check_can_follow(policy: TransformerPolicy, core: TextCore) -> None:
    """Insist that a generator sees all that decides which tokens may be drawn.

    Raises:
        ValueError: Something does that it does not see.
    """
    sampler, task = policy.sampler, core.task
    lacking = (
        (task.reply is not None, "a dialogue (the task's reply)", "play it without a generator"),
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
    """Have texts written and scored.

    Args:
        generator: Writes.
        policy: Scores.
        core: What is played.
        prompts: As observed, shape (R, P), -1 beyond each.
        size: Texts that are scored at once.
    """
    task = core.task
    stop_ids = tuple(sorted({task.tokenizer.eos_token_id, *task.stop_ids}))
    seed = int(torch.randint(2**31 - 1, ()))  # of torch's generator, whose state a checkpoint holds
    packed = tuple(row[row >= 0] for row in prompts)
    request = Request(packed, task.max_new_tokens, policy.sampler, stop_ids, policy.vocab_size, seed)
    return _score(policy, request.prompts, checked(request, generator.generate(request)), size)


@torch.no_grad()
def _score(policy: TransformerPolicy, prompts: tuple[np.ndarray, ...], responses: list[np.ndarray], size: int) -> list[_Scored]:
    """Compute values and log-probabilities in full passes, texts of like length together."""
    found: dict[int, _Scored] = {}
    order = np.argsort([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], kind="stable")
    for indices in (order[start : start + size].tolist() for start in range(0, len(order), size)):
        batch = pack([TextRecord(prompts[i], responses[i], 0) for i in indices], policy.device)
        actions = torch.as_tensor(np.concatenate([responses[i] for i in indices]), device=policy.device)
        values, log_probs, _ = policy.evaluate_actions(batch, actions)
        edges = np.cumsum([len(responses[i]) for i in indices])[:-1]
        columns = (np.split(column.flatten().cpu().numpy(), edges) for column in (values, log_probs))
        found |= {i: _Scored(responses[i], *scores) for i, *scores in zip(indices, *columns, strict=True)}
    return [found[i] for i in range(len(responses))]


def _as_acted(policy: TransformerPolicy, log_probs: np.ndarray) -> torch.Tensor:
    """Return log-probabilities as `TransformerPolicy.forward` hands them to the buffer, shape (E,)."""
    acted = torch.as_tensor(log_probs, dtype=torch.float32)
    acted.acting = SamplingRecord(policy.sampler, None, policy.backbone.autocast)  # type: ignore[attr-defined]
    return acted
