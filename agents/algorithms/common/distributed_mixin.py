"""Trainings that several processes share: each writes and scores texts of its own, and learns from them, see `agents.distributed`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from textrl_env.envs.rank_share import RankShare

from ...distributed.engine import Engine, engine_of
from ...distributed.process_group import ranks
from ...distributed.ranks import Ranks
from ...generation.generator import Generator
from ...models.backbones import backbone_of
from ...models.loading import in_shards, is_in_shards
from ...models.mixed_precision import precision_of
from ...models.model_checks import check_lengths, check_model
from ...policies.critic import NONE, SHARED
from ...policies.transformer_policy import TransformerPolicy
from ...rollouts.kl_controller import KLController
from ...rollouts.rollout_buffer import SequenceRolloutBuffer
from ...rollouts.text_vec_env import text_env_of
from .training_warnings import check_gradients

CHECK_EVERY = 5  # rollouts between two comparisons of what the ranks hold


class Stopped(Exception):
    """A callback on some rank asked to stop."""


class _LimitOfAll(float):
    """An upper limit of a mean that every rank takes of its own tokens: comparing it with one asks for the mean of all."""

    __array_ufunc__ = None  # a NumPy number on the left leaves the comparison to this class
    buffer: SequenceRolloutBuffer

    def __rmul__(self, factor: float) -> _LimitOfAll:
        return limit_of_all(factor * float(self), self.buffer)

    def __lt__(self, mean: Any) -> bool:
        ranks = self.buffer.kl_shaping.engine.ranks
        return float(self) < float(ranks.sums(float(mean) * self.buffer.share)) / ranks.size


def limit_of_all(limit: float, buffer: SequenceRolloutBuffer) -> _LimitOfAll:
    """Return a limit that stands for `target_kl` in Stable-Baselines3's own `train()`: all ranks stop early, or none."""
    made = _LimitOfAll(limit)
    made.buffer = buffer
    return made


class DistributedMixin:
    """Mixin of `TextAlgorithm`: each rank writes a share of a rollout's texts, keeps them, and computes their part of every gradient.

    Attributes:
        ranks: The processes that train together.
        engine: How they hold the weights.  It is not saved.
        shard: Whether each is to hold a part only.
    """

    ranks: Ranks = Ranks()
    engine: Engine = Engine(ranks)
    shard: bool = False
    _wrapped: bool = False
    _on_ranks: ClassVar[bool] = False  # whether several processes can train one policy with it
    _why_alone: ClassVar[str] = ""  # why not
    policy: TransformerPolicy
    policy_kwargs: dict[str, Any]
    rollout_buffer: SequenceRolloutBuffer
    reference: nn.Module | None
    kl_controller: KLController
    logger: Logger
    n_episodes: int
    num_rollouts: int
    num_timesteps: int
    verbose: int
    tensorboard_log: str | None
    seed: int | None
    generator: Generator | None

    def _join_ranks(self) -> None:
        self.ranks = ranks()
        if self.ranks.size > 1 and not self._on_ranks:
            raise ValueError(
                f"{type(self).__name__} trains in one process, and torchrun started {self.ranks.size}: {self._why_alone}; use TextPPO, "
                "TextA2C, TextMaskablePPO, RLOO, GRPO, Reinforce, ReinforcePlusPlus or TextPolicyGradient there"
            )
        precision = precision_of(self.policy_kwargs.get("precision", "float32"))
        self.engine, self._wrapped = engine_of(self.ranks, self.shard, precision), False
        if self.ranks.size == 1:
            return
        if not self.ranks.is_main:
            self.verbose, self.tensorboard_log = 0, None
        if self.seed is None:
            self.seed = self.ranks.broadcast(int(np.random.SeedSequence().generate_state(1)[0]))

    def _hand_to_engine(self) -> None:
        """Have the engine hold the weights from now on; what was loaded before is whole."""
        if self._wrapped:
            return
        untried = [model for model in (self.policy, self.reference) if model is not None and is_in_shards(model)]
        self.engine.wrap(self.policy, self.policy.optimizer)
        if self.reference is not None:
            self.engine.shard(self.reference)
        self._wrapped = True
        for model in untried:
            self.engine.read(model, self._try, model)

    def _try(self, model: nn.Module) -> None:
        """Make the checks of models that were loaded in parts."""
        backbone = backbone_of(model.lm if isinstance(model, TransformerPolicy) else model)
        backbone.autocast = self.policy.backbone.autocast
        check_model(backbone)
        check_lengths(backbone, *(self.policy.observation_space[key].shape[0] for key in ("prompt", "response")))  # type: ignore[index]

    @contextmanager
    def _loading_in_shards(self) -> Iterator[None]:
        """Have each of several ranks read its part of the policy's files, where shards are wanted and the rest is no copy of the policy."""
        given = self.policy_kwargs
        if given.get("lora") is None and given.get("critic", SHARED) in (SHARED, NONE):
            self.policy_kwargs = {**given, "model": in_shards(given.get("model"), self.engine)}
        try:
            yield
        finally:
            self.policy_kwargs = given

    @contextmanager
    def _on_engine(self) -> Iterator[None]:
        """Have a library's own `train()` run the policy through the engine, and compare `target_kl` with the KL of all ranks.

        Raises:
            ValueError: Shards are to be put together for micro-batches, of which ranks would have unequal numbers.
        """
        if self.ranks.size == 1:
            yield
            return
        at_once, batch_size = self.policy.settings.micro_batch_size, getattr(self, "batch_size", 0)
        if self.engine.sharded and at_once and (np.ptp(self.ranks.numbers(self.rollout_buffer.num_texts)) or batch_size % self.ranks.size):
            raise ValueError(
                f"micro_batch_size={at_once} with shards: all of {self.ranks.size} ranks must run the model equally often; make "
                f"n_episodes={self.n_episodes} (in groups) and batch_size={batch_size} multiples of that, or set micro_batch_size to 0"
            )
        policy, buffer, target_kl = self.policy, self.rollout_buffer, getattr(self, "target_kl", None)
        whole = policy.evaluate_actions

        @functools.wraps(whole)
        def evaluate_actions(*arguments: Any, **named: Any) -> Any:
            evaluated, share = self.engine.run(functools.partial(whole, *arguments, **named)), buffer.share
            for output in evaluated:
                if output is not None and output.requires_grad:
                    output.register_hook(lambda gradient: gradient * share)  # the library's loss is a mean over this rank's tokens
            return evaluated

        policy.evaluate_actions = evaluate_actions  # type: ignore[method-assign]
        if target_kl is not None:
            vars(self)["target_kl"] = limit_of_all(target_kl, buffer)
        try:
            with self.ranks.together():
                yield
        finally:
            del policy.evaluate_actions
            if target_kl is not None:
                vars(self)["target_kl"] = target_kl

    def _average_log(self) -> None:
        """Have the log tell of all ranks what `train()` recorded of this one's texts: the mean over the ranks."""
        if self.ranks.size == 1:
            return
        logged = self.logger.name_to_value
        names = sorted(name for name in logged if name.startswith("train/"))
        for name, value in zip(names, self.ranks.sums([logged[name] for name in names]) / self.ranks.size, strict=True):
            logged[name] = float(value)

    def _begin_on_ranks(self, env: VecEnv) -> None:
        """Give each rank its share of the texts and its own random numbers; every few rollouts, compare what all ranks hold.

        The random numbers follow from the seed and the number of the rollout: a checkpoint need not hold every rank's generator.

        Raises:
            ValueError: Several ranks cannot share the rollout.
        """
        if self.ranks.size == 1:
            return
        if self.generator is not None:
            raise ValueError(f"a generator under {self.ranks.size} ranks: each of them writes with its policy; set it to None")
        texts = text_env_of(env)
        size = texts.task.group_size
        groups = -(-self.n_episodes // size)
        if groups < self.ranks.size:
            raise ValueError(
                f"n_episodes={self.n_episodes} are {groups} groups of group_size={size}, and a group stays on one rank: raise n_episodes, "
                f"or start at most {groups} processes instead of {self.ranks.size}"
            )
        if (batch_size := getattr(self, "batch_size", self.n_episodes)) < self.ranks.size:
            raise ValueError(f"batch_size={batch_size}: each of {self.ranks.size} ranks takes texts of its own for a step, raise it")
        state = texts.random_state()
        if _numbers(state["reward"]):
            raise ValueError(
                f"the reward {texts.reward_model!r} changes while it scores, and each of {self.ranks.size} ranks would change its own: "
                "use one that does not (norm_reward of rollout_buffer_kwargs scales by all ranks' scores), or train in one process"
            )
        if self.num_rollouts % CHECK_EVERY == 0:
            self.check_ranks({"prompts": state, "beta": self.kl_controller.beta})
        texts.core.share = RankShare(self.ranks.rank, self.ranks.size)
        drawn = np.random.SeedSequence([self.seed or 0, self.num_rollouts, self.ranks.rank]).generate_state(2)
        torch.manual_seed(int(drawn[0]))
        np.random.seed(int(drawn[1]))

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Return the states of policy, optimizer and reference by name, as SB3 does; where weights are in shards, to the first rank."""
        states: dict[str, dict[str, Any]] = self.engine.gathered(super().get_parameters())  # type: ignore[misc]
        return states

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the language model as `policy.save_pretrained` does; of several ranks the first writes, and all must call this."""
        parts = {name: part for name, part in self.policy.named_children() if name in ("lm", "value_head")}
        whole = self.engine.copied(nn.ModuleDict(parts))
        if self.ranks.is_main:
            policy = copy.copy(self.policy)
            policy._modules = {**policy._modules, **whole._modules}
            policy.save_pretrained(folder)
        self.ranks.wait()

    def check_learning(self, trainable: Sequence[nn.Parameter]) -> bool:
        """Check that an update left a gradient on some rank; return whether there was anything to learn.

        Raises:
            RuntimeError: There was, and no gradient reached the parameters.
        """
        buffer = self.rollout_buffer
        useful = buffer.advantages if buffer.importance_weights is None else buffer.advantages * buffer.importance_weights
        if not self.ranks.sums([len(buffer.trained), int(np.count_nonzero(useful))]).all():
            return False
        check_gradients(trainable, self.ranks)
        return True

    def check_ranks(self, what: Mapping[str, Any] | None = None) -> None:
        """Check that all ranks hold the same weights, if each holds all of them, and the same of `what`.

        Raises:
            RankError: They do not.
        """
        self.ranks.check_equal({**(what or {}), **({} if self.engine.sharded else {"weights": self.policy})})

    @staticmethod
    def _end_on_ranks(env: VecEnv) -> None:
        """Let the environment deal to this process alone again."""
        text_env_of(env).core.share = None

    def _more_texts(self) -> int:
        """Return how many more texts all ranks together shall write, once `n_episodes` or the number returned last are written."""
        return 0

    def _end_round(self) -> int:
        """Wait until all ranks have written their texts, and return how many more the rollout needs.

        Raises:
            Stopped: A callback of another rank asked to stop.
        """
        if self.ranks.sums(0):  # a rank that stops adds 1
            raise Stopped
        return self._more_texts()


def _numbers(state: Any) -> bool:
    """Return whether nested mappings hold any value but None."""
    return any(_numbers(value) for value in state.values()) if isinstance(state, Mapping) else state is not None
