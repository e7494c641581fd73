"""Rollouts that several processes write together, see `agents.distributed.process_group`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from textrl_env.envs.rank_share import RankShare

from ...distributed.process_group import ranks
from ...distributed.ranks import Ranks
from ...generation.generator import Generator
from ...policies.transformer_policy import TransformerPolicy
from ...rollouts.kl_controller import KLController
from ...rollouts.text_vec_env import text_env_of

CHECK_EVERY = 5  # rollouts between two comparisons of what the ranks hold


class Stopped(Exception):
    """A callback on some rank asked to stop."""


class DistributedMixin:
    """Mixin of `TextAlgorithm`: each rank writes a share of a rollout's texts, and then all ranks hold all of them.

    Attributes:
        ranks: The processes that train together.
    """

    ranks: Ranks = Ranks()
    _on_ranks: ClassVar[bool] = False  # whether several processes can train one policy with it
    policy: TransformerPolicy
    kl_controller: KLController
    n_episodes: int
    num_rollouts: int
    num_timesteps: int
    verbose: int
    tensorboard_log: str | None
    seed: int | None
    generator: Generator | None

    if TYPE_CHECKING:  # defined by the classes that this one stands before

        def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None: ...

    def _join_ranks(self) -> None:
        self.ranks = ranks()
        if self.ranks.size == 1:
            return
        if not self._on_ranks:
            raise ValueError(
                f"{type(self).__name__} trains in one process, and torchrun started {self.ranks.size}: use TextPolicyGradient there "
                "(estimator='gae' is PPO) or RLOO, GRPO, Reinforce, ReinforcePlusPlus"
            )
        if not self.ranks.is_main:
            self.verbose, self.tensorboard_log = 0, None
        if self.seed is None:
            self.seed = self.ranks.broadcast(int(np.random.SeedSequence().generate_state(1)[0]))

    def _begin_on_ranks(self, env: VecEnv) -> None:
        """Give each rank its share of the texts and its own random numbers; every few rollouts, compare the ranks' weights and prompts.

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
        state = texts.random_state()
        if _numbers(state["reward"]):
            raise ValueError(
                f"the reward {texts.reward_model!r} changes while it scores, and each of {self.ranks.size} ranks would change its own: "
                "use one that does not (norm_reward of rollout_buffer_kwargs scales by all ranks' scores), or train in one process"
            )
        if self.num_rollouts % CHECK_EVERY == 0:
            self.ranks.check_equal({"weights": self.policy, "prompts": state, "beta": self.kl_controller.beta})
        texts.core.share = RankShare(self.ranks.rank, self.ranks.size)
        drawn = np.random.SeedSequence([self.seed or 0, self.num_rollouts, self.ranks.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))

    @staticmethod
    def _end_on_ranks(env: VecEnv) -> None:
        """Let the environment deal to this process alone again."""
        text_env_of(env).core.share = None

    def _more_texts(self, finished: list[dict[str, Any]]) -> int:
        """Return how many more texts the rollout needs, once `n_episodes` or the number returned last are written."""
        return 0

    def _join_round(self, own: list[dict[str, Any]], finished: list[dict[str, Any]], before: int) -> int:
        """Exchange the texts that each rank finished since the last call, and return how many more the rollout needs.

        Args:
            own: Infos of this rank's texts; emptied.
            finished: Infos of all ranks' texts in this rollout; those of `own` and of the other ranks are appended.
            before: Tokens before the rollout.

        Raises:
            Stopped: A callback of another rank asked to stop.
        """
        parts = self.ranks.gather((False, self.num_timesteps - before, own))
        own.clear()
        if any(stopped for stopped, *_ in parts):
            raise Stopped
        joined = [info for *_, infos in parts for info in infos]
        self._update_info_buffer(joined, np.ones(len(joined), bool))
        finished += joined
        more = self._more_texts(finished)
        if not more:
            self.num_timesteps = before + sum(tokens for _, tokens, _ in parts)
        return more


def _numbers(state: Any) -> bool:
    """Return whether nested mappings hold any value but None."""
    return any(_numbers(value) for value in state.values()) if isinstance(state, Mapping) else state is not None
