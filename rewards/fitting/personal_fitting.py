"""Fitting a reward model with a head for each group of people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from textrl_env.episode import Episode

from ..models.personal_model import PersonalRewardModel
from ..models.preference_model import PreferenceRewardModel
from ..preferences.preference import Preference
from .losses import blend_weights
from .preference_fitting import fit_preference_model


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
        validation: Share of each group's comparisons kept aside for the weights.
        seed: Of the split and the fits.
        **fit: Settings of `fit_preference_model`, such as `trunk=None`.

    Raises:
        ValueError: No comparison names a group.
    """
    if not any(p.group is not None for p in preferences):
        raise ValueError("no comparison names a group: give preferences a `group`, or use fit_preference_model")
    settings: dict[str, Any] = {"trunk": None, **fit, "tokenizer": tokenizer, "seed": seed}
    aside = np.random.default_rng(seed).random(len(preferences)) < validation
    shared, _ = fit_preference_model([p for p, out in zip(preferences, aside, strict=True) if not out], **settings)
    heads = {}
    for group in sorted({p.group for p in preferences if p.group is not None}):
        own = [(p, out) for p, out in zip(preferences, aside, strict=True) if p.group == group]
        kept, test = [p for p, out in own if not out], [p for p, out in own if out and not p.is_tie]
        if len(own) < least or len(kept) < 10 or not test:
            continue
        model, _ = fit_preference_model(kept, **settings)
        margins = torch.tensor(np.stack([_margins(m, test) for m in (shared, model)], 1), dtype=torch.float32)
        both, alone = blend_weights(margins).tolist()
        heads[group] = (model, (both, alone))
    return PersonalRewardModel(shared, heads, column, pattern)


def _margins(model: PreferenceRewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    chosen, rejected = (np.array(model.score([Episode.from_text(p.prompt, getattr(p, s)) for p in pairs])) for s in ("chosen", "rejected"))
    return chosen - rejected
