"""DPO and its relatives: learning from preferences without a reward model and without sampling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch

from rewards.fitting.losses import bradley_terry_loss
from rewards.preferences.preference import Preference
from textrl_env import Prompt, Tokenizer
from textrl_env.prompts.encoding import encode_prompts

from ..models.loading import LMSource
from ..models.sequences import TextRecord
from .common.supervised import SupervisedArguments
from .common.supervised_with_reference import SupervisedWithReference
from .common.training_warnings import TrainingWarning

if TYPE_CHECKING:
    from typing_extensions import Unpack

Loss = Literal["sigmoid", "ipo", "robust", "simpo"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
_SUITED = {"simpo": (2.0, 1.0)}  # beta and gamma that Meng et al. (2024) took for Llama-3-Base
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


class DPO(SupervisedWithReference):
    """Direct preference optimisation (Rafailov et al. 2023) and its relatives: IPO, robust DPO, SimPO.

    It learns from `Preference`s, or from `Pair`s of texts as a policy wrote them, of which only the policy's own tokens count.

    With D = log(pi / pi_ref) of the chosen text minus that of the rejected one, and p the label of a comparison (1: certain, 0.5: a
    tie), the loss is -p log sigmoid(h) - (1 - p) log sigmoid(-h), where h = beta * D - margin: the soft labels of conservative DPO
    (Mitchell 2023) and the offset of ODPO (Amini et al. 2024).  With preferences that follow Bradley and Terry on a reward R, its optimum
    is that of the KL-regularised return: pi_ref * exp(R / beta) / Z.  The others differ in one thing each:

    - `"ipo"` (Azar et al. 2024): the loss is (D - (2 p - 1) / (2 beta))^2; it takes no margins.
    - `"robust"` (Chowdhury et al. 2024): p becomes (p - e) / (1 - 2 e), e the `label_smoothing`, so that the expected loss is that of the
      labels before a share e of them was turned round.  Beyond 0 and 1, such a label has no lower bound of its loss: take few epochs.
    - `"simpo"` (Meng et al. 2024): D is the difference of log pi per token, without a reference, and the margin of every pair is `gamma`
      more.  Nothing holds it to the first policy but a small learning rate.

    Comparisons count alike: one that is there twice counts twice, whoever the annotator and the group; `rewards.consensus` makes one
    of several people's answers.  Pairs of equal responses teach nothing and are left out, and an empty response is one that ends at once.

    Args:
        model: What `agents.models.loading.load_lm` takes; it is trained.
        beta: Coefficient of KL, > 0; of SimPO the scale of a reward that is a mean over tokens.  Default: 0.1, of SimPO 2.
        loss: `"sigmoid"`, `"ipo"`, `"robust"` or `"simpo"`.  Default: `"sigmoid"`.
        reference: What KL is measured against; None: the model as it was given, under `lora` without a copy: the base under the adapters.
        label_smoothing: Share e of the labels that are wrong, in [0, 0.5): p becomes p (1 - 2 e) + e, of `"robust"` the inverse of that.
            Default: 0.
        gamma: Margin that every pair has besides its own, at least 0.  Default: 0, of SimPO 1.

    Raises:
        ValueError: Beta is not positive, the loss is unknown or has no use for an argument, or `max_new_tokens` is less than 1.
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
        beta: float | None = None,
        loss: Loss = "sigmoid",
        reference: LMSource | None = None,
        label_smoothing: float = 0.0,
        gamma: float | None = None,
        **arguments: Unpack[SupervisedArguments],
    ) -> None:
        suited = _SUITED.get(loss, (0.1, 0.0))
        beta, gamma = suited[0] if beta is None else beta, suited[1] if gamma is None else gamma
        if not beta > 0 or loss not in LOSSES:
            raise ValueError(f"beta={beta}, loss={loss!r}: beta must be positive, the loss one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 0.5 or not 0 <= gamma < np.inf:
            raise ValueError(f"label_smoothing={label_smoothing}, gamma={gamma}: must be in [0, 0.5), and at least 0")
        if loss == "ipo" and gamma:
            raise ValueError(f"gamma={gamma} is a margin, and IPO has a target of its own, 1 / (2 beta): leave it out")
        if loss == "simpo" and reference is not None:
            raise ValueError("loss='simpo' compares with no reference: leave it out, or take another loss")
        self.loss: Loss = loss
        super().__init__(model, tokenizer, reference, **arguments)
        self.beta, self.num_equal = beta, 0
        self.label_smoothing, self.gamma = label_smoothing, gamma
        self._right: list[float] = []  # whether each comparison of the latest step came out right, 1 or 0

    @property
    def _compares(self) -> bool:
        return self.loss != "simpo"

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

    def _mean_loss(self, rows: Sequence[Pair], backward: bool = False) -> float:
        loss = super()._mean_loss(rows, backward)
        together = self.engine.ranks
        del self._right[len(rows[together.rank :: together.size]) :]  # those of passes with weight 0
        return loss

    def _depends_on(self) -> dict[str, Any]:
        own = super()._depends_on()
        return {name: value for name, value in own.items() if value or name not in ("label_smoothing", "gamma")}  # older files lack them

    def _loss(self, rows: Sequence[Pair]) -> torch.Tensor:
        texts = self._records(rows)
        if self.loss == "simpo":
            rewards = self._log_probs(self.backbone, texts)  # (2 B,)
            rewards = rewards / rewards.new_tensor([len(text.actions) for text in texts])
        else:
            rewards = self._log_ratios(texts)  # (2 B,)
        chosen, rejected = rewards.unflatten(0, (2, -1))  # (B,) each
        label, margin = torch.tensor([row[2:] for row in rows], device=rewards.device).T  # (B,) each
        if torch.is_grad_enabled():  # half of those without a difference, as before the first step
            self._right += (0.5 + 0.5 * (chosen - rejected).detach().sign() * (label - 0.5).sign()).tolist()
        label = smoothed(label, self.label_smoothing, self.loss == "robust")
        return preference_loss((chosen, rejected), self.beta, label, margin + self.gamma, self.loss == "ipo")

    def _note(self) -> str:
        right, number = self.engine.ranks.sums([sum(self._right), len(self._right)])
        self._right = []
        return f"{super()._note()} accuracy {right / number:.0%}"


def preference_loss(
    rewards: tuple[torch.Tensor, torch.Tensor], beta: float, label: torch.Tensor, margin: torch.Tensor | None = None, squared: bool = False
) -> torch.Tensor:
    """Return the mean loss of DPO, or if it is squared that of IPO, see `DPO`, a scalar.

    Args:
        rewards: Implicit rewards over beta, mostly log(pi / pi_ref), of the chosen and the rejected texts, shape (B,) each.
        beta: Their coefficient.
        label: Probability that the chosen text is the better one, shape (B,).
        margin: Shape (B,); IPO has none.
        squared: Whether it is IPO's.
    """
    chosen, rejected = rewards
    if squared:
        return (chosen - rejected - (2 * label - 1) / (2 * beta)).square().mean()
    return bradley_terry_loss(beta * chosen, beta * rejected, label=label, margin=margin)


def smoothed(label: torch.Tensor, share: float, robust: bool) -> torch.Tensor:
    """Return the probabilities that labels show the chosen text as the better one after a share of them is turned round; robust: before."""
    return (label - share) / (1 - 2 * share) if robust else label * (1 - 2 * share) + share


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
