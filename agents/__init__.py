"""The writer of a text: transformer policies and the algorithms that train them.

Names are imported at first use: `import agents` stays light.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import LanguageModel
    from .best_of import best_of_n
    from .buffer import SequenceRolloutBuffer
    from .critic_free import GRPO, RLOO, Reinforce, ReinforcePlusPlus
    from .dpo import DPO
    from .expert_iteration import ExpertIteration
    from .generation import generate, stream
    from .generator import Generator, LocalDecoder
    from .kl import AdaptiveKLController, KLController, ScheduledKLController
    from .maskable import MaskableSequenceRolloutBuffer, MaskableTransformerPolicy
    from .nlpo import NLPO
    from .on_policy import TextA2C, TextMaskablePPO, TextTRPO
    from .policy import TransformerPolicy
    from .policy_gradient import TextPolicyGradient
    from .ppo import TextPPO
    from .sft import SFT
    from .vllm_generator import VLLMGenerator

_LAZY = {
    "DPO": "dpo",
    "best_of_n": "best_of",
    "GRPO": "critic_free",
    "RLOO": "critic_free",
    "Reinforce": "critic_free",
    "ReinforcePlusPlus": "critic_free",
    "TextPolicyGradient": "policy_gradient",
    "AdaptiveKLController": "kl",
    "ExpertIteration": "expert_iteration",
    "Generator": "generator",
    "KLController": "kl",
    "LanguageModel": "backbones",
    "LocalDecoder": "generator",
    "NLPO": "nlpo",
    "MaskableSequenceRolloutBuffer": "maskable",
    "MaskableTransformerPolicy": "maskable",
    "SFT": "sft",
    "ScheduledKLController": "kl",
    "SequenceRolloutBuffer": "buffer",
    "TextA2C": "on_policy",
    "TextMaskablePPO": "on_policy",
    "TextPPO": "ppo",
    "TextTRPO": "on_policy",
    "TransformerPolicy": "policy",
    "VLLMGenerator": "vllm_generator",
    "generate": "generation",
    "stream": "generation",
}

__all__ = [
    "DPO",
    "GRPO",
    "NLPO",
    "RLOO",
    "SFT",
    "AdaptiveKLController",
    "ExpertIteration",
    "Generator",
    "KLController",
    "LanguageModel",
    "LocalDecoder",
    "MaskableSequenceRolloutBuffer",
    "MaskableTransformerPolicy",
    "Reinforce",
    "ReinforcePlusPlus",
    "ScheduledKLController",
    "SequenceRolloutBuffer",
    "TextA2C",
    "TextMaskablePPO",
    "TextPPO",
    "TextPolicyGradient",
    "TextTRPO",
    "TransformerPolicy",
    "VLLMGenerator",
    "best_of_n",
    "generate",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Iterable[str]:
    return sorted({*globals(), *_LAZY})
