"""The learning rate that suits a model's size."""

from __future__ import annotations

MILLION = 1_000_000  # parameters up to which rates hold as they are; base policies of tasks have 20,000 to 951,000
_ADAPTERS = 10


def suited_rate(rate: float, parameters: int, adapters: bool = False) -> float:
    """Return the learning rate for a model, from the one that suits a million parameters.

    Beyond a million it falls with the cube root of the number of parameters, to two digits, and adapters learn at ten times the rate of
    full weights, whatever their rank: Schulman et al. 2025 ("LoRA Without Regret") find the factor 10, and for Llama models rates that fall
    with the width to the power of 0.78, about the cube root of the size.  From 5e-4 at a million this makes 9.8e-5 at 135 million and
    2.6e-5 at 7 billion.  Long trainings by reward with full weights have used less, such as 1.4e-5 at 124 million (TRL's PPO on GPT-2).

    Args:
        rate: What suits a million.
        parameters: Of the model, those that are frozen included.
        adapters: Whether only adapters are trained.
    """
    scaled = rate * (_ADAPTERS if adapters else 1) * min(1.0, (MILLION / parameters) ** (1 / 3))
    return rate if scaled == rate else float(f"{scaled:.2g}")
