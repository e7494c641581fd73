"""Arguments of the clipped policy gradient, and which of them go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt

from ...utils.limits import Above0, AtLeast0, Count, Probability
from .advantage_estimators import ESTIMATORS, GROUPED
from .policy_loss import OF_COVARIANCE, OF_TEXTS
from .supervised import SFTText
from .text_arguments import ClippedArguments, WhiteningArguments

Aggregation = Literal["token", "sequence", "budget"]
Surrogate = Literal["ppo", "gspo", "gmpo", "cispo", "clip-cov", "kl-cov"]  # keys of SURROGATES
KLIn = Literal["reward", "loss"]
KLEstimator = Literal["k1", "k2", "k3", "full"]
UNBIASED = ("gae", "reinforce", "rloo")  # advantages in the units of the reward, whose expected update is the objective's gradient
_WHY_NOT = {
    ("reward", "k2"): "k2 in the reward does not hold the policy to the reference: its gradient points away from KL's",
    ("reward", "k3"): "k3 in the reward does not hold the policy to the reference: its gradient points away from KL's",
    ("loss", "k1"): "the gradient of k1 in the loss is 0 on average: it does nothing",
}


def check_kl(kl_in: KLIn, kl_estimator: KLEstimator, estimator: str, whiten: bool) -> None:
    """Insist on a KL term that holds the policy to the reference.

    Raises:
        ValueError: It would not, or not with these advantages.
    """
    if kl_in not in ("reward", "loss") or kl_estimator not in ("k1", "k2", "k3", "full"):
        raise ValueError(
            f"kl_in={kl_in!r}, kl_estimator={kl_estimator!r}: KL goes into the 'reward' or the 'loss', as 'k1', 'k2', 'k3' or 'full'"
        )
    if (why := _WHY_NOT.get((kl_in, kl_estimator))) is not None:
        raise ValueError(f"kl_in={kl_in!r} with kl_estimator={kl_estimator!r}: {why}; use k1 in the reward, or k2 or k3 in the loss")
    if (kl_in, kl_estimator) == ("reward", "full") and (whiten or estimator not in UNBIASED):
        raise ValueError(
            f"kl_in='reward' with kl_estimator='full' adds a loss in units of the reward, and estimator={estimator!r} with "
            f"whiten_advantages={whiten} rescales the advantages beside it: take one of {', '.join(UNBIASED)} without whitening"
        )


class PolicyGradientArguments(ClippedArguments, WhiteningArguments, total=False):
    """What `TextPolicyGradient` takes, and every algorithm of its family."""

    estimator: Annotated[str, "rloo", "Estimator of the advantage, a key of `agents.algorithms.common.advantage_estimators.ESTIMATORS`."]
    group_size: Annotated[Count, 4, "Texts for each prompt, if `env` is an id; otherwise the task's own `group_size` counts."]
    clip_range_high: Annotated[
        Above0 | None, None, "How far a ratio may rise, > 0 (DAPO's clip-higher); None: as far as it may fall, `clip_range`."
    ]
    dual_clip: Annotated[
        Annotated[float, Gt(1)] | None, None, "Largest ratio that counts where the advantage is negative, > 1 (Ye et al. 2020); None: any."
    ]
    surrogate: Annotated[
        Surrogate,
        "ppo",
        'What stands for the objective in the loss.  "ppo": clipped ratios of tokens; "gspo": one clipped ratio for each text (Zheng et '
        'al. 2025, arXiv 2507.18071); "gmpo": the geometric mean of a text\'s clipped ratios (Zhao et al. 2025, arXiv 2507.20673); '
        '"cispo": log-probabilities, weighted by the clipped ratio, so that every token learns (MiniMax 2025, arXiv 2506.13585; '
        '`clip_range=1` is its missing lower bound); "clip-cov": "ppo" without some tokens of high covariance; "kl-cov": no clipping, '
        "but a price on how far the tokens of highest covariance move (Cui et al. 2025, arXiv 2505.22617).",
    ]
    cov_share: Annotated[
        Probability, 2e-4, 'Share of a rollout\'s tokens that "clip-cov" and "kl-cov" pick, in (0, 1], at least one; see `pick_tokens`.'
    ]
    cov_low: Annotated[float, 1.0, 'Covariance above which "clip-cov" draws tokens.']
    cov_high: Annotated[float, 5.0, 'Covariance below which "clip-cov" draws tokens.']
    kl_cov_coef: Annotated[Above0, 1.0, 'What "kl-cov" charges picked tokens for each nat of |log ratio|, in units of the advantage, > 0.']
    off_policy_mask: Annotated[
        Above0 | None,
        None,
        "Texts leave the policy's loss where the advantage is negative and the mean over their tokens of log(old / new probability) "
        "exceeds this, in nats a token, > 0 (DeepSeek-V3.2, arXiv 2512.02556); only once the policy has left the one that wrote them.",
    ]
    overlong_filtering: Annotated[
        bool,
        False,
        "Leave texts out of the loss that were cut at the longest length without an end (DAPO, Yu et al. 2025, arXiv 2503.14476, section "
        "3.4).  Their returns still count for the baselines of their groups.",
    ]
    entropy_target: Annotated[
        Above0 | None,
        None,
        "Steer `ent_coef` to this entropy, in nats a token, > 0 (Skywork-OR1, arXiv 2505.22312, section 3): it rises by `ent_coef_step` "
        "after a rollout whose mean of -log pi is below the target, and falls after one above, in whose update it counts as 0.  None: "
        "it is fixed.",
    ]
    ent_coef_step: Annotated[Above0, 0.005, "How far `entropy_target` moves `ent_coef` after each rollout, > 0."]
    ent_coef_max: Annotated[Above0, 1.0, "How far up `entropy_target` moves `ent_coef`, > 0; down it stops at 0."]
    loss_aggregation: Annotated[
        Aggregation,
        "token",
        '"token": mean over the minibatch\'s tokens; "sequence": mean over each text\'s tokens, then over texts; "budget": sum over a '
        "text's tokens divided by the longest text allowed, then mean over texts (Dr. GRPO).",
    ]
    skip_equal_groups: Annotated[
        bool,
        False,
        "Leave out groups whose returns are all equal, which teach nothing (DAPO's dynamic sampling).  Returns are those that advantages "
        "are made of, so that KL in the reward makes texts differ that scored alike.  Where all groups are equal, the rollout has no "
        "update, which a warning and `policy/update_skipped` say.  For estimators that compare the texts of a group.",
    ]
    max_sampling_rounds: Annotated[
        Count,
        1,
        "With `skip_equal_groups`: write as many texts again as are left out, until `n_episodes` others are there or this many times "
        "`n_episodes` were written; at least 1.",
    ]
    kl_in: Annotated[KLIn, "reward", 'Whether KL to the reference is part of the "reward" or of the "loss".']
    kl_estimator: Annotated[
        KLEstimator,
        "k1",
        'In the reward "k1"; in the loss "k2" or "k3", the latter times the ratio.  The gradients of these two are those of each '
        "token's KL on the policy's own samples (Tang and Munos 2025).  "
        '"full" is the sum over the vocabulary instead of an estimate, at the '
        "price of another pass of policy and reference, see the class.",
    ]
    ptx_coef: Annotated[
        AtLeast0, 0.0, "Weight of next-token learning on `ptx_texts` beside the policy's loss (PPO-ptx, Ouyang et al. 2022); 0: none."
    ]
    ptx_texts: Annotated[Sequence[SFTText], (), "Texts as `SFT` takes them, `batch_size` of which are drawn for each step."]


_OF_ADVANTAGES = ("whiten_advantages", "surrogate", "clip_range_high", "dual_clip")
_CLIPPING = ("ppo", "gspo", "gmpo", "cispo", "clip-cov")
_TAKES = {  # which surrogates use an argument
    "dual_clip": ("ppo",),
    "clip_range": _CLIPPING,
    "clip_range_high": _CLIPPING,
    "cov_share": OF_COVARIANCE,
    "cov_low": ("clip-cov",),
    "cov_high": ("clip-cov",),
    "kl_cov_coef": ("kl-cov",),
}


def check_surrogate(settings: PolicyGradientArguments, given: Mapping[str, Any]) -> None:
    """Insist on arguments of the loss that go together; the arguments are those of `check_arguments`.

    Raises:
        ValueError: They do not, or one would not be used.
    """
    surrogate, estimator, low, high = settings["surrogate"], settings["estimator"], settings["cov_low"], settings["cov_high"]
    for name, takers in _TAKES.items():
        if name in given and surrogate not in takers and not callable(given[name]):  # what is loaded has schedules
            which = " or ".join(takers)
            raise ValueError(f"{name}={given[name]!r}: surrogate={surrogate!r} does not use it; leave it out, or take {which}")
    if surrogate in OF_TEXTS and estimator not in GROUPED:
        raise ValueError(
            f"surrogate={surrogate!r} has one ratio for all tokens of a text, and estimator={estimator!r} an advantage for each; take "
            f"one of {', '.join(GROUPED)}"
        )
    if not low < high:
        raise ValueError(f"cov_low={low}, cov_high={high}: no covariance lies between them; the first must be less than the second")
    if settings["entropy_target"] is None:
        for name in ("ent_coef_step", "ent_coef_max"):
            if name in given:
                raise ValueError(f"{name}={given[name]!r} without entropy_target: ent_coef does not move; pass a target, or leave it out")
    elif settings["ent_coef"] > settings["ent_coef_max"]:
        raise ValueError(f"ent_coef={settings['ent_coef']} is more than ent_coef_max={settings['ent_coef_max']}: begin at or below it")


_OF_GAE = ("gamma", "gae_lambda", "gae_lambda_critic", "gae_alpha", "vf_coef", "clip_range_vf")


def check_parts(settings: PolicyGradientArguments) -> None:
    """Insist on rewards that reach GDPO term by term.

    Raises:
        ValueError: Something changes their sum.
    """
    unseen = [name for name in ("norm_reward", "clip_reward", "whiten_rewards") if (settings["rollout_buffer_kwargs"] or {}).get(name)]
    unseen += ["kl_in='reward'"] * (settings["kl_in"] == "reward" and settings["beta"] != 0)
    if settings["estimator"] == "gdpo" and unseen:
        raise ValueError(
            f"estimator='gdpo' with {', '.join(unseen)}: it puts each term of the reward on a scale of its own, and would not see this; "
            "leave it out, and take kl_in='loss' with kl_estimator='k2' or 'k3', or beta=0"
        )


def check_arguments(settings: PolicyGradientArguments, given: Mapping[str, Any]) -> None:
    """Insist on arguments that go together.

    Args:
        settings: All arguments.
        given: Those that the caller passed, but for defaults.

    Raises:
        ValueError: They do not, or one would not be used.
    """
    if (estimator := settings["estimator"]) not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r}: must be one of {', '.join(ESTIMATORS)}")
    if settings["n_episodes"] == 1 and (settings["whiten_advantages"] or estimator == "reinforce++"):
        raise ValueError("n_episodes=1: whitened advantages compare the texts of a rollout, and one says nothing; write at least 2")
    if settings["skip_equal_groups"] and estimator not in GROUPED:
        raise ValueError(f"skip_equal_groups=True with estimator={estimator!r}, which has no groups: take one of {', '.join(GROUPED)}")
    if (rounds := settings["max_sampling_rounds"]) > 1 and not settings["skip_equal_groups"]:
        raise ValueError(f"max_sampling_rounds={rounds}: more than 1 only with skip_equal_groups=True")
    if ((ptx_coef := settings["ptx_coef"]) > 0) != bool(settings["ptx_texts"]):
        raise ValueError(
            f"ptx_coef={ptx_coef} with {len(settings['ptx_texts'])} ptx_texts: pass a weight above 0 and texts for it, or neither"
        )
    if estimator != "gae" and (unused := [name for name in _OF_GAE if name in given and given[name] != 0]):
        raise ValueError(f"{', '.join(unused)}: estimator={estimator!r} has no critic, no discount: leave it out, or take estimator='gae'")
    if estimator == "none" and (unused := [name for name in _OF_ADVANTAGES if name in given]):
        raise ValueError(f"{', '.join(unused)}: estimator='none' has no advantages: leave it out, or take another estimator")
    if estimator == "none" and settings["kl_in"] == "reward":
        raise ValueError("estimator='none' leaves rewards out, and KL with them: nothing would be learned; take kl_in='loss'")
    if estimator not in GROUPED and "group_size" in given:
        raise ValueError(f"group_size={settings['group_size']}: {estimator!r} compares no groups; take one of {', '.join(GROUPED)}")
    check_kl(settings["kl_in"], settings["kl_estimator"], estimator, settings["whiten_advantages"])
    check_parts(settings)
    check_surrogate(settings, given)
