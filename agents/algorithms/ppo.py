"""PPO on texts."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from ..models.loading import LMSource
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.kl_controller import Beta
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from .common.text_algorithm import TextAlgorithm


class ClippedText(TextAlgorithm):
    """The constructor of `TextPPO` and `TextMaskablePPO`, before the library's class in the line of bases; see `TextPPO`."""

    _buffer_class: ClassVar[type[SequenceRolloutBuffer]] = SequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_episodes: int = 64,
        batch_size: int = 16,
        n_epochs: int = 4,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        ent_coef: float = 0.0,
        vf_coef: float = 0.1,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        beta: Beta = 0.05,
        reference: LMSource | None = None,
        reference_mixup: float = 0.0,
        critic_warmup: int = 0,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: texts per minibatch, at least 1")
        self._set_text(n_episodes, beta, reference, reference_mixup, critic_warmup)
        super().__init__(  # type: ignore[call-arg]  # of PPO, which comes after in line
            policy,
            gym.make(env) if isinstance(env, str) else env,  # SB3 would ask for render_mode="rgb_array"
            learning_rate=learning_rate,
            n_steps=batch_size,  # not used; a multiple of batch_size keeps SB3's warning about cut minibatches quiet
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=False,  # the buffer whitens the whole rollout
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=self._buffer_class,
            rollout_buffer_kwargs={"whiten_advantages": True, **(rollout_buffer_kwargs or {})},
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )


class TextPPO(ClippedText, PPO):
    """SB3's PPO with the defaults that texts need; `train()` is SB3's own.

    Differences from `stable_baselines3.PPO`, and why: rollouts are `n_episodes` whole texts, so nothing is bootstrapped;
    minibatches are whole texts; gamma is 1, since 0.99 would scale the reward of a 48-token text by 0.62 at its first
    token; advantages are whitened once over the rollout; vf_coef is 0.1, for the value head shares the trunk; rewards are
    shaped by KL to a frozen reference.

    Args:
        policy: `"TransformerPolicy"` or a subclass of it.
        env: A text environment's id, a text environment, or a `TextGenerationVecEnv`.
        learning_rate: See SB3.
        n_episodes: Texts per rollout.
        batch_size: Texts per minibatch.
        n_epochs: Passes over a rollout.
        gamma: Discount.
        gae_lambda: See SB3.
        clip_range: See SB3.
        clip_range_vf: See SB3; in reward units.
        ent_coef: Reward for entropy in the loss.
        vf_coef: Weight of the value loss.
        max_grad_norm: See SB3.
        target_kl: Stop the epochs of a rollout early at 1.5 times this `approx_kl`; not the KL to the reference.
        beta: Coefficient of KL to the reference: a number, keyword arguments of `AdaptiveKLController`, a schedule of what remains of
            the training (from 1 to 0), or a controller.
        reference: Folder of the reference, or what else `agents.models.loading.load_lm` takes that has weights; None takes a frozen copy of
            the policy's first weights, or, if only adapters train (`lora`), the base model under them, which needs no copy.
        reference_mixup: After each update the reference becomes (1 - this) * reference + this * policy; 0: it never changes.
        critic_warmup: Rollouts at the start in which only the critic learns.
        rollout_buffer_kwargs: Further arguments of `SequenceRolloutBuffer`: `norm_reward`, `clip_reward`, `whiten_rewards`, ...
        stats_window_size: See SB3.
        tensorboard_log: See SB3.
        policy_kwargs: Arguments of the policy: `model`, the sampling rules, and more, see `TransformerPolicy`.
        verbose: See SB3.
        seed: See SB3.
        device: See SB3.
        _init_setup_model: See SB3.
    """

    __module__ = "agents"
