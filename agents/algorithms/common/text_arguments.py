"""Keyword arguments that several text algorithms share, as type, default and meaning, see `keyword_arguments`."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import torch
from stable_baselines3.common.type_aliases import Schedule

from ...models.loading import LMSource
from ...rollouts.kl_controller import Beta
from ...utils.limits import Above0, AtLeast0, Count, Natural, Seed, Share


class SB3Arguments(TypedDict, total=False):
    """What every on-policy algorithm of Stable-Baselines3 takes."""

    learning_rate: Annotated[
        Above0 | Schedule, 3e-4, "Step size of Adam, > 0; or a schedule, a function of the share of the training that remains, from 1 to 0."
    ]
    gamma: Annotated[
        Share, 1.0, "Discount per token, in [0, 1]; SB3's 0.99 scales the reward of a 48-token text by 0.62 at its first token."
    ]
    gae_lambda: Annotated[
        Share, 0.95, "Lambda of generalised advantage estimation, in [0, 1]; below 1, the critic's error biases the gradient."
    ]
    rollout_buffer_kwargs: Annotated[
        dict[str, Any] | None,
        None,
        "Arguments of `SequenceRolloutBuffer`: `norm_reward`, `clip_reward`, `whiten_rewards`, `importance_sampling_mode`, ...",
    ]
    stats_window_size: Annotated[Count, 100, "Texts that the logged means of reward and length are taken over, at least 1."]
    tensorboard_log: Annotated[str | None, None, "Folder for TensorBoard; None: it is not written."]
    policy_kwargs: Annotated[
        dict[str, Any] | None, None, "Arguments of the policy: `model`, the sampling rules, and more, see `TransformerPolicy`."
    ]
    verbose: Annotated[Natural, 0, "What is printed: 0 nothing, 1 a table after each rollout, 2 also what serves debugging."]
    seed: Annotated[Seed | None, None, "Seed of weights, prompts and sampling; None: not seeded."]
    device: Annotated[torch.device | str, "auto", "Where the policy computes, see `rewards.utils.devices.get_device`."]
    _init_setup_model: Annotated[bool, True, "Whether to build the policy at once; SB3's `load` does so later."]


class TextArguments(SB3Arguments, total=False):
    """What every text algorithm takes."""

    gae_lambda_critic: Annotated[
        Share | None,
        None,
        "Lambda of the critic's targets alone, in [0, 1] (decoupled GAE, Yuan et al. 2025, VC-PPO, who take 1); None: `gae_lambda`.",
    ]
    gae_alpha: Annotated[
        Above0 | None,
        None,
        "Alpha of length-adaptive GAE (Yue et al. 2025, VAPO), > 0: lambda of the advantages of a text of l tokens is 1 - 1 / (alpha l), "
        "at least 0, and `gae_lambda` that of the critic's targets alone; None: `gae_lambda` is that of both.",
    ]
    n_episodes: Annotated[Count, 64, "Texts per rollout, at least 1; in place of SB3's `n_steps`."]
    beta: Annotated[
        Beta,
        0.05,
        "Coefficient of KL to the reference, in reward units per nat, at least 0: a number, keyword arguments of "
        "`AdaptiveKLController`, a schedule (a function of the share of the training that remains), or a controller.",
    ]
    reference: Annotated[
        LMSource | None,
        None,
        "Folder of the reference, or what else `agents.models.loading.load_lm` takes that has weights; None: a frozen copy of the "
        "policy's first weights, or, if only adapters train (`lora`), the base model under them, which needs no copy.",
    ]
    reference_mixup: Annotated[
        Share, 0.0, "In [0, 1]: after each update the reference becomes (1 - this) * reference + this * policy; 0: it never changes."
    ]
    shard: Annotated[
        bool,
        False,
        "Each of several processes holds a part of weights, gradients and optimizer only (FSDP2), instead of all (DDP).  Not saved: what "
        "loads a checkpoint says it anew.",
    ]


class ActorCriticArguments(TextArguments, total=False):
    """What those text algorithms take that minimise one loss of actor and critic."""

    ent_coef: Annotated[AtLeast0, 0.0, "Weight of the entropy, which the loss rewards."]
    vf_coef: Annotated[AtLeast0, 0.1, "Weight of the value loss; less than SB3's 0.5, for the value head shares the trunk."]
    max_grad_norm: Annotated[
        Above0, 1.0, "Largest norm of the gradient, > 0: the usual value for transformers, where SB3 has 0.5 for small networks."
    ]
    critic_warmup: Annotated[
        Natural,
        0,
        "Rollouts at the start in which only the critic learns, at least 0: value pretraining (Yuan et al. 2025, VC-PPO), on the returns "
        "of the first policy if `gae_lambda_critic` is 1.",
    ]


class ClippedArguments(ActorCriticArguments, total=False):
    """What those text algorithms take that clip the ratio of new to old probabilities."""

    batch_size: Annotated[Count, 16, "Texts per minibatch, at least 1; SB3's 64 counts steps."]
    n_epochs: Annotated[Count, 4, "Passes over a rollout, at least 1; 4 as Ziegler et al. (2019), where SB3 has 10."]
    clip_range: Annotated[Above0 | Schedule, 0.2, "How far the ratio of new to old probability may move from 1, > 0; or a schedule."]
    clip_range_vf: Annotated[
        Above0 | Schedule | None,
        None,
        "How far values may move in an update, in reward units, > 0; or a schedule; None: as far as they like.",
    ]
    target_kl: Annotated[
        Above0 | None,
        None,
        "Stop the epochs of a rollout early at 1.5 times this `approx_kl`, in nats per token, > 0; not the KL to the reference; "
        "None: never.",
    ]


class WhiteningArguments(TypedDict, total=False):
    """What those text algorithms take that whiten advantages only if asked to."""

    whiten_advantages: Annotated[bool, True, "Give the advantages of a rollout mean 0 and variance 1; SB3's A2C does not, its TRPO does."]
