"""sb3-contrib's TRPO over whole texts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.loading import LMSource
from ..policies.critic import SHARED
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.kl_controller import Beta
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from .common.text_algorithm import TextAlgorithm


class TextTRPO(TextAlgorithm, TRPO):
    """sb3-contrib's TRPO on texts; `train()` is the library's own.

    It needs second derivatives, so attention runs in plain matrix products, and the logits of a whole rollout are in memory.  A
    shared trunk belongs to the policy: the critic's steps move its head alone; `policy_kwargs={"critic": "separate"}` gives it
    more to learn with.

    Args:
        policy: See `TextPPO`.
        env: See `TextPPO`.
        learning_rate: Of the critic.
        n_episodes: Texts per rollout, all in one step.
        batch_size: Texts per minibatch of the critic.
        gamma: Discount.
        gae_lambda: See SB3.
        cg_max_steps: See sb3-contrib; each takes two passes over a rollout, and 5 do nearly as well on language models.
        cg_damping: See sb3-contrib.
        line_search_shrinking_factor: See sb3-contrib.
        line_search_max_iter: See sb3-contrib.
        n_critic_updates: See sb3-contrib.
        target_kl: Largest mean KL per token between the policies before and after an update.
        beta: See `TextPPO`.
        reference: See `TextPPO`.
        reference_mixup: See `TextPPO`.
        whiten_advantages: See `TextA2C`.
        rollout_buffer_kwargs: Further arguments of `SequenceRolloutBuffer`: `norm_reward`, `clip_reward`, `whiten_rewards`, ...
        stats_window_size: See SB3.
        tensorboard_log: See SB3.
        policy_kwargs: See `TextPPO`.
        verbose: See SB3.
        seed: See SB3.
        device: See SB3.
        _init_setup_model: See SB3.
    """

    __module__ = "agents"

    _leaves_gradients = False

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_episodes: int = 64,
        batch_size: int = 16,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        target_kl: float = 0.01,
        beta: Beta = 0.05,
        reference: LMSource | None = None,
        reference_mixup: float = 0.0,
        whiten_advantages: bool = True,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self._set_text(n_episodes, beta, reference, reference_mixup, critic_warmup=0)
        if (policy_kwargs or {}).get("critic", SHARED) == SHARED:  # the library computes the trunk's gradient to throw it away
            policy_kwargs = {"detach_critic": True, **(policy_kwargs or {})}
        super().__init__(
            policy,
            gym.make(env) if isinstance(env, str) else env,
            learning_rate=learning_rate,
            n_steps=batch_size,  # not used; a multiple of batch_size keeps a warning about cut minibatches quiet
            batch_size=batch_size,
            gamma=gamma,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            rollout_buffer_class=SequenceRolloutBuffer,
            rollout_buffer_kwargs={"whiten_advantages": whiten_advantages, **(rollout_buffer_kwargs or {})},
            normalize_advantage=False,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    @property
    def texts_per_update(self) -> int:
        """All texts of a rollout: minibatches are the critic's alone."""
        return self.n_episodes

    def train(self) -> None:
        """Update as the library does."""
        with sdpa_kernel(SDPBackend.MATH):  # the only kernel that can be differentiated twice
            super().train()

    def _compute_actor_grad(
        self, kl_div: torch.Tensor, policy_objective: torch.Tensor
    ) -> tuple[list[nn.Parameter], torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
        # The library asks for the gradient of one parameter at a time, and every product with the Hessian then walks as many
        # graphs; asked for all at once, the same numbers take a seventh of the time on a model with 20 parameters.
        actor = [parameter for name, parameter in self.policy.named_parameters() if "value" not in name]
        slopes = torch.autograd.grad(kl_div, actor, create_graph=True, allow_unused=True)
        used = [(parameter, slope) for parameter, slope in zip(actor, slopes, strict=True) if slope is not None]
        actor = [parameter for parameter, _ in used]
        objective = torch.autograd.grad(policy_objective, actor, retain_graph=True)
        flat = [torch.cat([gradient.reshape(-1) for gradient in gradients]) for gradients in (objective, [slope for _, slope in used])]
        return actor, flat[0], flat[1], [parameter.shape for parameter in actor]
