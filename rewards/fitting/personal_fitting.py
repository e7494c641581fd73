"""Fitting a reward model with a head for each group of people."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from textrl_env.episode import Episode
from textrl_env.reward_warnings import RewardWarning

from ..models.personal_model import PersonalRewardModel
from ..models.preference_model import PreferenceRewardModel
from ..preferences.leak_free_split import Split, hold_out
from ..preferences.preference import Preference
from .losses import blend_weights
from .preference_fitting import fit_preference_model

_NONE_ASIDE = (
    "nothing is kept aside, for the comparisons hang together by texts that they share: the shared model and each group's own count alike. "
    "Give comparisons of further texts"
)


def fit_personal_model(
    preferences: Sequence[Preference],
    *,
    tokenizer: Any,
    column: str = "group",
    pattern: str | None = None,
    least: int = 50,
    validation: float = 0.2,
    seed: int = 0,
    **fit: Any,
) -> PersonalRewardModel:
    """Fit a shared model to all comparisons and one to each group's own, and weigh the two on comparisons kept aside.

    Args:
        preferences: Comparisons whose `group` says whose they are.
        tokenizer: The models'.
        column: Metadata of prompts that will name the group.
        pattern: See `PersonalRewardModel`.
        least: Groups with fewer comparisons have no head.
        validation: Share of the comparisons kept aside for the weights; they share no text with the others, see `hold_out`.
        seed: Of the split and the fits.
        **fit: Settings of `fit_preference_model`, such as `trunk=None`.

    Raises:
        ValueError: No comparison names a group.
    """
    if not any(p.group is not None for p in preferences):
        raise ValueError("no comparison names a group: give preferences a `group`, or use fit_preference_model")
    settings: dict[str, Any] = {"trunk": None, **fit, "tokenizer": tokenizer, "seed": seed}
    order = np.random.default_rng(seed).permutation(len(preferences)).tolist()
    split = hold_out(preferences, order, validation) or Split([], order, 0, True)
    kept, aside = ([preferences[i] for i in side] for side in (split.kept, split.held))
    if not aside:
        warnings.warn(_NONE_ASIDE, RewardWarning, stacklevel=2)
    shared, _ = fit_preference_model(kept, **settings)
    heads: dict[str, tuple[PreferenceRewardModel, tuple[float, float]]] = {}
    for group in sorted({p.group for p in preferences if p.group is not None}):
        own, test = ([p for p in side if p.group == group] for side in (kept, aside))
        if sum(p.group == group for p in preferences) < least or len(own) < 10 or (aside and not test):
            continue
        model, _ = fit_preference_model(own, **settings)
        heads[group] = (model, _weights(shared, model, test) if test else (0.5, 0.5))
    return PersonalRewardModel(shared, heads, column, pattern)


def _weights(shared: PreferenceRewardModel, model: PreferenceRewardModel, test: Sequence[Preference]) -> tuple[float, float]:
    differences = torch.tensor(np.stack([_differences(m, test) for m in (shared, model)], 1), dtype=torch.float32)  # (n, 2)
    label, margin = (torch.tensor([getattr(p, name) for p in test]) for name in ("label", "margin"))
    both, alone = blend_weights(differences, label=label, margin=margin).tolist()
    return both, alone


def _differences(model: PreferenceRewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    chosen, rejected = (np.array(model.score([Episode.from_text(p.prompt, getattr(p, s)) for p in pairs])) for s in ("chosen", "rejected"))
    return chosen - rejected
