"""What a training is going to do, before it begins: its model, texts as they are read, first samples and their scores, memory and time.

Nothing of it changes the training: weights, gradients, generators and the reward model's state are afterwards what they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from textrl_env import TextTask
from textrl_env.reward_model import as_reward_model
from textrl_env.tokenizer import Tokenizer, ends_of

from ..algorithms.common.memory_check import check_imitation, check_memory, check_supervised, free_for
from ..algorithms.common.supervised import Supervised
from ..algorithms.expert_iteration import ExpertIteration
from ..models.memory_estimate import MemoryEstimate
from ..rollouts.text_vec_env import text_env_of
from . import first_texts as first
from .first_texts import SHOWN, Sample, Work

_LOOKED_AT = 256  # rows of which the first are shown


@dataclass(frozen=True)
class ModelFacts:
    """Attributes: kind, layers and so on by name; numbers of parameters, of those that learn; type of the weights, where they are."""

    sizes: dict[str, Any]
    parameters: int
    trained: int
    dtype: str
    device: str


@dataclass(frozen=True)
class TokenFacts:
    """Attributes: number of tokens; ids and spellings of the ends of text, and of what prompts begin with."""

    vocabulary: int
    ends: dict[int, str]
    beginning: dict[int, str]


@dataclass(frozen=True)
class RunPlan:
    """What a training is going to do; what does not apply to an algorithm is empty or None.

    Attributes:
        model: Size of the model.
        tokens: Of the tokenizer.
        texts: Prompts, or the texts of rows that are learned, as the model reads them, special tokens spelled out.
        samples: Texts of the first policy.
        memory: The estimate, and the bytes that are free, None where that is not known.
        seconds: Of an iteration (of a step of algorithms that do not play) by part, worked out from `measured`.
        measured: Texts that were timed.
        iterations: Of the whole run; steps of algorithms that do not play.
        each: Texts in each of them.
        total_tokens: That the policy will write.
        passes: Times that the run reads its rows.
        reference: Size of a reference that was named, and what it is called.
    """

    model: ModelFacts
    tokens: TokenFacts
    texts: Sequence[str]
    samples: Sequence[Sample]
    memory: tuple[MemoryEstimate, int | None]
    seconds: dict[str, float]
    measured: int
    iterations: int
    each: int
    total_tokens: int | None = None
    passes: float | None = None
    reference: tuple[str, ModelFacts] | None = None


class DryRun(Exception):
    """The plan was told, and no more was asked for."""


def plan_of(agent: Any, amount: int, data: Any = None) -> RunPlan:
    """Plan a training of so many tokens (`TextAlgorithm`), iterations (`ExpertIteration`), or steps on `data` (`Supervised`)."""
    if isinstance(agent, Supervised):
        return plan_supervised(agent, data, amount)
    return plan_expert_iteration(agent, amount) if isinstance(agent, ExpertIteration) else plan_playing(agent, amount)


def plan_playing(algorithm: Any, total_tokens: int) -> RunPlan:
    """Plan a training that plays the environment.

    Args:
        algorithm: A `TextAlgorithm` with its environment; its `memory` is estimated if it is not yet.
        total_tokens: That it will write from here on.

    Raises:
        ValueError: It cannot fit into memory.
        RewardError: The reward model fails on the samples.
    """
    algorithm.memory = algorithm.memory or check_memory(algorithm)
    env, policy, texts, at_once = text_env_of(algorithm.env), algorithm.policy, algorithm.n_episodes, algorithm.texts_per_update
    rows = min(texts, env.num_envs)
    written = first.first_texts(policy, env.task, env.reward_model, rows, at_once, policy.optimizer)
    # TRPO solves for its step by as many double passes, and fits its critic apart
    epochs = sum(getattr(algorithm, name, 0) for name in ("n_epochs", "cg_max_steps", "n_critic_updates")) or 1
    steps = getattr(algorithm, "n_epochs", 1) * -(-texts // at_once)
    work = Work(texts, rows, written.prompt, written.response, env.task.max_new_tokens, env.task.group_size, epochs, steps)
    reference = algorithm.rollout_buffer.reference
    share = 0.0 if reference is None else first.count(reference.lm) / first.count(policy.lm)
    seconds = first.iteration_seconds(written.pace, work, share)
    return RunPlan(
        model=facts_of(policy.lm, policy),
        tokens=tokens_of(env.task.tokenizer),
        texts=_prompts(env.task),
        samples=written.samples,
        memory=(algorithm.memory, free_for(algorithm)),
        seconds=seconds,
        measured=written.pace.texts,
        iterations=math.ceil(total_tokens / (texts * written.response)),
        each=texts,
        total_tokens=total_tokens,
        reference=algorithm.reference_source and (algorithm.reference_name, facts_of(algorithm.reference, algorithm.reference)),
    )


def plan_expert_iteration(agent: ExpertIteration, iterations: int) -> RunPlan:
    """Plan a training on the policy's own best texts; arguments as in `ExpertIteration.learn`."""
    policy, task, texts, trainer = agent.policy, agent.task, agent.n * agent.n_prompts, agent.trainer
    optimizer = torch.optim.AdamW(trainer.lm.parameters(), fused=True)
    written = first.first_texts(policy, task, as_reward_model(agent.reward), texts, trainer.batch_size, optimizer)
    # only the best are learned from, again and again
    epochs = agent.steps * trainer.batch_size / texts
    work = Work(texts, texts, written.prompt, written.response, task.max_new_tokens, agent.n, epochs, agent.steps)
    return RunPlan(
        model=facts_of(policy.lm, policy),
        tokens=tokens_of(task.tokenizer),
        texts=_prompts(task),
        samples=written.samples,
        memory=(check_imitation(agent), free_for(trainer)),
        seconds=first.iteration_seconds(written.pace, work, 0.0),
        measured=written.pace.texts,
        iterations=iterations,
        each=texts,
        total_tokens=round(iterations * texts * written.response),
    )


def plan_supervised(trainer: Supervised, data: Sequence[Any], steps: int) -> RunPlan:
    """Plan a training on fixed texts; arguments as in `Supervised.learn`."""
    rows = trainer._encode(data[:_LOOKED_AT])
    texts = [[*record.context, *record.actions] for row in rows[:SHOWN] for record in trainer._records([row])]
    at_once = trainer._passes.get("micro_batch_size") or trainer.batch_size
    number = first.few(first.count(trainer.lm), sum(map(len, texts)) / len(rows[:SHOWN]), min(at_once, len(rows)))
    with first.undisturbed(trainer.backbone.device):
        trainer.lm.train()
        seconds, _ = first.timed(lambda: first.with_gradients(lambda: trainer._loss(rows[:number]), trainer.lm), trainer.backbone.device)
        trainer.lm.eval()
        optimizer = first.optimizer_seconds(torch.optim.AdamW(trainer.lm.parameters(), fused=True))
    return RunPlan(
        model=facts_of(trainer.lm, trainer.lm),
        tokens=tokens_of(trainer.tokenizer),
        texts=[spelled(trainer.tokenizer, ids) for ids in texts],
        samples=(),
        memory=(check_supervised(trainer, rows), free_for(trainer)),
        seconds={"learning": seconds * trainer.batch_size / number, "optimizer": optimizer},
        measured=number,
        iterations=steps,
        each=trainer.batch_size,
        passes=steps * trainer.batch_size / len(data),
    )


def facts_of(lm: nn.Module, whole: nn.Module) -> ModelFacts:
    """Return the size of a model, and of the whole that is trained, a critic included."""
    config = getattr(lm, "config", None)
    names = {"layers": "num_hidden_layers", "width": "hidden_size", "vocabulary": "vocab_size"}
    sizes = {name: getattr(config, key) for name, key in names.items() if getattr(config, key, None) is not None}
    kind = getattr(config, "model_type", None) or type(lm).__name__
    learned = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    weight = next(lm.parameters())
    dtype, device = str(weight.dtype).removeprefix("torch."), str(weight.device)
    return ModelFacts({"kind": kind, **sizes}, first.count(whole), learned, dtype, device)


def tokens_of(tokenizer: Tokenizer) -> TokenFacts:
    """Return what begins and ends a text."""
    ends, opening = ends_of(tokenizer), getattr(tokenizer, "bos_ids", ())
    return TokenFacts(tokenizer.vocab_size, *({int(i): spelled(tokenizer, [i]).strip() for i in ids} for ids in (ends, opening)))


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids, special tokens too where the tokenizer can spell them."""
    plain = [int(i) for i in ids]
    return str(tokenizer.spell(plain) if hasattr(tokenizer, "spell") else tokenizer.decode_batch([plain])[0])


def _prompts(task: TextTask) -> list[str]:
    return [spelled(task.tokenizer, task.start_of(i)[1].tolist()) for i in range(min(SHOWN, len(task.prompts)))]
