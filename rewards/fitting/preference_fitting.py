"""Fitting a reward model to preferences or rankings."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from textrl_env.reward_warnings import RewardWarning
from textrl_env.tokenizer import FileTokenizer, check_same_tokens

from ..models.lora import add_adapters, merge_adapters
from ..models.preference_model import PreferenceRewardModel
from ..models.scorers import PreferenceNetwork, build_trunk
from ..models.suited_rate import suited_rate
from ..preferences.label_consensus import warn_of_disagreement
from ..preferences.leak_free_split import Split, hold_out, independent_units
from ..preferences.preference import Preference, Ranking
from ..utils.devices import get_device, seeded
from ..utils.intervals import Rate, clustered_by, wilson, wins
from .calibration import fit_scales, fit_temperature, reliability
from .comparisons import AnnotatorScales, Comparisons, PairRows, RankingRows
from .engines import FittingEngine
from .losses import blend_weights, bradley_terry_loss
from .scorer_training import fit_scorer

_WIDE = 0.3  # of a 95% interval: 40 held-out comparisons tell an accuracy to about 15 points either way
_NGRAM_RECIPE = (6, 32, 0.03, 0.0)  # epochs, batch size, rate, decay; batches of 128 cost 0.01 of accuracy on reviews

_RATE = 1e-3  # of a trunk of up to a million parameters, with fresh weights or learned ones
DEFAULT_TRUNK: Mapping[str, Any] = dict(
    model_type="llama", hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit went.

    Attributes:
        n_train: Comparisons trained on.
        n_held_out: Comparisons held out, which share no text with those trained on; they chose the epoch and the blend, so their accuracy
            is slightly flattering.
        n_dropped: Comparisons on neither side, because they have a text or a prompt of each, see `leak_free_split.hold_out`.
        train_accuracy: Pair accuracy on at most 1,000 training comparisons, in [0, 1]; ties are left out.
        held_out_accuracy: Pair accuracy on the held-out comparisons, in [0, 1]; ties are left out.  NaN where nothing was held out, as the
            loss and the calibration error are then.
        held_out_loss: Bradley-Terry loss on their pairs, in nats.
        losses: Mean training loss per epoch, in nats, of each part.
        best_epochs: The epoch kept of each part, from 1.
        blend: Weight of each part.
        seconds: Wall time.
        held_out_interval: 95% interval of the held-out accuracy, whose unit is the prompt (`intervals.clustered`); where the split could
            not keep prompts apart, or there is only one, it is the comparison, and the interval says nothing of other prompts.
        calibration_error: Expected calibration error of the held-out pairs, in [0, 1].
        temperature: Divide score differences by it, and their sigmoid predicts the held-out pairs best; 1 where nothing was held out.
        prompts_apart: Whether no prompt is on both sides of the split; see `leak_free_split.hold_out`.
        annotator_scales: With `scale_by`, how much each group heeds the score, measured on the held-out pairs; their geometric
            mean is 1.
    """

    n_train: int
    n_held_out: int
    n_dropped: int
    train_accuracy: float
    held_out_accuracy: float
    held_out_loss: float
    losses: Mapping[str, tuple[float, ...]]
    best_epochs: Mapping[str, int]
    blend: Mapping[str, float]
    seconds: float
    held_out_interval: tuple[float, float]
    calibration_error: float
    temperature: float
    prompts_apart: bool
    annotator_scales: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        low, high = self.held_out_interval
        interval = f"{self.held_out_accuracy:.1%} [{low:.1%}, {high:.1%}]"
        held = f"{interval} of {self.n_held_out} held out" if self.n_held_out else "nothing held out"
        dropped = f", {self.n_dropped} on neither side, for they share texts or prompts with both" if self.n_dropped else ""
        return f"agrees with {self.train_accuracy:.1%} of {self.n_train} comparisons trained on, {held}{dropped}"


def fit_preference_model(
    preferences: Sequence[Preference] | Sequence[Ranking],
    *,
    tokenizer: Any,
    trunk: str | Path | Mapping[str, Any] | None = DEFAULT_TRUNK,
    ngram_buckets: int = 65536,
    max_tokens: int = 128,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    dropout: float = 0.1,
    lora: Mapping[str, Any] | None = None,
    micro_batch_size: int = 0,
    smoothing: float = 0.0,
    scale_by: Literal["annotator", "group"] | None = None,
    patience: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: Callable[[str, int, int, float], None] | None = None,
    engine: FittingEngine | None = None,
) -> tuple[PreferenceRewardModel, FitReport]:
    """Fit a reward model to preferences with the Bradley-Terry loss, or to rankings with the Plackett-Luce loss.

    Two scorers are fitted one after the other, then blended by their loss on held-out pairs.  The n-grams learn from
    little data what single words say; the trunk learns what their order says.  Fitted jointly, the trunk memorises the
    pairs before the n-grams have learned anything (0.75 instead of 0.82 on sentences of real reviews).

    Labels below 1 and margins of the preferences enter the loss, see `bradley_terry_loss`.  A `RewardWarning` says where annotators who
    compared the same pairs agree little, where comparisons are dropped or none can be held out because texts recur in them, and where too
    few are held out to tell how good the model is.

    Args:
        preferences: At least 10, of one kind; some hundreds before the held-out accuracy says much.
        tokenizer: The model's own, or what `FileTokenizer` takes; saved with it.
        trunk: A Hugging Face model whose weights to start from, as a folder, `.gguf` file or hub id (its language-model head is
            dropped; pass the tokenizer it was trained with), or the config of a new one, or None for n-grams alone.
        ngram_buckets: Hashed token pairs of the n-gram scorer; 0 for the trunk alone.
        max_tokens: Longest text read, in tokens; longer texts lose their beginning.
        epochs: Passes of the trunk over the pairs; the n-grams always take 6, which cost a second.
        batch_size: Comparisons per optimiser step of the trunk.
        learning_rate: Peak rate of the trunk; by default 1e-3 up to a million parameters, and what suits larger ones and
            adapters, see `suited_rate`.  The n-grams have their own, 0.03.
        weight_decay: AdamW's, for the trunk.
        dropout: On the trunk's embeddings and pooled state while fitting, in [0, 1); it is off while scoring.
        lora: Settings of `peft.LoraConfig`, such as `{"r": 8}`: only adapters of the trunk and the head are trained, and the
            adapters are folded into the weights at the end.
        micro_batch_size: Comparisons that go through the trunk at once; their gradients add up to that of the batch.  0: all of it.
        smoothing: Share of comparisons taken to be labelled wrongly, in [0, 0.5): label y becomes
            (1 - smoothing) y + smoothing (1 - y).
        scale_by: Give each annotator, or each group, a scale of its own on the score, see `comparisons.AnnotatorScales`: those
            who choose at random then count less.  Comparisons without a name share one.
        patience: End a part's fit after this many epochs in a row without a better one; None: never.
        validation: Share held out, in [0, 1); comparisons that share texts or prompts stay together, see `leak_free_split.hold_out`.
            With 0 all are trained on, the last epoch is kept, the two scorers count alike, and nothing is measured.
        seed: Of initial weights, split, order and dropout.  The global generators are left as they were.
        device: Where to fit, see `rewards.utils.devices.get_device`; the model stays there.
        progress: Called as `progress(part, step, steps, loss)` after every step.
        engine: Processes that fit one model together, as `agents.distributed.engine.engine_of` returns it; all of them call this with the
            same arguments.  None: this process alone.

    Raises:
        ValueError: Too few comparisons, an argument out of range, an engine that keeps shards, or a trunk that does not fit the tokenizer.
        TypeError: Preferences and rankings are mixed.
        ImportError: `lora` needs peft.
    """
    started, device = time.perf_counter(), get_device(device)
    _check(len(preferences), epochs, batch_size, dropout, validation, trunk is not None or ngram_buckets > 0, micro_batch_size)
    if engine is not None and engine.sharded:
        raise ValueError("a reward model scores with all its weights in each process: fit it without shards")
    check_same_tokens(trunk, tokenizer, "trunk")
    _check_options(preferences, smoothing, patience, scale_by, lora is not None and trunk is None)
    if patience is not None and not validation:
        raise ValueError(f"patience={patience} needs held-out comparisons, and validation=0 holds none out: leave one of them out")
    warn_of_disagreement([p for p in preferences if isinstance(p, Preference)])
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, device):
        tokenizer = FileTokenizer.of(tokenizer)
        body = None if trunk is None else build_trunk(trunk, tokenizer.vocab_size, max_tokens)
        network = PreferenceNetwork(tokenizer.vocab_size, ngram_buckets, body, dropout)
        model = PreferenceRewardModel(network, tokenizer, max_tokens=max_tokens, device=device)
        order = torch.randperm(len(preferences), generator=generator).tolist()
        split = (hold_out(preferences, order, validation) if validation else None) or Split([], order, 0, True)
        names, group = _groups(preferences, scale_by)
        train, held_out = (
            _rows(model, [preferences[i] for i in side], group[side], s) if side else None
            for side, s in ((split.kept, smoothing), (split.held, 0.0))
        )
        assert train is not None
        pairs = None if held_out is None else held_out.pairs()
        trunk_rate = _suited(body, lora is not None) if learning_rate is None else learning_rate
        recipes = {"ngrams": _NGRAM_RECIPE, "trunk": (epochs, batch_size, trunk_rate, weight_decay)}
        losses, best_epochs, differences = {}, {}, []
        for name, part in network.parts.items():
            passes, batch, rate, decay = recipes[name]
            part.requires_grad_(True)
            if name == "trunk" and lora is not None:
                add_adapters(part.get_submodule("trunk"), lora)
            scales = AnnotatorScales(len(names)).to(device) if names else None
            curve, best_epochs[name] = fit_scorer(
                part, train, held_out, epochs=passes, batch_size=batch, learning_rate=rate, weight_decay=decay,
                generator=generator, patience=patience, scales=scales, micro_batch_size=micro_batch_size if name == "trunk" else 0,
                progress=None if progress is None else partial(progress, name), engine=engine,
            )  # fmt: skip
            if name == "trunk" and lora is not None:
                merge_adapters(part.get_submodule("trunk"))
            losses[name] = tuple(curve)
            part.requires_grad_(False)
            if pairs is not None:
                differences.append(_differences(part, pairs, device, scales))
    if len(network.parts) == 2:
        network.blend.fill_(0.5)
    if len(differences) == 2 and pairs is not None:
        network.blend.copy_(blend_weights(torch.stack(differences, 1), label=pairs.label, margin=pairs.margin))
    sample = train.first(1000).evaluate(network, 64, device)
    blend = dict(zip(network.parts, network.blend.tolist(), strict=True))
    measured, accuracy = _measure(network, pairs, device, names, _units([preferences[i] for i in split.held], split.prompts_apart))
    if validation:
        _warn_of_split(split, len(preferences), accuracy)
    return model, FitReport(
        len(split.kept), len(split.held), split.dropped, sample[0], **measured, losses=losses, best_epochs=best_epochs,
        blend=blend, seconds=time.perf_counter() - started, prompts_apart=split.prompts_apart,
    )  # fmt: skip


def _warn_of_split(split: Split, number: int, rate: Rate) -> None:
    """Warn where the held-out side cost comparisons, does not exist, or says next to nothing."""
    if not split.held:
        message = (
            f"nothing is held out: {number} comparisons hang together by texts that they share, and every split has some on both sides; "
            "all are trained on, and nothing is measured. Give comparisons of further texts, or validation=0 if this is meant"
        )
    elif rate.low <= 0.5 or rate.high - rate.low > _WIDE:
        found = "does not tell the model from chance" if rate.low <= 0.5 else "tells little"
        message = f"the held-out accuracy {found}: {rate} of {rate.num} comparisons; give more of them, or a larger validation="
    else:
        message = ""
    if split.dropped:
        cost = f"{split.dropped} of {number} comparisons have a text or a prompt of either side of the split, and are on none; "
        message = f"{cost}validation=0 trains on all and measures nothing. {message}".strip()
    if message:
        warnings.warn(message, RewardWarning, stacklevel=3)


def _suited(trunk: nn.Module | None, adapters: bool) -> float:
    """Return the trunk's learning rate by default."""
    size = 0 if trunk is None else sum(parameter.numel() for parameter in trunk.parameters())
    return suited_rate(_RATE, size, adapters) if size else 0.0


def _check(n: int, epochs: int, batch_size: int, dropout: float, validation: float, any_part: bool, micro_batch_size: int) -> None:
    if n < 10:
        raise ValueError(f"{n} preference(s): give at least 10, better a few hundred")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}: both must be at least 1")
    if micro_batch_size < 0:
        raise ValueError(f"micro_batch_size={micro_batch_size}: must be at least 1, or 0 for the whole batch")
    if not 0 <= dropout < 1 or not 0 <= validation < 1:
        raise ValueError(f"dropout={dropout} and validation={validation} must be in [0, 1)")
    if not any_part:
        raise ValueError("trunk=None and ngram_buckets=0 leave nothing to fit: give one")


def _check_options(
    preferences: Sequence[Preference | Ranking], smoothing: float, patience: int | None, scale_by: str | None, lora_alone: bool
) -> None:
    if len({type(p) for p in preferences}) > 1:
        raise TypeError("preferences and rankings are mixed: give one kind, read_preferences makes pairs of rankings")
    if smoothing and isinstance(preferences[0], Ranking):
        raise ValueError(f"smoothing={smoothing} is for pairs, and these are rankings: leave it at 0")
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing={smoothing} must be in [0, 0.5)")
    if patience is not None and patience < 1:
        raise ValueError(f"patience={patience} must be at least 1, or None")
    if scale_by not in (None, "annotator", "group"):
        raise ValueError(f"scale_by={scale_by!r} must be 'annotator', 'group' or None")
    if lora_alone:
        raise ValueError("lora needs a trunk to put adapters on: give trunk=")


def _groups(preferences: Sequence[Preference | Ranking], scale_by: str | None) -> tuple[list[str], Tensor]:
    """Return the names of the annotators' groups, none if nobody asks, and the number of each comparison's, shape (N,)."""
    said = [str(getattr(p, scale_by) or "(none)") if scale_by else "" for p in preferences]
    names = sorted(set(said))
    number = {name: i for i, name in enumerate(names)}
    return names if scale_by else [], torch.tensor([number[name] for name in said])


def _rows(model: PreferenceRewardModel, items: Sequence[Preference | Ranking], group: Tensor | None, smoothing: float) -> Comparisons:
    if isinstance(items[0], Ranking):
        rankings = cast(Sequence[Ranking], items)
        return RankingRows([model.encode([r.prompt + text for text in r.responses]) for r in rankings], group)
    pairs = cast(Sequence[Preference], items)
    label = torch.tensor([p.label for p in pairs])  # (n,)
    margin = torch.tensor([p.margin for p in pairs])  # (n,)
    return PairRows(
        model.encode([p.prompt + p.chosen for p in pairs]),
        model.encode([p.prompt + p.rejected for p in pairs]),
        label if (label < 1).any() else None,
        margin if margin.any() else None,
        group,
        smoothing,
    )


def _differences(part: nn.Module, pairs: PairRows, device: torch.device, scales: AnnotatorScales | None) -> Tensor:
    """Return score(chosen) - score(rejected) by one part, times the scale of each pair's annotators, shape (N,)."""
    chosen, rejected = pairs.scores(part, 64, device)
    if scales is None or pairs.group is None:
        return chosen - rejected
    return (chosen - rejected) * scales(pairs.group.to(device)).detach().cpu()


def _units(items: Sequence[Preference | Ranking], prompts_apart: bool) -> list[Hashable]:
    """Return the unit of each pair of some comparisons: its prompt if none of them was trained on, else what shares its texts."""
    units = independent_units(items if prompts_apart else [replace(one, prompt="") for one in items])
    counts = [math.comb(len(one.responses), 2) if isinstance(one, Ranking) else 1 for one in items]
    return [unit for unit, count in zip(units, counts, strict=True) for _ in range(count)]


def _measure(
    network: PreferenceNetwork, pairs: PairRows | None, device: torch.device, names: Sequence[str], units: Sequence[Hashable]
) -> tuple[dict[str, Any], Rate]:
    """Return what the held-out pairs say of the finished network, as fields of `FitReport`, and its accuracy."""
    if pairs is None:
        rate = wilson(0, 0)
        unknown = dict.fromkeys(("held_out_accuracy", "held_out_loss", "calibration_error"), math.nan)
        return {**unknown, "held_out_interval": (rate.low, rate.high), "temperature": 1.0}, rate
    chosen, rejected = pairs.scores(network, 64, device)
    accuracy, decided = pairs.accuracy(chosen, rejected), pairs.decided().nonzero().flatten()
    margins = (chosen - rejected).double().numpy()
    rate = clustered_by(wins(margins[decided.numpy()]), [units[i] for i in decided.tolist()])
    labels = np.ones(len(pairs)) if pairs.label is None else pairs.label.double().numpy()
    scales = fit_scales(margins, labels, pairs.group.numpy(), len(names)) if names and pairs.group is not None else []
    return {
        "held_out_accuracy": accuracy,
        "held_out_loss": bradley_terry_loss(chosen, rejected, label=pairs.label).item(),
        "held_out_interval": (rate.low, rate.high),
        "calibration_error": reliability(margins, labels).error,
        "temperature": fit_temperature(margins, labels),
        "annotator_scales": dict(zip(names, scales, strict=True)),
    }, rate
