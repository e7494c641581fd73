"""sb3-contrib's TRPO over whole texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Interval
from sb3_contrib import TRPO
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..policies.critic import SHARED
from ..policies.transformer_policy import TransformerPolicy
from ..utils.limits import Above0, AtLeast0, Count
from .common.text_algorithm import TextAlgorithm
from .common.text_arguments import TextArguments, WhiteningArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class TRPOArguments(TextArguments, WhiteningArguments, total=False):
    """What `TextTRPO` takes."""

    batch_size: Annotated[Count, 16, "Texts per minibatch of the critic, at least 1; sb3-contrib's 128 counts steps."]
    cg_max_steps: Annotated[
        Count, 15, "Steps of the conjugate gradient, each two passes over a rollout; 5 do nearly as well on language models."
    ]
    cg_damping: Annotated[AtLeast0, 0.1, "Added to the diagonal of the Hessian of KL, at least 0."]
    line_search_shrinking_factor: Annotated[
        Annotated[float, Interval(gt=0, lt=1)], 0.8, "Each try of the line search is this times the last, in (0, 1)."
    ]
    line_search_max_iter: Annotated[Count, 10, "Tries of the line search, at least 1."]
    n_critic_updates: Annotated[Count, 10, "Passes of the critic over a rollout."]
    target_kl: Annotated[Above0, 0.01, "Largest mean KL between the policies before and after an update, in nats per token, > 0."]


class TextTRPO(TextAlgorithm, TRPO):
    """sb3-contrib's TRPO on texts; `train()` is the library's own.

    It needs second derivatives, so attention runs in plain matrix products, and the logits of a whole rollout are in memory.  A
    shared trunk belongs to the policy: the critic's steps move its head alone; `policy_kwargs={"critic": "separate"}` gives it
    more to learn with.  `learning_rate` is the critic's.
    """

    __module__ = "agents"
    _arguments = TRPOArguments
    _defaults: ClassVar[TRPOArguments] = {"learning_rate": 1e-3}  # sb3-contrib's: the critic alone follows it
    _leaves_gradients = False
    _why_alone = "its conjugate gradients take second derivatives, which torch's engines do not add up"

    def __init__(self, policy: str | type[TransformerPolicy], env: GymEnv | str, **arguments: Unpack[TRPOArguments]) -> None:
        settings = self._complete(arguments)
        own = settings["policy_kwargs"] or {}
        if own.get("critic", SHARED) == SHARED:  # the library computes the trunk's gradient to throw it away
            settings["policy_kwargs"] = {"detach_critic": True, **own}
        whiten = settings.pop("whiten_advantages")
        self._construct(policy, env, settings, whiten_advantages=whiten)

    @property
    def texts_per_update(self) -> int:
        """All texts of a rollout: minibatches are the critic's alone."""
        return self.n_episodes

    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.critic_by_name = False
        if self.policy.value_head is None:
            raise ValueError("critic='none', and TRPO trains a critic in every update: leave it 'shared', or use TextPPO or RLOO")

    def train(self) -> None:
        """Update as the library does."""
        with sdpa_kernel(SDPBackend.MATH):  # the only kernel that can be differentiated twice
            super().train()

    def _compute_actor_grad(
        self, kl_div: torch.Tensor, policy_objective: torch.Tensor
    ) -> tuple[list[nn.Parameter], torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
        # The library asks for the gradient of one parameter at a time, and every product with the Hessian then walks as many
        # graphs; asked for all at once, the same numbers take a seventh of the time on a model with 20 parameters.
        # Nor does the critic's part go by the names, which are GPT-NeoX's attention's as well.
        actor = self.policy.actor_parameters()
        kl_gradients = torch.autograd.grad(kl_div, actor, create_graph=True, allow_unused=True)
        used = [(parameter, gradient) for parameter, gradient in zip(actor, kl_gradients, strict=True) if gradient is not None]
        actor = [parameter for parameter, _ in used]
        objective_gradients = torch.autograd.grad(policy_objective, actor, retain_graph=True)
        of_objective = torch.cat([gradient.reshape(-1) for gradient in objective_gradients])  # (P,): all P weights of the actor
        of_kl = torch.cat([gradient.reshape(-1) for _, gradient in used])  # (P,)
        return actor, of_objective, of_kl, [parameter.shape for parameter in actor]
