"""The first texts of a policy, and how fast they are written, read and learned from; of it follows what an iteration takes.

Nothing of it changes the training: weights, gradients, generators and the reward model's state are afterwards what they were.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from rewards.utils.devices import seeded
from textrl_env import Episode, TextCore, TextTask
from textrl_env.reward_model import NoReward, valid_scores

from ..models.sequences import SequenceBatch, TextRecord, pack
from ..policies.transformer_policy import TransformerPolicy

SHOWN = 3  # texts that are measured, and shown, of a large model
_OPERATIONS = 3e10  # of a pass over the texts that are measured: half a second on a core
_WRITTEN = 4e9  # parameters that are read, in all, to write a sample: two seconds
_FEWEST_TOKENS = 24  # of a sample, where the task allows so many


class Sample(NamedTuple):
    """A text of the first policy.

    Attributes:
        prompt: What it starts from.
        response: What was written; a large model's samples are cut short.
        score: The reward's.
        ended: Whether it ended by itself.
    """

    prompt: str
    response: str
    score: float
    ended: bool


class Pace(NamedTuple):
    """Seconds, measured on a few texts.

    Attributes:
        texts: How many they were.
        step: To write the next token of all of them.
        read: A token in a pass without gradients.
        learn: A token forward and backward.
        score: The reward of a text.
        optimizer: A step of the optimizer.
    """

    texts: int
    step: float
    read: float
    learn: float
    score: float
    optimizer: float


class Work(NamedTuple):
    """What an iteration does.

    Attributes:
        texts: That it writes and learns from.
        rows: Written side by side.
        prompt: Tokens of a prompt, their mean.
        response: Tokens of a response, their expected mean.
        longest: Most tokens of a response.
        group: Texts of a prompt, which is read once for all of them.
        epochs: Times that each text is learned from.
        steps: Of the optimizer.
    """

    texts: int
    rows: int
    prompt: float
    response: float
    longest: int
    group: int
    epochs: float
    steps: int


class FirstTexts(NamedTuple):
    """The first texts: means of their tokens, the samples to show, and the seconds that they took."""

    prompt: float
    response: float
    samples: list[Sample]
    pace: Pace


def expected_length(lengths: Sequence[int], ended: int, longest: int) -> float:
    """Return the mean length to expect of texts that end with an equal chance at each token, and that `longest` cuts.

    Args:
        lengths: Tokens of each sample, be it ended or cut.
        ended: How many of them ended.
        longest: Limit of the texts to come.
    """
    chance = ended / sum(lengths)
    return float(longest) if chance == 0 else (1 - (1 - chance) ** longest) / chance


def iteration_seconds(pace: Pace, work: Work, reference: float) -> dict[str, float]:
    """Return the seconds of each part of an iteration, in which a reference may read all texts: so many times as large, 0 if there is none.

    More texts than were measured take the time of a pass for each token more, and the longest of them how long writing goes on.
    """
    tokens = work.texts * work.response
    rounds = -(-work.texts // work.rows)
    steps = rounds * min(work.longest, work.response * (1 + math.log(work.rows)))
    more = max(0.0, tokens - steps * pace.texts) * pace.read
    whole = work.texts * (work.prompt + work.response)
    parts = {
        "writing": work.texts / work.group * work.prompt * pace.read + steps * pace.step + more,
        "reward": work.texts * pace.score,
        "reference": whole * pace.read * reference,
        "update": work.epochs * whole * pace.learn + work.steps * pace.optimizer,
    }
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


@contextmanager
def undisturbed(device: torch.device, reward: Any = None) -> Iterator[None]:
    """Leave every generator, and what the reward model remembers, as they were."""
    states, memory = (np.random.get_state(), random.getstate()), reward.get_state() if hasattr(reward, "get_state") else None
    try:
        with seeded(0, device):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        if memory is not None:
            reward.set_state(memory)


def first_texts(
    policy: TransformerPolicy, task: TextTask, reward: Any, most: int, at_once: int, optimizer: torch.optim.Optimizer
) -> FirstTexts:
    """Write a few texts, `most` at most, score them, and time passes over `at_once` of them at most."""
    with undisturbed(policy.device, reward):
        episodes, step = _write(policy, task, most)
        seconds, scores = timed(lambda: valid_scores(reward, episodes), policy.device, 1)
        read, learn = _passes(policy, episodes[:at_once])
        pace = Pace(len(episodes), step, read, learn, seconds / len(episodes), optimizer_seconds(optimizer))
    ended = [episode.finish_reason != "length" for episode in episodes]
    length = expected_length([len(episode.response_ids) for episode in episodes], sum(ended), task.max_new_tokens)
    shown = [Sample(e.prompt, e.response, float(s), end) for e, s, end in zip(episodes, scores, ended, strict=True)][:SHOWN]
    return FirstTexts(float(np.mean([len(episode.prompt_ids) for episode in episodes])), length, shown, pace)


def _write(policy: TransformerPolicy, task: TextTask, most: int) -> tuple[list[Episode], float]:
    """Write a few texts of the first prompts, at least three, and return them with the seconds of a step of all of them."""
    first = [len(task.start_of(i)[1]) for i in range(min(SHOWN, len(task.prompts)))]
    shortest = max(_FEWEST_TOKENS, task.min_new_tokens, policy.settings.min_new_tokens)
    limit = min(task.max_new_tokens, max(shortest, int(_WRITTEN // count(policy))))
    number = few(count(policy), float(np.mean(first)) + limit, most)
    prompts = [task.prompts[i % len(task.prompts)] for i in range(number)]
    small = replace(
        task, prompts=prompts, max_new_tokens=limit, prompt_order="sequential", prompt_weights=None, group_size=1,
        soft_max_tokens=None, soft_penalty=TextTask.soft_penalty,
    )  # fmt: skip
    core = TextCore(small, number, NoReward())
    ended: dict[int, Episode] = {}
    seconds: list[float] = []
    policy.set_training_mode(False)
    core.begin_rollout(number)
    core.restart(range(number))
    while core.live.any():
        whole = bool(core.live.all())
        took, episodes = timed(lambda: _step(policy, core), policy.device, 1)
        ended |= episodes
        seconds += [took] if whole or not seconds else []
    policy.drop_caches()
    return [ended[row] for row in range(number)], float(np.median(seconds))


def _step(policy: TransformerPolicy, core: TextCore) -> dict[int, Episode]:
    observation = core.observe()
    room = policy.observation_space["response"].shape[0] - core.response.shape[1]  # type: ignore[index]
    observation["response"] = np.pad(observation["response"], ((0, 0), (0, room)), constant_values=-1)  # (B, T): caches are tried on it
    with torch.no_grad():
        actions = policy(obs_as_tensor(observation, policy.device), action_masks=core.legal())[0]
    return core.step(actions.cpu().numpy()).episodes


def _passes(policy: TransformerPolicy, episodes: Sequence[Episode]) -> tuple[float, float]:
    """Return the seconds of a token in a pass over texts without gradients, and in one forward and backward."""
    batch = _batch(policy, episodes)
    actions = torch.as_tensor(np.concatenate([e.response_ids for e in episodes]), device=policy.device)
    tokens = sum(len(e.prompt_ids) + len(e.response_ids) for e in episodes)

    def score() -> torch.Tensor:
        values, log_probs, _ = policy.evaluate_actions(batch, actions)
        return values.mean() + log_probs.mean()

    with torch.no_grad():
        read, _ = timed(score, policy.device)
    policy.set_training_mode(True)
    learn, _ = timed(lambda: with_gradients(score, policy), policy.device)
    policy.set_training_mode(False)
    return read / tokens, learn / tokens


def _batch(policy: TransformerPolicy, episodes: Sequence[Episode]) -> SequenceBatch:
    """Lay texts side by side, as if no token had been cut when they were written."""
    records = [TextRecord(e.prompt_ids, e.response_ids, 0, image=e.image) for e in episodes]
    number = sum(len(e.response_ids) for e in episodes)
    cuts = policy.sampler.cuts or policy.mask is not None
    kept = np.full((number, -(-policy.vocab_size // 8)), 255, np.uint8) if cuts else None  # (N, ceil(V / 8))
    return pack(records, policy.device, kept, policy.sampler)


def with_gradients(loss: Callable[[], torch.Tensor], model: nn.Module) -> None:
    """Run forward and backward, and leave no gradient."""
    loss().backward()
    for parameter in model.parameters():
        parameter.grad = None


def optimizer_seconds(optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of a step, measured on numbers of the same kind, at most a million of them."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    number = sum(p.numel() for p in trained)
    part = nn.Parameter(torch.zeros(min(number, 1 << 20), device=trained[0].device))
    part.grad = torch.ones_like(part)
    settings = {name: value for name, value in optimizer.defaults.items() if name in ("lr", "fused", "betas", "eps")}
    seconds, _ = timed(type(optimizer)([part], **settings).step, part.device)
    return seconds * number / part.numel()


def timed(work: Callable[[], Any], device: torch.device, times: int = 3) -> tuple[float, Any]:
    """Return the seconds that `work` takes, the least of a few times if it is quick, and what it returns at first."""
    least, result = math.inf, None
    for number in range(times):
        began = perf_counter()
        made = work()
        torch.ones(1, device=device).item()  # waits for whatever the device has to do before it
        least, result = min(least, perf_counter() - began), made if number == 0 else result
        if least > 0.1:
            break
    return least, result


def few(parameters: int, tokens: float, most: int) -> int:
    """Return how many texts of so many tokens are measured: three of a large model, up to `most` of a small one."""
    return max(1, min(most, max(SHOWN, int(_OPERATIONS / (2 * parameters * tokens)))))


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
