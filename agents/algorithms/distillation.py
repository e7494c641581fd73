"""On-policy distillation: a student learns from a teacher's distributions on the texts that it writes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import GymEnv

from ..models.loading import LMSource
from ..policies.transformer_policy import TransformerPolicy
from .common.policy_gradient_arguments import PolicyGradientArguments
from .policy_gradient import TextPolicyGradient

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Distillation(TextPolicyGradient):
    """On-policy distillation by reverse KL (GKD, Agarwal et al. 2024; Lu and Thinking Machines Lab 2025).

    The loss is the mean over the tokens that the student wrote of KL(student || teacher), summed over the vocabulary; the teacher takes the
    place of the reference, and the environment's score is measured, not learned from.  As with the authors, no gradient goes through
    what was written: a token answers for its own KL, not for that of the tokens after it (a discount of 0).  Where the student can be
    equal to the teacher, that is no loss: both are least there.

    `kl_estimator="k2"` takes the written token alone instead of the vocabulary.  Its gradient, in the first step on a rollout, is the
    policy gradient with the advantage -log(student / teacher) of each token, which Thinking Machines Lab use.

    Args:
        teacher: Folder, hub id or `.gguf` file, or what else `agents.models.loading.load_lm` takes that has weights.  It may be of any size
            and architecture, and reads the student's tokens: its tokenizer must be the task's.  `reference` is another name of it.

    Raises:
        ValueError: There is no teacher, or its tokens are not the task's.
    """

    __module__ = "agents"
    reference_name = "teacher"
    _defaults: ClassVar[PolicyGradientArguments] = {
        "estimator": "none",
        "kl_in": "loss",
        "kl_estimator": "full",
        "beta": 1.0,  # of the only term in the loss
    }

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        teacher: LMSource | None = None,
        **arguments: Unpack[PolicyGradientArguments],
    ) -> None:
        if teacher is not None:
            if arguments.get("reference") is not None:
                raise ValueError(f"teacher={teacher!r}, reference={arguments['reference']!r}: two names of one thing, leave one out")
            arguments["reference"] = teacher
        super().__init__(policy, env, **arguments)

    def _setup_model(self) -> None:
        if self.reference_source is None:
            raise ValueError("distillation needs a teacher: a folder, hub id or .gguf file of a model with the task's tokenizer")
        super()._setup_model()
        self.health.named |= {"equal scores", "unfinished"}  # it learns nothing from scores, and how texts end is the teacher's doing
