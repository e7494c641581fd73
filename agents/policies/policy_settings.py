"""The arguments of `TransformerPolicy` beside its spaces and its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..models.lora import check_dropout
from ..models.mixed_precision import Precision, precision_of
from ..models.sampler import Sampler
from ..utils.limits import Above0, AtLeast0, Natural, Probability, Share, check_fields
from .critic import SHARED, Critic


@dataclass(frozen=True)
class PolicySettings:
    """How a `TransformerPolicy` draws tokens, values texts, and computes its updates.

    Attributes:
        temperature: See `Sampler`.
        top_k: See `Sampler`.
        top_p: See `Sampler`.
        min_p: See `Sampler`.
        min_new_tokens: See `Sampler`.
        banned_tokens: See `Sampler`.
        no_repeat_ngram: See `Sampler`.
        eos_token_id: The token that ends a text, or several.  The environment knows them: given, they must be its own, which confirms that
            others that the model's files name are ordinary tokens here.  An environment of other makers does not, and without them
            the model's files decide.
        critic: `"shared"`: a head on the policy's trunk; `"separate"`: a network of its own, which starts as a copy of the
            model; the folder of a reward model (`AutoModelForSequenceClassification`, one output): a network of its own that
            starts as that; `"none"`: all values are 0.
        detach_critic: Keep the critic's gradient out of the shared trunk.
        critic_learning_rate: Of the critic's own parameters; None: the policy's.  The Text* classes follow it, stock
            algorithms set one rate on everything.
        lora: Arguments of `peft.LoraConfig`: train adapters only, beside a base model that stays as it is, and is the reference unless
            another is named.  Settings that train or change more, adapters of tied weights and dropout are refused.  Needs the extra
            `textrl-env[lora]`.
        precision: `"float32"`, or mixed precision with `"bfloat16"`: the trunk computes in it, weights and heads stay float32.
        micro_batch_size: Texts that go through the model at once in an update; 0: the whole minibatch.  `TextPolicyGradient` and its
            relatives add up the micro-batches' gradients; where the loss is SB3's, what a backward pass needs is computed again there.
        gradient_checkpointing: Compute the layers' activations again in the backward pass.
        compile: Have `torch.compile` translate the passes of updates; the first ones take minutes.
        cuda_graphs: Record and replay decoding steps on a GPU; decoder-only models with attention, and your own with a cache.

    Raises:
        ValueError: A setting is out of range.
    """

    __module__ = "agents"

    temperature: Above0 = 1.0
    top_k: Natural = 0
    top_p: Probability = 1.0
    min_p: Share = 0.0
    min_new_tokens: Natural = 0
    banned_tokens: Sequence[int] = ()
    no_repeat_ngram: Natural = 0
    eos_token_id: int | Sequence[int] | None = None
    critic: Critic = SHARED
    detach_critic: bool = False
    critic_learning_rate: AtLeast0 | None = None
    lora: Mapping[str, Any] | None = None
    precision: Precision = "float32"
    micro_batch_size: Natural = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        precision_of(self.precision)
        check_fields(self)
        check_dropout(self.lora)
        if self.detach_critic and self.critic != SHARED:
            raise ValueError(
                f"detach_critic=True keeps the critic's gradient out of the actor's trunk, which critic={self.critic!r} does not read, and "
                "would freeze the critic's own: leave it out"
            )

    def sampler(self, ends: Sequence[int], unused: Sequence[int] = ()) -> Sampler:
        """Return the sampling rules.

        Args:
            ends: Tokens that end a text.
            unused: Ids without a token, which are never drawn.
        """
        rules = {rule.name: getattr(self, rule.name) for rule in fields(Sampler)}
        banned = (*self.banned_tokens, *(token for token in unused if token not in self.banned_tokens))
        return Sampler(**{**rules, "banned_tokens": banned, "eos_token_id": tuple(ends) if len(ends) > 1 else next(iter(ends), None)})


def with_own_settings(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Take moments out of a saved state, and the rest from the optimizer as it was built: a rate that was changed since would be lost."""
    own = optimizer.state_dict()["param_groups"]
    same = [sum(len(group["params"]) for group in groups) for groups in (own, saved["param_groups"])]
    return {**saved, "param_groups": own} if same[0] == same[1] else saved


def check_names(lm: torch.nn.Module) -> None:
    """Refuse a model for sb3-contrib's TRPO, which tells the critic's parameters by their names.

    Raises:
        ValueError: Names of the model's parameters hold "value".
    """
    named = [name for name, _ in lm.named_parameters() if "value" in name]
    if named:
        raise ValueError(
            f"sb3-contrib's TRPO takes all parameters with 'value' in their names for the critic's, and the model has {len(named)} "
            f"such, {named[0]} among them: use TextTRPO; outside of TRPO, set the policy's critic_by_name to False"
        )
