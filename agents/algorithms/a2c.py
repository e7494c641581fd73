"""A2C, TRPO and MaskablePPO on texts: the libraries' own `train()`, with whole episodes and a reference."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from ..models.loading import LMSource
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.kl_controller import Beta
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from .common.text_algorithm import TextAlgorithm


class TextA2C(TextAlgorithm, A2C):
    """SB3's A2C on texts: one step of Adam on all texts of a rollout; `train()` is SB3's own.

    Differences from `stable_baselines3.A2C` are those of `TextPPO`, and Adam instead of RMSprop.

    Args:
        policy: See `TextPPO`.
        env: See `TextPPO`.
        learning_rate: See SB3.
        n_episodes: Texts per rollout, all in one step.
        gamma: Discount.
        gae_lambda: See SB3; below 1, the critic's error biases the gradient.
        ent_coef: See SB3.
        vf_coef: Weight of the value loss.
        max_grad_norm: See SB3.
        beta: See `TextPPO`.
        reference: See `TextPPO`.
        reference_mixup: See `TextPPO`.
        critic_warmup: See `TextPPO`.
        whiten_advantages: Give the advantages of a rollout mean 0 and variance 1.
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

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_episodes: int = 64,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.1,
        max_grad_norm: float = 1.0,
        beta: Beta = 0.05,
        reference: LMSource | None = None,
        reference_mixup: float = 0.0,
        critic_warmup: int = 0,
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
        self._set_text(n_episodes, beta, reference, reference_mixup, critic_warmup)
        super().__init__(
            policy,
            gym.make(env) if isinstance(env, str) else env,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_rms_prop=False,
            rollout_buffer_class=SequenceRolloutBuffer,
            rollout_buffer_kwargs={"whiten_advantages": whiten_advantages, **(rollout_buffer_kwargs or {})},
            normalize_advantage=False,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )
