"""How near a response is to its references, or to its prompt, in the space of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_references
from textrl_env.reward_model import RewardError

from ..utils.base_reward import BaseReward
from .pretrained import Checkpoint, Reading

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EmbeddingReward(BaseReward):
    """Cosine similarity of embeddings, the masked mean of an encoder's last hidden states (Reimers and Gurevych 2019), in [-1, 1].

    Args:
        path: Folder, or name on the hub, of an encoder such as `sentence-transformers/all-MiniLM-L6-v2`.
        against: What the response is compared with: `"reference"`, the nearest one, or `"prompt"`.
        reading: How texts are read: `device`, `dtype`, `batch_size` and `max_tokens` of `Checkpoint`.

    Raises:
        OSError: There is no such model, or it has no safetensors weights.
        ValueError: An argument is out of range.
    """

    def __init__(self, path: str | Path, *, against: Literal["reference", "prompt"] = "reference", **reading: Unpack[Reading]) -> None:
        if against not in ("reference", "prompt"):
            raise ValueError(f"against={against!r} must be 'reference' or 'prompt'")
        self.against = against
        self.checkpoint = Checkpoint("AutoModel", path, **reading)
        self._fixed: dict[str, np.ndarray] = {}  # of prompts and references, which come again in every rollout

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if a prompt has no references to compare with."""
        if self.against == "reference":
            check_references("embedding", prompts)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one similarity per episode, in order.

        Raises:
            RewardError: An episode has no reference.
        """
        others = [e.references if self.against == "reference" else (e.prompt,) for e in episodes]
        if () in others:
            raise RewardError(f"embedding compares with references, and the prompt {episodes[others.index(())].prompt!r} has none")
        new = [text for text in dict.fromkeys(text for group in others for text in group) if text not in self._fixed]
        self._fixed.update(zip(new, self.embed(new), strict=True))
        responses = dict.fromkeys(e.response for e in episodes)
        embedded = dict(zip(responses, self.embed([*responses]), strict=True))
        return [max(float(embedded[e.response] @ self._fixed[other]) for other in group) for e, group in zip(episodes, others, strict=True)]

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return embeddings of length 1, each of shape (D,); that of a text without tokens is 0."""
        rows = self.checkpoint.encode(texts)
        full = [i for i, row in enumerate(rows) if row]
        embedded = dict(zip(full, self.checkpoint.read([rows[i] for i in full], self._head), strict=True))
        return [embedded.get(i, np.zeros(self.checkpoint.model.config.hidden_size)) for i in range(len(texts))]

    def _head(self, ids: Tensor, mask: Tensor, places: list[int]) -> list[np.ndarray]:
        states = self.checkpoint.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # (B, T, D)
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        return list(torch.nn.functional.normalize(pooled, dim=-1).cpu().double().numpy())

    def __repr__(self) -> str:
        return f"EmbeddingReward({self.checkpoint.path!r}, {self.against})"
