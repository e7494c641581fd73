"""Measures of a policy's texts."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rewards.utils.devices import get_device, seeded
from textrl_env import Episode, TextTask
from textrl_env.envs.base import spaces_of
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.tokenizer import check_same_tokens

from ..generation.text_generation import check_agreement
from ..models.loading import LMSource
from ..models.sequences import TextRecord
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.collect import play_episodes
from ..rollouts.reference_model import Reference
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from ..utils.progress import bar


@dataclass(frozen=True)
class WrittenTexts:
    """Texts that a policy wrote, one for each of the task's prompts in their order.

    Attributes:
        prompts: What they started from.
        responses: What was written.
        scores: The reward model's scores, shape (n,).
        returns: What the environment paid in all: scores, rewards of steps and turns, the task's penalties, shape (n,).
        lengths: Response tokens, shape (n,).
        finish_reasons: Why each ended.
        kl_per_sequence: Mean of the summed log(pi / pi_ref), in nats; 0 without a reference.
        entropy: Mean of -log pi of the tokens written, in nats.
        perplexity: exp of the mean of -log pi_ref of the tokens written; NaN without a reference.
        tokens_per_second: Of writing.
        records: The tokens of each, as `SFT` learns from them; none of texts that no policy of ours wrote.
        kl: Summed log(pi / pi_ref) of each text, in nats, shape (n,); None without a reference.
        reference_nats: -log pi_ref of each text, shape (n,); None without a reference.
        images: Pictures of the prompts, shape (H, W, 3), uint8, each; none if they have none.
        episodes: The texts as reward models see them.
    """

    prompts: list[str]
    responses: list[str]
    scores: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    finish_reasons: list[str]
    kl_per_sequence: float
    entropy: float
    perplexity: float
    tokens_per_second: float
    records: Sequence[TextRecord] = ()
    kl: np.ndarray | None = None
    reference_nats: np.ndarray | None = None
    images: Sequence[np.ndarray] = ()
    episodes: Sequence[Episode] = ()

    @classmethod
    def of(
        cls,
        infos: list[dict[str, Any]],
        records: Sequence[TextRecord] = (),
        kl: np.ndarray | None = None,
        reference_nats: np.ndarray | None = None,
        **measured: float,
    ) -> WrittenTexts:
        """Take the texts from the infos of their last steps, in any order; `records`, `kl` and `reference_nats` in the same."""
        order = sorted(range(len(infos)), key=lambda i: int(infos[i]["prompt_id"]))
        infos = [infos[i] for i in order]
        return cls(
            prompts=[info["prompt"] for info in infos],
            responses=[info["response"] for info in infos],
            scores=np.array([info["score"] for info in infos]),
            returns=np.array([info["return"] for info in infos]),
            lengths=np.array([int((info["terminal_observation"]["response"] >= 0).sum()) for info in infos]),
            finish_reasons=[info["finish_reason"] for info in infos],
            records=[records[i] for i in order] if records else (),
            kl=None if kl is None else kl[order],
            reference_nats=None if reference_nats is None else reference_nats[order],
            episodes=[info["text"] for info in infos],
            images=[info["terminal_observation"]["image"] for info in infos if "image" in info["terminal_observation"]],
            **measured,
        )


def make_policy(task: TextTask, model: LMSource, device: torch.device | str = "auto", **policy_kwargs: Any) -> TransformerPolicy:
    """Return a policy for the task's spaces, outside any algorithm: to write texts with.

    Args:
        task: What it will play.
        model: See `TransformerPolicy`.
        device: Where it computes, see `rewards.utils.devices.get_device`.
        **policy_kwargs: Sampling rules.
    """
    there = get_device(device)
    check_same_tokens(model, task.tokenizer)
    policy = TransformerPolicy(*spaces_of(task), lambda _: 0.0, model=model, **policy_kwargs).to(there)
    policy.set_training_mode(False)
    return policy


def write_texts(
    policy: TransformerPolicy,
    task: TextTask,
    num_texts: int,
    reward: Any = None,
    reference: Reference | None = None,
    seed: int = 0,
    num_rows: int = 256,
    progress_bar: bool = False,
    title: str = "write texts",
) -> WrittenTexts:
    """Write one text for each of the first `num_texts` prompts of `task`, starting over at its last one.

    Torch's global generators are left as they were.

    Args:
        policy: Who writes.
        task: Where texts start; its `prompt_order` must be `"sequential"`.
        num_texts: How many.
        reward: Scores them; None takes the task's own.
        reference: KL is measured against it; a module goes to the policy's device.
        seed: Of the sampling.
        num_rows: Texts written side by side.
        progress_bar: Show one.
        title: Of the bar.

    Raises:
        ValueError: The task draws its prompts at random, or policy or reference were made for other tokens.
    """
    check_agreement(policy, task)
    if task.prompt_order != "sequential":
        raise ValueError("texts are matched to prompts: make the task with prompt_order='sequential'")
    check_same_tokens(reference, task.tokenizer, "reference")
    env = TextGenerationVecEnv(min(num_rows, num_texts), task=task, reward=reward)
    buffer = SequenceRolloutBuffer(
        1, env.observation_space, env.action_space, policy.device, n_envs=env.num_envs, reference=reference, beta=0.0
    )
    policy.set_training_mode(False)
    ended: dict[int, deque[dict[str, Any]]] = defaultdict(deque)  # by row
    began = perf_counter()
    with seeded(seed, policy.device), bar(title, num_texts, progress_bar) as shown:
        for played in play_episodes(policy, env, buffer, num_texts):
            rows = np.flatnonzero(played.dones)
            for row in rows.tolist():
                ended[row].append(played.infos[row])
            shown.advance(len(rows))
    seconds, reference_log_probs = perf_counter() - began, buffer.reference_log_probs
    return WrittenTexts.of(
        [ended[segment.row].popleft() for segment in buffer.segments],
        [buffer.record(index) for index in range(num_texts)],
        kl=None if reference_log_probs is None else _sums(buffer.kl, buffer),
        reference_nats=None if reference_log_probs is None else -_sums(reference_log_probs, buffer),
        kl_per_sequence=buffer.stats.kl_per_sequence,
        entropy=buffer.stats.entropy,
        perplexity=float("nan") if reference_log_probs is None else float(np.exp(-reference_log_probs.mean())),
        tokens_per_second=buffer.stats.num_tokens / max(seconds - buffer.stats.reference_seconds, 1e-9),
    )


def _sums(of_tokens: np.ndarray, buffer: SequenceRolloutBuffer) -> np.ndarray:
    """Go from (N,), text after text, to the sum over each text, (n,)."""
    return np.add.reduceat(of_tokens, buffer._offsets[:-1], dtype=np.float64)
