"""Generators, which write the texts of a rollout: their protocol, and the cached decoder of this process behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rewards.utils.devices import seeded

from ..models.backbones import Backbone
from ..models.cached_decoder import CachedDecoder
from ..models.decoding_weights import DecodingWeights
from ..models.sampler import Sampler, draw
from ..models.sequences import PartialTexts, withheld_after
from ..models.upload import Upload
from ..policies.transformer_policy import TransformerPolicy


@dataclass(frozen=True)
class Request:
    """Texts to write.  Token ids go in and come out; nothing is tokenized on the way.

    Attributes:
        prompts: Token ids of each prompt, int64, at least one each.
        max_new_tokens: Longest response.
        sampler: How tokens are drawn; without cuts and `no_repeat_ngram`.
        stop_ids: Tokens that end a response and are its last, end-of-text among them.
        vocab_size: Ids are below it, though the model's head may have more.
        seed: Of the drawing.
    """

    prompts: tuple[np.ndarray, ...]
    max_new_tokens: int
    sampler: Sampler
    stop_ids: tuple[int, ...]
    vocab_size: int
    seed: int


class Generator(Protocol):
    """Writes the texts of a rollout: `model.generator = ...` before `learn`, on any Text* algorithm.

    Log-probabilities and values are never its own: the policy computes them anew from the tokens.
    """

    def load(self, policy: TransformerPolicy) -> None:
        """Take the policy's present weights; called before every rollout."""

    def generate(self, request: Request) -> Sequence[Sequence[int] | np.ndarray]:
        """Return one response for each prompt: at most `max_new_tokens` ids, fewer only if the last one is a stop id."""


class LocalDecoder:
    """The policy's own model in this process, with its keys and values kept: what rollouts use by default, behind the protocol."""

    __module__ = "agents"

    def load(self, policy: TransformerPolicy) -> None:
        """Take the policy's model; it is shared, not copied."""
        self.backbone = policy.backbone

    def generate(self, request: Request) -> list[np.ndarray]:
        """Return one response for each prompt, see `Generator`."""
        return decode(self.backbone, request)


@torch.no_grad()
def decode(backbone: Backbone, request: Request) -> list[np.ndarray]:
    """Write texts token by token with a cache; torch's global generator stays as it was.

    Returns:
        One response for each prompt, int64.
    """
    prompt_lengths = np.array([len(prompt) for prompt in request.prompts])
    width = int(prompt_lengths.max()) + request.max_new_tokens
    ids = np.full((len(prompt_lengths), width), -1, np.int64)  # (B, W)
    for row, prompt in enumerate(request.prompts):
        ids[row, : len(prompt)] = prompt
    weights = DecodingWeights(backbone)
    cache, lengths, live = CachedDecoder(weights=weights), prompt_lengths.copy(), np.ones(len(ids), bool)
    with seeded(request.seed, backbone.device):
        while live.any():
            texts = PartialTexts(np.where(live[:, None], ids, -1), np.where(live, lengths, 0), np.where(live, prompt_lengths, 0))
            upload = Upload(backbone.device)
            withheld = upload.add(withheld_after(PartialTexts(*(column[live] for column in texts)), request.sampler))
            hidden = cache.plan(backbone, texts, upload)()  # (R, D)
            with weights:
                logits = backbone.logits(hidden)[:, : request.vocab_size]  # (R, V)
            tokens = draw(request.sampler.apply_rules(logits, withheld())).cpu().numpy()  # (R,)
            ids[live, lengths[live]] = tokens
            lengths[live] += 1
            live[live] = ~np.isin(tokens, request.stop_ids) & (lengths - prompt_lengths < request.max_new_tokens)[live]
    return [row[start:end] for row, start, end in zip(ids, prompt_lengths, lengths, strict=True)]


def checked(request: Request, responses: Sequence[Sequence[int] | np.ndarray]) -> list[np.ndarray]:
    """Return the responses as int64 arrays.

    Raises:
        ValueError: Another number of responses than prompts, an id outside the vocabulary, or a length that cannot be.
    """
    if len(responses) != len(request.prompts):
        raise ValueError(f"the generator returned {len(responses)} responses for {len(request.prompts)} prompts; it must return one each")
    rows = [np.asarray(response) for response in responses]
    for number, ids in enumerate(rows):
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= request.vocab_size:
            raise ValueError(f"response {number} of the generator is {ids!r}: need token ids in [0, {request.vocab_size}), at least one")
        if len(ids) > request.max_new_tokens or (len(ids) < request.max_new_tokens and ids[-1] not in request.stop_ids):
            raise ValueError(
                f"response {number} of the generator has {len(ids)} tokens, the last {ids[-1]}: need {request.max_new_tokens} "
                f"(max_new_tokens), or fewer with one of {request.stop_ids} at the end"
            )
    return [ids.astype(np.int64) for ids in rows]
