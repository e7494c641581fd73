"""DPO: learning from preferences without a reward model and without sampling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from rewards.fitting.losses import bradley_terry_loss
from rewards.models.lora import adapted_layers
from rewards.preferences.preference import Preference
from textrl_env import Prompt, Tokenizer
from textrl_env.prompts.encoding import encode_prompts
from textrl_env.tokenizer import check_same_tokens

from ..distributed.ranks import digest
from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, frozen, is_in_shards, load_lm
from ..models.log_probs import action_log_probs
from ..models.lora import without_adapters
from ..models.sampler import Sampler
from ..models.sequences import TextRecord, pack
from .common.supervised import Supervised, SupervisedArguments
from .common.training_warnings import TrainingWarning

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WEIGHTS = ("weight", "weights", "sample_weight")


class Pair(NamedTuple):
    """A comparison as token ids.

    Attributes:
        chosen: Prompt and the preferred response.
        rejected: Prompt and the other one.
        label: Probability that the chosen one is the better.
        margin: By how much, on the scale of the reward.
    """

    chosen: TextRecord
    rejected: TextRecord
    label: float = 1.0
    margin: float = 0.0


class DPO(Supervised):
    """Direct preference optimisation (Rafailov et al. 2023), or IPO (Azar et al. 2024).

    It learns from `Preference`s, or from `Pair`s of texts as a policy wrote them, of which only the policy's own tokens count.

    With D = log(pi / pi_ref) of the chosen text minus that of the rejected one, and p the label of a comparison (1: certain, 0.5: a
    tie), the loss is -p log sigmoid(h) - (1 - p) log sigmoid(-h), where h = beta * D - margin: the soft labels of conservative DPO
    (Mitchell 2023) and the offset of ODPO (Amini et al. 2024).  IPO's is (D - (2 p - 1) / (2 beta))^2, and it takes no margins.  With
    preferences that follow Bradley and Terry on a reward R, DPO's optimum is that of the KL-regularised return: pi_ref * exp(R / beta) / Z.

    Comparisons count alike: one that is there twice counts twice, whoever the annotator and the group; `rewards.consensus` makes one
    of several people's answers.  Pairs of equal responses teach nothing and are left out, and an empty response is one that ends at once.

    Args:
        model: What `agents.models.loading.load_lm` takes; it is trained.
        beta: Coefficient of KL, > 0.  Default: 0.1.
        loss: `"sigmoid"` or `"ipo"`.  Default: `"sigmoid"`.
        reference: What KL is measured against; None: the model as it was given, under `lora` without a copy: the base under the adapters.

    Raises:
        ValueError: Beta is not positive, the loss is unknown, or `max_new_tokens` is less than 1.
    """

    __module__ = "agents"
    _defaults: ClassVar[SupervisedArguments] = {
        "learning_rate": 1e-4,  # of 1e-4, 2e-4 and 5e-4 the least is best: DPO drifts far from its reference otherwise
        "batch_size": 16,  # pairs: as many texts as in a step of SFT
        "weight_decay": 0.0,  # the reference regularises
    }

    def __init__(
        self,
        model: LMSource,
        tokenizer: Tokenizer,
        beta: float = 0.1,
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        reference: LMSource | None = None,
        **arguments: Unpack[SupervisedArguments],
    ) -> None:
        if not beta > 0 or loss not in ("sigmoid", "ipo"):
            raise ValueError(f"beta={beta}, loss={loss!r}: beta must be positive, the loss 'sigmoid' or 'ipo'")
        super().__init__(model, tokenizer, **arguments)
        self.beta, self.loss, self.num_equal = beta, loss, 0
        self._right: list[float] = []  # whether each comparison of the latest step came out right, 1 or 0
        check_same_tokens(reference, tokenizer, "reference")
        if reference is None and adapted_layers(self.lm):
            self.reference = without_adapters(self.backbone)
            return
        other = load_lm(self._in_shards(model if reference is None else reference, arguments.get("lora")))
        if reference is None and not is_in_shards(other):
            other.load_state_dict(self.lm.state_dict())  # fresh weights are drawn once
        self.reference = backbone_of(frozen(other).to(self.backbone.device))
        self.reference.autocast = self.backbone.autocast

    def _encode(self, texts: Sequence[Preference | Pair]) -> list[Pair]:
        rows = iter(self._encode_preferences([text for text in texts if not isinstance(text, Pair)]))
        pairs = [text if isinstance(text, Pair) else next(rows) for text in texts]
        if self.loss == "ipo" and any(pair.margin for pair in pairs):
            raise ValueError("a pair has a margin, and IPO a target of its own, 1 / (2 beta): leave margins out, or take loss='sigmoid'")
        chosen = [pair for pair in pairs if not np.array_equal(pair.chosen.actions, pair.rejected.actions)]
        if not chosen:
            raise ValueError("both responses of every pair are equal, or are once they are cut: there is nothing to choose")
        self.num_equal = len(pairs) - len(chosen)
        return chosen

    def _encode_preferences(self, pairs: Sequence[Preference]) -> list[Pair]:
        check_comparisons(pairs)
        prompts = encode_prompts(self.tokenizer, [pair.prompt for pair in pairs])
        if not all(prompts):
            raise ValueError("a pair has an empty prompt: a policy needs at least one token to start from")
        responses = self._responses([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
        both = [TextRecord(np.asarray(start), np.asarray(ids), 0) for start, ids in zip(prompts * 2, responses, strict=True)]
        return [Pair(both[i], both[len(pairs) + i], pair.label, pair.margin) for i, pair in enumerate(pairs)]

    def _check(self, rows: Sequence[Pair]) -> None:
        super()._check(rows)
        if self.num_equal:
            message = f"{self.num_equal} of {self.num_equal + len(rows)} pairs are left out: their responses are equal, or are once cut"
            warnings.warn(message, TrainingWarning, stacklevel=3)

    def _records(self, rows: Sequence[Pair]) -> list[TextRecord]:
        return [row.chosen for row in rows] + [row.rejected for row in rows]

    def _backbones(self) -> list[Backbone]:
        return [self.backbone] if self.reference.lm is self.lm else [self.backbone, self.reference]

    def _module(self) -> nn.Module:
        return self.lm if self.reference.lm is self.lm else nn.ModuleDict({"lm": self.lm, "reference": self.reference.lm})

    def _mean_loss(self, rows: Sequence[Pair], backward: bool = False) -> float:
        loss = super()._mean_loss(rows, backward)
        together = self.engine.ranks
        del self._right[len(rows[together.rank :: together.size]) :]  # those of passes with weight 0
        return loss

    def _depends_on(self) -> dict[str, Any]:
        own = super()._depends_on()
        return {**own, "reference": self._first if self.reference.lm is self.lm else digest(self.reference.lm)[0]}

    def _loss(self, rows: Sequence[Pair]) -> torch.Tensor:
        texts = self._records(rows)
        with torch.no_grad():  # before the policy's pass, which keeps its activations
            of_reference = self._log_probs(self.reference, texts)  # (2 B,)
        own = self._log_probs(self.backbone, texts)  # (2 B,)
        chosen, rejected = (own - of_reference).unflatten(0, (2, -1))  # (B,) each
        label, margin = torch.tensor([row[2:] for row in rows], device=own.device).T  # (B,) each
        if torch.is_grad_enabled():  # half of those without a difference, as before the first step
            self._right += (0.5 + 0.5 * (chosen - rejected).detach().sign() * (label - 0.5).sign()).tolist()
        if self.loss == "ipo":
            return (chosen - rejected - (2 * label - 1) / (2 * self.beta)).square().mean()
        return bradley_terry_loss(self.beta * chosen, self.beta * rejected, label=label, margin=margin)

    def _note(self) -> str:
        right, number = self.engine.ranks.sums([sum(self._right), len(self._right)])
        self._right = []
        return f"{super()._note()} accuracy {right / number:.0%}"

    def _log_probs(self, model: Backbone, texts: Sequence[TextRecord]) -> torch.Tensor:
        """Return the log-probabilities of responses, shape (2 B,)."""
        batch = pack(texts, model.device)
        actions = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=model.device)  # (N,)
        log_probs, _ = action_log_probs(model, model.hidden(batch), batch, actions, Sampler(), self.tokenizer.vocab_size)  # (N,)
        rows_of = batch.predictor // batch.input_ids.shape[1]  # (N,): the text of each token
        return log_probs.new_zeros(len(texts)).index_add(0, rows_of, log_probs)  # (2 B,)


def check_comparisons(texts: Sequence[Preference]) -> None:
    """Insist on comparisons of texts that can be learned from, all with the same weight.

    Raises:
        TypeError: One is no `Preference`, or holds no text, such as chat messages.
        ValueError: A tie has a margin, or a column weighs comparisons.
    """
    for pair in texts:
        if not isinstance(pair, Preference):
            raise TypeError(f"{pair!r:.200} is a {type(pair).__name__}: pass Preferences; read_preferences makes them of rankings too")
        if not isinstance(pair.prompt, (str, Prompt)) or not isinstance(pair.chosen, str) or not isinstance(pair.rejected, str):
            raise TypeError(f"{pair!r:.200} holds something else than texts: read_preferences renders chat messages as text")
        if pair.is_tie and pair.margin:
            raise ValueError(f"{pair!r:.200} is a tie with margin={pair.margin:g}: a tie has no margin")
    for name in _WEIGHTS:
        if len({str(pair.metadata.get(name)) for pair in texts}) > 1:
            raise ValueError(f"the column {name!r} differs from row to row, and comparisons count alike: repeat rows, or leave it out")
