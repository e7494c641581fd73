"""Critics: a value head on the policy's trunk, a network of its own, or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from ..models.backbones import Backbone, backbone_of
from ..models.backbones.base import full_precision
from ..models.loading import fuse_activations, switch_off_dropout

VALUE_HEAD = "value_head.safetensors"
SHARED, SEPARATE, NONE = "shared", "separate", "none"
Critic = str | Mapping[str, Any]


def value_head(hidden_size: int) -> nn.Linear:
    """Return a head of zeros: the value of every state is 0 at the start, so that the critic adds no noise (Ziegler et al. 2019)."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def separate_critic(critic: Critic, actor: Backbone) -> tuple[nn.Module, nn.Linear]:
    """Return a trunk and a head that share nothing with the policy.

    Args:
        critic: `"separate"`: a copy of the policy's model, with a head of zeros; or the folder of a reward model that
            `AutoModelForSequenceClassification` opens with one output: its trunk and its score head; or the configuration of
            one as plain data, with fresh weights.
        actor: The policy's model.

    Raises:
        ValueError: The reward model has more than one output, or fewer tokens than the policy.
        FileNotFoundError: There is no such folder.
    """
    if critic == SEPARATE:
        trunk = copy.deepcopy(actor.lm)
        if hasattr(trunk, "set_output_embeddings"):
            trunk.set_output_embeddings(nn.Identity())  # a critic has no use for V * D numbers
        return trunk, value_head(actor.hidden_size)
    model: Any
    if isinstance(critic, Mapping):
        config = AutoConfig.for_model(**{**critic, "num_labels": 1})
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    elif Path(critic).is_dir():
        model = AutoModelForSequenceClassification.from_pretrained(critic, dtype=torch.float32, use_safetensors=True)
    else:
        raise FileNotFoundError(f"critic={critic!r}: must be 'shared', 'separate', 'none' or the folder of a reward model")
    score = next((part for name in ("score", "classifier") if isinstance(part := getattr(model, name, None), nn.Linear)), None)
    if score is None or score.out_features != 1:
        raise ValueError(f"critic={critic!r}: a reward model with one output is needed (num_labels=1), and a linear head")
    head = nn.Linear(score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(score.weight)
        head.bias.zero_() if score.bias is None else head.bias.copy_(score.bias)
    setattr(model, "score" if hasattr(model, "score") else "classifier", nn.Identity())
    switch_off_dropout(model)
    fuse_activations(model)
    if backbone_of(model, head=False).vocab_size < actor.vocab_size:
        raise ValueError(
            f"critic={critic!r} has {model.config.vocab_size} tokens, the policy {actor.vocab_size}: they must share a tokenizer"
        )
    return model, head


def saved_head(source: Any) -> Path | None:
    """Return where `save_pretrained` put a value head, if `source` is such a folder."""
    folder = source.get("weights") if isinstance(source, Mapping) else source
    return Path(folder) / VALUE_HEAD if folder is not None and (Path(folder) / VALUE_HEAD).is_file() else None


def load_head(head: nn.Linear, path: Path) -> None:
    """Read a value head back."""
    head.load_state_dict(load_file(path))


def values_of(head: nn.Linear | None, hidden: torch.Tensor, detach: bool) -> torch.Tensor:
    """Return values, shape (N, 1), float32; zeros without a critic."""
    if head is None:
        return hidden.new_zeros(len(hidden), 1, dtype=torch.float32)
    with full_precision(hidden.device):
        return head(hidden.detach().float() if detach else hidden.float())
