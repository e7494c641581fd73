"""Texts from a policy, without an algorithm or a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor

from rewards.utils.devices import seeded
from textrl_env import Episode, Prompt, TextCore, TextTask
from textrl_env.reward_model import NoReward
from textrl_env.tokenizer import check_same_tokens

from ..policies.transformer_policy import TransformerPolicy
from ..utils.progress import bar


def generate(
    policy: TransformerPolicy,
    tokenizer: Any,
    prompts: Sequence[str | Prompt],
    max_new_tokens: int,
    deterministic: bool = False,
    num_rows: int = 64,
    seed: int | None = None,
    progress_bar: bool = False,
    **settings: Any,
) -> list[str]:
    """Return one response for each prompt, in their order; nothing judges them.

    Args:
        policy: Who writes, with its own temperature, top-k, top-p and minimum length.
        tokenizer: The policy's, or what `FileTokenizer` takes; it says what ends a text.
        prompts: What the texts start from: texts, in which spelled special tokens are text, or prompts that a chat template wrote.
        max_new_tokens: Longest response, in tokens.
        deterministic: Take the likeliest token instead of drawing one.
        num_rows: Texts written side by side.
        seed: Of the sampling; None goes on with torch's global generator.
        progress_bar: Show one.
        **settings: Further fields of `TextTask`, such as `stop_strings`.

    Raises:
        ValueError: There are no prompts, one is empty, a setting is out of range, or the policy was made for other tokens.
    """
    rules = {"deterministic": deterministic, "num_rows": num_rows, "seed": seed, "progress_bar": progress_bar, **settings}
    return [episode.response for episode, _ in play_prompts(policy, tokenizer, prompts, max_new_tokens, NoReward(), **rules)]


def play_prompts(
    policy: TransformerPolicy,
    tokenizer: Any,
    prompts: Sequence[str | Prompt],
    max_new_tokens: int,
    reward: Any,
    deterministic: bool = False,
    num_rows: int = 64,
    seed: int | None = None,
    progress_bar: bool = False,
    **settings: Any,
) -> list[tuple[Episode, float]]:
    """Return one text for each prompt, in their order, and what an environment with these `settings` and this reward pays for it in all.

    Arguments are those of `generate`; `reward` is what an environment's `reward` takes.
    """
    core = _core(policy, tokenizer, prompts, max_new_tokens, min(num_rows, len(prompts)), reward, settings)
    written: dict[int, tuple[Episode, float]] = {}
    with _sampling(policy, seed), bar("generate", len(prompts), progress_bar) as shown:
        core.begin_rollout(len(prompts))
        core.restart(range(core.num_rows))
        while core.live.any():
            result = core.step(_actions(policy, core, deterministic))
            ended = [(info["prompt_id"], (result.episodes[row], info["return"])) for row, info in result.infos.items()]
            written |= dict(ended)
            core.restart(list(result.episodes))
            shown.advance(len(ended))
    return [written[index] for index in range(len(prompts))]


def stream(
    policy: TransformerPolicy,
    tokenizer: Any,
    prompt: str | Prompt,
    max_new_tokens: int,
    deterministic: bool = False,
    seed: int | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Yield the response to one prompt piece by piece, as soon as a piece cannot change any more.

    Arguments are those of `generate`.
    """
    core = _core(policy, tokenizer, [prompt], max_new_tokens, 1, NoReward(), settings)
    core.restart([0])
    shown = 0
    with _sampling(policy, seed):
        while core.live[0]:
            episodes = core.step(_actions(policy, core, deterministic)).episodes
            text = episodes[0].response if episodes else _settled(core)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)


def check_agreement(policy: TransformerPolicy, task: TextTask) -> None:
    """Check that a policy was made for the tokens of a task, and for the ends of its texts.

    Raises:
        ValueError: It was not.
    """
    size, own = task.tokenizer.vocab_size, getattr(policy.action_space, "eos_token_ids", task.eos_token_ids)
    if policy.vocab_size != size or set(own) != set(task.eos_token_ids):
        raise ValueError(
            f"the policy was made for {policy.vocab_size} tokens and texts that end with {list(own)}, the tokenizer has {size} and ends "
            f"texts with {list(task.eos_token_ids)}: pass the tokenizer that the policy was made with"
        )
    check_same_tokens(policy._source, task.tokenizer)


def _core(
    policy: TransformerPolicy,
    tokenizer: Any,
    prompts: Sequence[str | Prompt],
    max_new_tokens: int,
    num_rows: int,
    reward: Any,
    settings: dict[str, Any],
) -> TextCore:
    rows = tuple(Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts)
    task = TextTask(tokenizer, rows, max_new_tokens, prompt_order="sequential", **settings)
    check_agreement(policy, task)
    return TextCore(task, num_rows, reward)


@contextmanager
def _sampling(policy: TransformerPolicy, seed: int | None) -> Iterator[None]:
    """Put the policy in evaluation mode; with a seed, leave torch's global generators as they were."""
    policy.set_training_mode(False)
    policy.drop_caches()
    with nullcontext() if seed is None else seeded(seed, policy.device):
        yield


def _actions(policy: TransformerPolicy, core: TextCore, deterministic: bool) -> np.ndarray:
    with torch.no_grad():
        observation: Any = obs_as_tensor(core.observe(), policy.device)
        return policy._predict(observation, deterministic, core.legal()).cpu().numpy()


def _settled(core: TextCore) -> str:
    """Return the text of row 0 without what the next token may still change: half a character, or the start of a stop string."""
    text = core.text(0)[1].rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((n for stop in core.task.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held]
