"""NLPO: PPO restricted to the tokens that an earlier copy of the policy found likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from ..policies.learned_mask import LearnedMask
from ..policies.transformer_policy import TransformerPolicy
from .common.text_arguments import ClippedArguments
from .ppo import TextPPO

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NLPO(TextPPO):
    """Natural Language Policy Optimisation (Ramamurthy et al. 2023): PPO with a learned top-p mask.

    A copy of the policy, refreshed every few rollouts, masks all tokens but the likeliest ones that have probability `mask_top_p`
    together: while acting, in the update and for the reference alike.  Since the copy follows the policy, the mask follows what was
    learned.  This changes the objective: a masked token cannot be learned before the next refresh, whatever its reward.

    Args:
        mask_top_p: Probability under the copy of the tokens that stay, in (0, 1].  Default: 0.9.
        mask_refresh: Rollouts between two refreshes, at least 1.  Default: 10.

    Raises:
        ValueError: `mask_top_p` or `mask_refresh` is out of range.
    """

    __module__ = "agents"
    _on_ranks = False
    _why_alone = "its mask is a copy of the policy that is refreshed outside of the update"

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        mask_top_p: float = 0.9,
        mask_refresh: int = 10,
        **arguments: Unpack[ClippedArguments],
    ) -> None:
        if not 0 < mask_top_p <= 1 or mask_refresh < 1:
            raise ValueError(f"mask_top_p={mask_top_p}, mask_refresh={mask_refresh}: a mass in (0, 1], and at least 1 rollout")
        self.mask_top_p, self.mask_refresh = mask_top_p, mask_refresh
        super().__init__(policy, env, **arguments)

    @property
    def mask_lm(self) -> nn.Module:
        """The copy that masks; saved with the policy."""
        assert self.policy.mask is not None
        return self.policy.mask.lm

    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.mask = LearnedMask(self.policy.lm, self.policy.vocab_size, self.mask_top_p, self.policy.sampler.temperature)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int, use_masking: bool = True
    ) -> bool:
        """Refresh the mask if it is time, then write."""
        if self.num_rollouts and self.num_rollouts % self.mask_refresh == 0:
            assert self.policy.mask is not None
            self.policy.mask.refresh(self.policy.lm)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, use_masking)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "mask_lm"], variables
