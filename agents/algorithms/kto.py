"""KTO: learning from single texts that people found good or bad."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

from rewards.preferences.thumbs import Thumb
from textrl_env import Tokenizer
from textrl_env.prompts.encoding import encode_prompts

from ..models.loading import LMSource
from ..models.sequences import TextRecord
from .common.supervised import SupervisedArguments
from .common.supervised_with_reference import SupervisedWithReference
from .common.training_warnings import TrainingWarning

if TYPE_CHECKING:
    from typing_extensions import Unpack


class JudgedText(NamedTuple):
    """A judged text as token ids.

    Attributes:
        text: Prompt and response.
        good: Probability that the response is good.
    """

    text: TextRecord
    good: float


class KTO(SupervisedWithReference):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024) of texts that were judged one by one.

    It learns from `rewards.Thumb`s, or from `JudgedText`s as a policy wrote them, of which only the policy's own tokens count.

    With r = log(pi / pi_ref) of a response and z the reference point, the loss of a good text is w (1 - sigmoid(beta (r - z))) with
    w = `desirable_weight`, that of a bad one w (1 - sigmoid(beta (z - r))) with w = `undesirable_weight`; of one that is good with a
    probability, the mean of the two.  z = max(0, mean of log(pi / pi_ref)) estimates KL(pi || pi_ref), without a gradient, on the
    minibatch, where each prompt gets the response of the next text: that of another prompt, as a rule.  It is that of the whole
    minibatch, however it is cut into micro-batches and among processes.

    The paper advises weights such that desirable_weight * good texts is 1 to 4/3 times undesirable_weight * bad ones; further off, `learn`
    warns.  Texts of which as many say the one as the other teach nothing and are left out.

    Args:
        model: What `agents.models.loading.load_lm` takes; it is trained.
        beta: How soon a text that is better than the reference point is good enough, > 0.  Default: 0.1.
        reference: What KL is measured against; None: the model as it was given, under `lora` without a copy: the base under the adapters.
        desirable_weight: Of good texts, > 0.  Default: 1.
        undesirable_weight: Of bad texts, > 0.  Default: 1.

    Raises:
        ValueError: Beta or a weight is not positive, a minibatch is a single text, or `max_new_tokens` is less than 1.
    """

    __module__ = "agents"
    _defaults: ClassVar[SupervisedArguments] = {
        "learning_rate": 1e-4,  # as DPO's
        "weight_decay": 0.0,  # the reference regularises
    }

    def __init__(
        self,
        model: LMSource,
        tokenizer: Tokenizer,
        beta: float = 0.1,
        reference: LMSource | None = None,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **arguments: Unpack[SupervisedArguments],
    ) -> None:
        if not min(beta, desirable_weight, undesirable_weight) > 0:
            raise ValueError(f"beta={beta}, desirable_weight={desirable_weight}, undesirable_weight={undesirable_weight}: must be positive")
        if arguments.get("batch_size") == 1:
            raise ValueError("batch_size=1: the reference point compares a prompt with the response to another one, take at least 2 texts")
        super().__init__(model, tokenizer, reference, **arguments)
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight
        self.num_even = 0  # texts that are left out
        self._points: list[float] = []  # the reference point of the minibatch that is under way, or was last
        self._under_way = False

    def _encode(self, texts: Sequence[Thumb | JudgedText]) -> list[JudgedText]:
        thumbs = [text for text in texts if not isinstance(text, JudgedText)]
        for thumb in thumbs:
            if not isinstance(thumb, Thumb):
                raise TypeError(f"{thumb!r:.200} is a {type(thumb).__name__}: pass Thumbs; rewards.read_thumbs and thumbs_of make them")
        prompts = encode_prompts(self.tokenizer, [thumb.prompt for thumb in thumbs])
        if not all(prompts):
            raise ValueError("a judged text has an empty prompt: a policy needs at least one token to start from")
        responses = self._responses([thumb.response for thumb in thumbs])
        rows = (
            JudgedText(TextRecord(np.asarray(prompt), np.asarray(response), 0), thumb.good)
            for prompt, response, thumb in zip(prompts, responses, thumbs, strict=True)
        )
        judged = [text if isinstance(text, JudgedText) else next(rows) for text in texts]
        decided = [row for row in judged if row.good != 0.5]
        if not decided:
            raise ValueError(f"none of {len(judged)} texts is judged good or bad: there is nothing to learn")
        self.num_even = len(judged) - len(decided)
        return decided

    def _check(self, rows: Sequence[JudgedText]) -> None:
        super()._check(rows)
        if self.num_even:
            message = f"{self.num_even} of {self.num_even + len(rows)} texts are left out: as many judgements say good as bad"
            warnings.warn(message, TrainingWarning, stacklevel=3)
        good = sum(row.good for row in rows)
        bad = len(rows) - good
        desired, undesired = self.desirable_weight * good, self.undesirable_weight * bad
        if not 0 < undesired <= desired * 1.01 <= undesired * 1.35:
            message = (
                f"desirable_weight={self.desirable_weight:g} of {good:g} good texts is {desired:g} in all, undesirable_weight="
                f"{self.undesirable_weight:g} of {bad:g} bad ones {undesired:g}: KTO's authors advise 1 to 4/3 times as much for the good"
            )
            warnings.warn(message, TrainingWarning, stacklevel=3)

    def _records(self, rows: Sequence[JudgedText]) -> list[TextRecord]:
        return [row.text for row in rows]

    def _mean_loss(self, rows: Sequence[JudgedText], backward: bool = False) -> float:
        self._points = [self._reference_point(rows)]
        try:
            self._under_way = True
            return super()._mean_loss(rows, backward)
        finally:
            self._under_way = False

    @torch.no_grad()
    def _reference_point(self, rows: Sequence[JudgedText]) -> float:
        """Return an estimate of KL(pi || pi_ref) on the prompts of a minibatch, in nats, at least 0."""
        mismatched = [self._answered(row, other) for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
        return max(0.0, self._mean(lambda part: self._log_ratios(self._records(part)).mean(), mismatched))

    def _answered(self, row: JudgedText, other: JudgedText) -> JudgedText:
        """Return a prompt with the response to another one, as much of it as the model reads."""
        text = other.text._replace(context=row.text.context)
        room = self.backbone.context_length
        beyond = 0 if room is None else self._num_read(text) - room
        if beyond > 0:
            text = text._replace(actions=text.actions[: max(1, len(text.actions) - beyond)], replies=())
        return JudgedText(text, row.good)

    def _loss(self, rows: Sequence[JudgedText]) -> torch.Tensor:
        point = self._points[0] if self._under_way else self._reference_point(rows)
        ratios = self._log_ratios(self._records(rows))  # (B,)
        good = ratios.new_tensor([row.good for row in rows])  # (B,)
        return kto_loss(ratios, good, point, self.beta, (self.desirable_weight, self.undesirable_weight))

    def _note(self) -> str:
        return f"{super()._note()} reference point {self._points[0]:.2f}"


def kto_loss(ratios: torch.Tensor, good: torch.Tensor, point: float, beta: float, weights: tuple[float, float]) -> torch.Tensor:
    """Return the mean loss of KTO, a scalar, see `KTO`.

    Args:
        ratios: log(pi / pi_ref) of each text in nats, shape (B,).
        good: Probability that it is good, shape (B,).
        point: The reference point, in nats.
        beta: See `KTO`.
        weights: Of good and of bad texts.
    """
    gain = torch.sigmoid(beta * (ratios - point))  # (B,); 1 - sigmoid(-x) is sigmoid(x)
    return (weights[0] * good * (1 - gain) + weights[1] * (1 - good) * gain).mean()
