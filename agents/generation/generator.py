"""Generators, which write the texts of a rollout: their protocol, and the cached decoder of this process behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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

_ROUNDING = 1e-4  # by which a log-probability may be above 0


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


@dataclass(frozen=True)
class Response:
    """What a generator wrote after one prompt.

    Attributes:
        tokens: Token ids.
        log_probs: Log-probability of each token under the distribution that it was drawn from (temperature and all rules applied), in
            nats, at most 0.
    """

    tokens: Sequence[int] | np.ndarray
    log_probs: Sequence[float] | np.ndarray

    __module__ = "agents"


class Generator(Protocol):
    """Writes the texts of a rollout: `model.generator = ...` before `learn`, on any Text* algorithm.

    The policy computes log-probabilities and values anew from the tokens.  What the generator says of its own distribution shows how far
    that is from the policy's, and corrects for it, see `agents.rollouts.sampler_mismatch`.
    """

    def load(self, policy: TransformerPolicy) -> None:
        """Take the policy's present weights; called before every rollout."""

    def generate(self, request: Request) -> Sequence[Response | Sequence[int] | np.ndarray]:
        """Return one response for each prompt: at most `max_new_tokens` ids, fewer only if the last one is a stop id.

        Ids alone pass too: nobody knows then how far off-policy the rollout is.
        """


class LocalDecoder:
    """The policy's own model in this process, with its keys and values kept: what rollouts use by default, behind the protocol."""

    __module__ = "agents"

    def load(self, policy: TransformerPolicy) -> None:
        """Take the policy's model; it is shared, not copied."""
        self.backbone = policy.backbone

    def generate(self, request: Request) -> list[Response]:
        """Return one response for each prompt, see `Generator`."""
        return decode(self.backbone, request)


@torch.no_grad()
def decode(backbone: Backbone, request: Request) -> list[Response]:
    """Write texts token by token with a cache; torch's global generator stays as it was.

    Returns:
        One response for each prompt: int64, and float32.
    """
    prompt_lengths = np.array([len(prompt) for prompt in request.prompts])
    width = int(prompt_lengths.max()) + request.max_new_tokens
    ids = np.full((len(prompt_lengths), width), -1, np.int64)  # (B, W)
    for row, prompt in enumerate(request.prompts):
        ids[row, : len(prompt)] = prompt
    log_probs = np.zeros(ids.shape, np.float32)  # (B, W)
    weights = DecodingWeights(backbone)
    cache, lengths, live = CachedDecoder(weights=weights), prompt_lengths.copy(), np.ones(len(ids), bool)
    with seeded(request.seed, backbone.device):
        while live.any():
            texts = PartialTexts(np.where(live[:, None], ids, -1), np.where(live, lengths, 0), np.where(live, prompt_lengths, 0))
            upload = Upload(backbone.device)
            withheld = upload.add(withheld_after(texts.only(live), request.sampler))
            hidden = cache.plan(backbone, texts, upload)()  # (R, D)
            with weights:
                logits = backbone.logits(hidden)[:, : request.vocab_size]  # (R, V)
            logits = request.sampler.apply_rules(logits, withheld())
            drawn = draw(logits)  # (R,)
            log_probs[live, lengths[live]] = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].cpu().numpy()
            tokens = drawn.cpu().numpy()
            ids[live, lengths[live]] = tokens
            lengths[live] += 1
            live[live] = ~np.isin(tokens, request.stop_ids) & (lengths - prompt_lengths < request.max_new_tokens)[live]
    own = [slice(start, end) for start, end in zip(prompt_lengths, lengths, strict=True)]
    return [Response(row[part], numbers[part]) for row, numbers, part in zip(ids, log_probs, own, strict=True)]


class Written(NamedTuple):
    """A response of n tokens that was found to be well formed.

    Attributes:
        tokens: Shape (n,), int64.
        log_probs: Under the distribution that drew them, shape (n,), float64; NaN: the generator did not say.
    """

    tokens: np.ndarray
    log_probs: np.ndarray


def checked(request: Request, responses: Sequence[Response | Sequence[int] | np.ndarray]) -> list[Written]:
    """Return the responses as arrays.

    Raises:
        ValueError: Another number of responses than prompts, an id outside the vocabulary, a length that cannot be, or numbers that are no
            log-probabilities of the tokens.
    """
    if len(responses) != len(request.prompts):
        raise ValueError(f"the generator returned {len(responses)} responses for {len(request.prompts)} prompts; it must return one each")
    rows = []
    for number, response in enumerate(responses):
        ids = np.asarray(response.tokens if isinstance(response, Response) else response)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= request.vocab_size:
            raise ValueError(f"response {number} of the generator is {ids!r}: need token ids in [0, {request.vocab_size}), at least one")
        if len(ids) > request.max_new_tokens or (len(ids) < request.max_new_tokens and ids[-1] not in request.stop_ids):
            raise ValueError(
                f"response {number} of the generator has {len(ids)} tokens, the last {ids[-1]}: need {request.max_new_tokens} "
                f"(max_new_tokens), or fewer with one of {request.stop_ids} at the end"
            )
        log_probs = np.asarray(response.log_probs) if isinstance(response, Response) else np.full(len(ids), np.nan)
        if isinstance(response, Response):
            _check_log_probs(log_probs, ids, number)
        rows.append(Written(ids.astype(np.int64), log_probs.astype(np.float64)))
    return rows


def _check_log_probs(log_probs: np.ndarray, ids: np.ndarray, number: int) -> None:
    if log_probs.shape != ids.shape or log_probs.dtype.kind not in "if" or not (np.isfinite(log_probs) & (log_probs <= _ROUNDING)).all():
        raise ValueError(
            f"response {number} of the generator has log_probs {log_probs!r} for {len(ids)} tokens: need a finite number, at most 0, for "
            "each; or return the ids alone"
        )
