"""How policies are trained, as plain data; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.limits import Above0, AtLeast0, BelowHalf, Count, Seed, check_fields

DEFAULT_TASK = "review"
OF_PROMPTS = {  # a setting beside `prompts`, and what the plain data of a task calls it
    "test_prompts": "test_path", "references": "references", "chat": "chat", "add_bos": "add_bos", "max_prompt_tokens": "max_prompt_tokens",
    "over_long": "over_long", "max_new_tokens": "max_new_tokens", "stop_strings": "stop_strings",
}  # fmt: skip
FROM_PAIRS = ("dpo", "ipo", "robust-dpo", "simpo")
OFFLINE = ("sft", *FROM_PAIRS, "kto", "expert-iteration")
STEPS = {"sft": 400, **dict.fromkeys((*FROM_PAIRS, "kto"), 300), "expert-iteration": 12}  # iterations of the last
RATES = {"sft": 3e-4, **dict.fromkeys((*FROM_PAIRS, "kto"), 2e-4), "expert-iteration": 3e-4}
KEEP = {  # measures that the best policy can be kept by, and whether more of it is better
    "score": True, "return": True, "held_out": True, "gold": True, "kl_per_sequence": False,
}  # fmt: skip
OPTIONS: Mapping[str, Mapping[str, float | None]] = {  # what only some of them take, and what is not given is not used
    "dpo": {"beta": 0.1, "label_smoothing": None, "gamma": None},
    "ipo": {"beta": 0.1, "label_smoothing": None},
    "robust-dpo": {"beta": 0.1, "label_smoothing": 0.1, "gamma": None},
    "simpo": {"beta": 2.0, "label_smoothing": None, "gamma": 1.0},
    "kto": {"beta": 0.1, "desirable_weight": None, "undesirable_weight": None},
}


@dataclass(frozen=True)
class PolicyTraining:
    """How a policy is trained; the values suit models of about a million parameters.

    Attributes:
        beta: Fixed coefficient of the KL penalty, 0 for none; by default the algorithm's own, or an adaptive one that holds `kl_target`.
        kl_target: KL per text that the adaptive coefficient steers to, in nats.
        total_tokens: Tokens that the policy writes.
        n_episodes: Texts per rollout.
        batch_size: Texts per minibatch.
        learning_rate: Falls linearly to 0.
        seed: Of everything that is drawn.
    """

    beta: AtLeast0 | None = None
    kl_target: Above0 = 8.0
    total_tokens: Count = 110_000
    n_episodes: Count = 128
    batch_size: Count = 32
    learning_rate: Above0 = 5e-4
    seed: Seed = 0

    def check(self) -> None:
        """Insist on values in their ranges, none of which would be ignored."""
        check_fields(self)
        check_penalty(self.beta, self.kl_target)


def check_penalty(beta: float | None, kl_target: float | None) -> None:
    """Refuse a target for a coefficient that is fixed; its default counts as not given, for the files of runs hold it."""
    if beta is not None and kl_target not in (None, PolicyTraining.kl_target):
        raise ValueError(f"--kl-target {kl_target:g} steers an adaptive beta, and --beta {beta:g} is fixed: leave one of them out")


@dataclass(frozen=True)
class OfflineTraining:
    """How a policy is trained that does not play the environment.

    Attributes:
        steps: Optimizer steps, or iterations of `expert-iteration`.
        learning_rate: Peak of the schedule.
        beta: Coefficient of KL of those that learn from preferences or ratings.
        seed: Of everything that is drawn.
        label_smoothing: See `DPO`, as the next.
        gamma: Margin of every pair.
        desirable_weight: See `KTO`, as the next.
        undesirable_weight: Of bad texts.

    Raises:
        ValueError: A number is out of range.
    """

    steps: Count
    learning_rate: Above0
    beta: Above0 = 0.1
    seed: Seed = 0
    label_smoothing: BelowHalf | None = None
    gamma: AtLeast0 | None = None
    desirable_weight: Above0 | None = None
    undesirable_weight: Above0 | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings but for options that are not given."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __post_init__(self) -> None:
        check_fields(self)
