"""A reward model fitted under differential privacy: its scores depend little on any single comparison, or on any single annotator.

The model is the linear n-gram scorer (`scorers.NgramScorer`): from few comparisons, a transformer learns next to nothing under the same
privacy.  Each optimiser step draws every unit, a comparison or an annotator, with the same probability (Poisson), clips its gradient to
norm C, adds up, and adds normal noise of standard deviation `noise * C` (Abadi et al. 2016, "Deep Learning with Differential Privacy"),
by opacus.  With all units in every step the T steps together are one Gaussian mechanism of noise / sqrt(T), whose epsilon is exact (Balle
and Wang 2018); with fewer it is what opacus's PRV accountant says (Gopi et al. 2021), an upper bound with an error below 0.01.

Neighbouring data sets differ by replacing one unit by nothing (zero-out adjacency; Ponomareva et al. 2023, "How to DP-fy ML").  The number
of units is public: the mean gradient, delta and the report tell it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import norm
from torch import Tensor, nn

from textrl_env.tokenizer import FileTokenizer
from textrl_env.utils.optional_imports import optional_import

from ..models.preference_model import PreferenceRewardModel
from ..models.scorers import NgramScorer, PreferenceNetwork, pad
from ..preferences.preference import Preference
from ..utils.devices import get_device

Unit = Literal["pair", "annotator"]


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """What was promised, and what it cost.

    Attributes:
        epsilon: Privacy loss; at most what was asked for.
        delta: Probability with which the loss may be larger; by default 1 / units^1.5.
        unit: What may be replaced by nothing: one comparison, or all of one annotator's.
        units: How many there were, which is public.
        pairs: Comparisons that were used.
        left_out: Comparisons beyond `most_per_annotator`, which were not.
        noise: Standard deviation of the noise, in units of the clipping norm.
        sampling_rate: Probability of a unit to be in a step.
        steps: Optimiser steps.
    """

    epsilon: float
    delta: float
    unit: Unit
    units: int
    pairs: int
    left_out: int
    noise: float
    sampling_rate: float
    steps: int

    def __str__(self) -> str:
        protected = {"pair": "comparisons", "annotator": "annotators"}[self.unit]
        return f"epsilon {self.epsilon:.2f} at delta {self.delta:.1e}, for each of {self.units} {protected}"


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Return epsilon of `steps` Gaussian mechanisms of sensitivity 1 and standard deviation `noise`, exactly.

    Balle and Wang 2018, theorem 8: with mu = sqrt(steps) / noise it solves
    delta = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu).
    """
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)) - delta)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, mu * mu / 2 + mu * 40 + 1, xtol=1e-12))


def gaussian_noise(epsilon: float, steps: int, delta: float) -> float:
    """Return the smallest noise for which `gaussian_epsilon` is at most `epsilon`."""
    noise = brentq(lambda x: gaussian_epsilon(math.exp(x), steps, delta) - epsilon, math.log(1e-2), math.log(1e6), xtol=1e-12)
    return math.exp(noise + 1e-9)


def fit_private_model(
    preferences: Sequence[Preference],
    *,
    tokenizer: Any,
    epsilon: float,
    delta: float | None = None,
    unit: Unit = "pair",
    most_per_annotator: int = 64,
    ngram_buckets: int = 1024,
    max_tokens: int = 128,
    steps: int = 20,
    sampling_rate: float = 1.0,
    clip: float = 0.3,
    learning_rate: float = 100.0,
    device: str | torch.device = "auto",
) -> tuple[PreferenceRewardModel, PrivacyReport]:
    """Fit a linear reward model to comparisons with (epsilon, delta)-differential privacy.

    Nothing is held out: an accuracy computed on private comparisons and told to others is not covered by epsilon.  Judge and normalise the
    model on other texts, such as a policy's.  The noise does not follow a seed: who knows it could take the noise away again, so two fits
    differ.

    Args:
        preferences: Comparisons.
        tokenizer: Must not have been trained on their texts: its vocabulary would tell of them.
        epsilon: Privacy loss that is allowed, > 0; 1 is strong, 8 is common.
        delta: Far below 1 / units, where units are what is protected: giving away all of one unit in N would be private at delta 1 / N.
            By default 1 / units^1.5.
        unit: What is protected: single comparisons, or everything an annotator said.
        most_per_annotator: With `unit="annotator"`, comparisons used of each.
        ngram_buckets: Hashed token pairs; fewer than without privacy, for each has noise of its own.
        max_tokens: Longest text read, in tokens.
        steps: Optimiser steps.
        sampling_rate: Probability of a unit to be in a step, in (0, 1]; 1 costs time and gives the most accuracy.
        clip: Norm to which a unit's gradient is clipped.
        learning_rate: Of gradient descent with momentum 0.9, falling linearly to 0.
        device: Where the model scores, see `rewards.utils.devices.get_device`; it is fitted on the CPU, for it is small.

    Raises:
        ValueError: A number is out of range, or an annotator is missing where annotators are protected.
        ImportError: The extra `privacy` is not installed.
    """
    there = get_device(device)
    groups, left_out = _units(preferences, unit, most_per_annotator)
    delta = len(groups) ** -1.5 if delta is None else delta
    _check(len(groups), epsilon, delta, sampling_rate, steps, clip)
    tokenizer = FileTokenizer.of(tokenizer)
    network = PreferenceNetwork(tokenizer.vocab_size, ngram_buckets, None, 0.0)
    model = PreferenceRewardModel(network, tokenizer, max_tokens=max_tokens, device="cpu")
    scorer = network.parts["ngrams"]
    assert isinstance(scorer, NgramScorer)
    chosen = features(scorer, model.encode([p.prompt + p.chosen for p in preferences]))
    rejected = features(scorer, model.encode([p.prompt + p.rejected for p in preferences]))
    labels, margins = (torch.tensor([getattr(p, name) for p in preferences]) for name in ("label", "margin"))
    noise = noise_for(epsilon, delta, sampling_rate, steps)
    weight = _descend((chosen - rejected).coalesce(), labels, margins, groups, noise, sampling_rate, steps, clip, learning_rate)
    with torch.no_grad():
        scorer.weight.copy_(weight)
    spent = epsilon_of(noise, delta, sampling_rate, steps)
    used = sum(len(group) for group in groups)
    model = PreferenceRewardModel(network, tokenizer, max_tokens=max_tokens, device=there)
    return model, PrivacyReport(spent, delta, unit, len(groups), used, left_out, noise, sampling_rate, steps)


def epsilon_of(noise: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the epsilon of so many steps: exact if every unit is in every step, else by the PRV accountant."""
    if sampling_rate == 1:
        return gaussian_epsilon(noise, steps, delta)
    accountant = _opacus().accountants.PRVAccountant()
    accountant.history = [(noise, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rougher accountant it begins with
        return float(accountant.get_epsilon(delta, eps_error=0.01))


def noise_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return noise for which `epsilon_of` is at most `epsilon`, and not much less."""
    if sampling_rate == 1:
        return gaussian_noise(epsilon, steps, delta)
    target = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": sampling_rate, "steps": steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(_opacus().accountants.utils.get_noise_multiplier(**target, accountant="prv", epsilon_tolerance=0.01))


def features(scorer: NgramScorer, rows: Sequence[np.ndarray]) -> Tensor:
    """Return what each text multiplies the scorer's weights by, sparse, shape (texts, features): the gradient of its score."""
    gradients = []
    weight = scorer.weight.detach().clone().requires_grad_(True)
    for row in rows:
        ids, mask = pad([row], weight.device)
        with torch.enable_grad():
            score = torch.func.functional_call(scorer, {"weight": weight}, (ids, mask))
        gradients.append(torch.autograd.grad(score.sum(), weight)[0].to_sparse())
    return torch.stack(gradients)


class _Differences(nn.Module):
    """A linear scorer of feature differences: one call, one gradient for each unit, whatever number of pairs it has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, differences: Tensor) -> Tensor:
        """Return margins, shape (units, pairs), from differences, shape (units, pairs, features)."""
        return self.linear(differences).squeeze(-1)


def system_uniforms(number: int) -> np.ndarray:
    """Return independent draws from (0, 1), never an end, made of the operating system's random bytes, shape (number,), float64.

    Torch's generator on a CPU is a Mersenne Twister that 32 bits of its seed decide: whoever tries them all takes the noise away again.
    NumPy's PCG64 is not made to be unguessable either.
    """
    words = np.frombuffer(os.urandom(8 * number), np.uint64)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def system_normals(number: int) -> np.ndarray:
    """Return independent standard normals made of `system_uniforms`, shape (number,), float64."""
    return ndtri(system_uniforms(number))


def _add_system_noise(private: Any) -> None:
    """Do what Opacus's `DPOptimizer.add_noise` does, with noise that nobody can guess."""
    for parameter in private.params:
        gradient = parameter.summed_grad
        noise = torch.from_numpy(system_normals(gradient.numel())).view_as(gradient).to(gradient)
        parameter.grad = (gradient + private.noise_multiplier * private.max_grad_norm * noise).view_as(parameter)
        gradient._processed = True  # as Opacus marks it, so that nothing is added twice


def _descend(
    differences: Tensor,
    labels: Tensor,
    margins: Tensor,
    groups: Sequence[Sequence[int]],
    noise: float,
    rate: float,
    steps: int,
    clip: float,
    speed: float,
) -> Tensor:
    opacus = _opacus()
    module = _Differences(differences.shape[1])
    optimizer = torch.optim.SGD(module.parameters(), lr=speed, momentum=0.9)
    most = max(map(len, groups))
    expected = max(1, round(rate * len(groups)))
    wrapped = opacus.GradSampleModule(module, batch_first=True, loss_reduction="sum")
    private = opacus.optimizers.DPOptimizer(
        optimizer, noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=expected, loss_reduction="mean"
    )
    private.add_noise = partial(_add_system_noise, private)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        drawn = [group for group, lot in zip(groups, system_uniforms(len(groups)), strict=True) if lot < rate]
        private.zero_grad()
        if not drawn:  # Poisson sampling may draw nobody: the noise is due all the same
            drawn = [[]]
        rows = torch.tensor([[*group, *[0] * (most - len(group))] for group in drawn])  # (units, pairs)
        real = torch.tensor([[True] * len(group) + [False] * (most - len(group)) for group in drawn])  # (units, pairs)
        dense = differences.index_select(0, rows.flatten()).to_dense().view(*rows.shape, -1)  # (units, pairs, features)
        odds, label = wrapped(dense) - margins[rows], labels[rows]  # (units, pairs) each
        loss = -(label * nn.functional.logsigmoid(odds) + (1 - label) * nn.functional.logsigmoid(-odds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of opacus's hooks
            (loss * real / real.sum(1, keepdim=True).clamp(min=1)).sum().backward()
            private.step()
        schedule.step()
    return module.linear.weight.detach()[0]


def _units(preferences: Sequence[Preference], unit: Unit, most: int) -> tuple[list[list[int]], int]:
    """Return the comparisons of each unit, and how many are left out."""
    if unit not in ("pair", "annotator"):
        raise ValueError(f"unit={unit!r} is neither 'pair' nor 'annotator'")
    if unit == "pair":
        return [[i] for i in range(len(preferences))], 0
    if most < 1:
        raise ValueError(f"most_per_annotator={most} must be at least 1")
    groups: dict[str, list[int]] = defaultdict(list)
    for i, preference in enumerate(preferences):
        if preference.annotator is None:
            raise ValueError("a comparison names no annotator: unit='annotator' protects those who are named")
        groups[preference.annotator].append(i)
    return [own[:most] for own in groups.values()], sum(max(0, len(own) - most) for own in groups.values())


def _check(units: int, epsilon: float, delta: float, rate: float, steps: int, clip: float) -> None:
    if units < 10:
        raise ValueError(f"{units} unit(s): privacy among fewer than 10 leaves nothing to learn")
    if not epsilon > 0 or not 0 < delta < 1 / units:
        raise ValueError(f"epsilon={epsilon} must be positive, and delta={delta} in (0, 1 / {units}), the number of units")
    if not 0 < rate <= 1 or steps < 1 or not clip > 0:
        raise ValueError(f"sampling_rate={rate} must be in (0, 1], steps={steps} at least 1, clip={clip} positive")


def _opacus() -> Any:
    with optional_import("privacy", "differentially private fitting needs opacus"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import opacus
            import opacus.accountants
            import opacus.accountants.utils
            import opacus.optimizers
    return opacus
