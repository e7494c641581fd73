"""A reward model learned from preferences: transformer trunk with a scalar head, plus a linear n-gram scorer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textrl_env.episode import Episode
from textrl_env.tokenizer import FileTokenizer

from . import bradley_terry as bt
from .data import Preference, new_folder

_CONFIG, _WEIGHTS, _TOKENIZER = "preference.json", "model.safetensors", "tokenizer.json"
_FORMAT = 1
_NGRAM_RECIPE = (6, 32, 0.03, 0.0)  # epochs, batch size, rate, decay; batches of 128 cost 0.01 of accuracy on reviews

DEFAULT_TRUNK: Mapping[str, Any] = dict(
    model_type="llama", hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
)


class PreferenceRewardModel:
    """Scores prompt + response with a network fitted to preferences: `gain * network(text) + bias`.

    Texts are tokenised by the model's own tokenizer, cut from the left to `max_tokens` with the end-of-text token.
    `fit_preference_model` makes one, `load` reads one back.

    Args:
        network: The scorer.
        tokenizer: Its own tokenizer, which need not be the policy's.
        max_tokens: Longest text it reads, in tokens, the end-of-text token included.
        gain: Factor on the network's output; `normalise` sets it.
        bias: Summand after the factor.
        batch_size: Texts scored at once.
        device: Where the network lives.
    """

    def __init__(
        self,
        network: bt.PreferenceNetwork,
        tokenizer: FileTokenizer,
        *,
        max_tokens: int,
        gain: float = 1.0,
        bias: float = 0.0,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
    ) -> None:
        if max_tokens < 2 or batch_size < 1:
            raise ValueError(f"max_tokens={max_tokens}, batch_size={batch_size}: need at least 2 and 1")
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.gain, self.bias = float(gain), float(bias)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one score per episode, in order."""
        return (self.gain * self._raw(episodes) + self.bias).tolist()

    def normalise(self, episodes: Sequence[Episode]) -> None:
        """Set gain and bias so that the scores of `episodes` have mean 0 and variance 1 (Ziegler et al. 2019).

        With mu and sigma of the network's output on them, gain = 1 / sigma and bias = -mu / sigma.  Use a few hundred
        samples of the reference policy: then the KL coefficient means the same for every reward model.

        Raises:
            ValueError: Fewer than 2 episodes, or all score the same.
        """
        if len(episodes) < 2:
            raise ValueError(f"normalise got {len(episodes)} episode(s): give at least 2, better a few hundred")
        raw = self._raw(episodes)
        mean, deviation = float(raw.mean()), float(raw.std())
        if not deviation > 1e-6 * max(1.0, abs(mean)):
            raise ValueError(f"the {len(raw)} episodes all score {mean:.6g}: give texts that differ")
        self.gain, self.bias = 1 / deviation, -mean / deviation

    def save(self, path: str | Path) -> None:
        """Write a folder with config, weights and tokenizer.

        It is written under a temporary name and renamed, so that a half-written model never bears the name.  A folder
        that holds a saved model is replaced.

        Raises:
            FileExistsError: `path` exists and is something else than a saved model or an empty folder.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.exists() and not (path / _CONFIG).is_file() and (path.is_file() or any(path.iterdir())):
            raise FileExistsError(f"{path} exists and holds no reward model: choose another folder")
        with new_folder(path) as folder:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
            save_file(weights, folder / _WEIGHTS)
            self.tokenizer.backend.save(str(folder / _TOKENIZER))
            (folder / _CONFIG).write_text(json.dumps(self._config(), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu", batch_size: int = 64) -> PreferenceRewardModel:
        """Read a folder that `save` wrote.  Nothing in it is run as code.

        Raises:
            FileNotFoundError: The folder, or a file in it, is missing.
            ValueError: A file is damaged, or the files do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(path)
        for name in (_CONFIG, _WEIGHTS, _TOKENIZER):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path} is no complete reward model: {name} is missing; fit and save it again")
        try:
            config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
            if config["format"] != _FORMAT:
                raise ValueError(f"format {config['format']!r}, this version reads {_FORMAT}")
            tokenizer = FileTokenizer(path / _TOKENIZER, eos_token=config["eos_token"])
            with torch.random.fork_rng(devices=[]):  # the initial weights drawn here are thrown away
                vocab, longest = tokenizer.vocab_size, config["max_tokens"]
                trunk = None if config["trunk"] is None else bt.build_trunk(config["trunk"], vocab, longest)
                network = bt.PreferenceNetwork(vocab, config["ngram_buckets"], trunk, config["dropout"])
            network.load_state_dict(load_file(path / _WEIGHTS))
            gain, bias = float(config["gain"]), float(config["bias"])
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} is a damaged reward model ({error!r}): fit and save it again") from error
        scale = {"gain": gain, "bias": bias}
        return cls(network, tokenizer, max_tokens=longest, **scale, batch_size=batch_size, device=device)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids the network reads: each text's last `max_tokens - 1` ids and the end-of-text id."""
        end = self.tokenizer.eos_token_id
        kept = self.max_tokens - 1
        return [np.asarray([*row[-kept:], end], np.int64) for row in self.tokenizer.encode_batch(texts)]

    def _raw(self, episodes: Sequence[Episode]) -> np.ndarray:
        rows = self.encode([e.prompt + e.response for e in episodes])
        return bt.score_rows(self.network, rows, self.batch_size, self.device).double().numpy()  # (len(episodes),)

    def _config(self) -> dict[str, Any]:
        parts: Mapping[str, Any] = dict(self.network.parts.items())
        trunk, ngrams = parts.get("trunk"), parts.get("ngrams")
        return {
            "format": _FORMAT,
            "gain": self.gain,
            "bias": self.bias,
            "max_tokens": self.max_tokens,
            "pooling": "mean",
            "eos_token": self.tokenizer.eos_token,
            "dropout": trunk.dropout.p if trunk else 0.0,
            "ngram_buckets": ngrams.buckets if ngrams else 0,
            "trunk": json.loads(trunk.trunk.config.to_json_string()) if trunk else None,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> PreferenceRewardModel:
        """Return itself: gymnasium deep-copies the arguments of every `make`."""
        return self

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.network.parameters())
        parts = "+".join(self.network.parts)
        return f"PreferenceRewardModel({parts}, {size} parameters, gain={self.gain:.4g}, bias={self.bias:.4g})"


def load_preference_reward(path: str | Path, **kwargs: Any) -> PreferenceRewardModel:
    """Build the registry's `preference`: the model saved in the folder `path`; see `PreferenceRewardModel.load`."""
    return PreferenceRewardModel.load(path, **kwargs)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit went.

    Attributes:
        n_train: Pairs trained on.
        n_held_out: Pairs held out; they chose the epoch and the blend, so their accuracy is slightly flattering.
        train_accuracy: Pair accuracy on at most 1,000 training pairs, in [0, 1].
        held_out_accuracy: Pair accuracy on the held-out pairs, in [0, 1].
        held_out_loss: Bradley-Terry loss on them, in nats.
        losses: Mean training loss per epoch, in nats, of each part.
        best_epochs: The epoch kept of each part, from 1.
        blend: Weight of each part.
        seconds: Wall time.
    """

    n_train: int
    n_held_out: int
    train_accuracy: float
    held_out_accuracy: float
    held_out_loss: float
    losses: Mapping[str, tuple[float, ...]]
    best_epochs: Mapping[str, int]
    blend: Mapping[str, float]
    seconds: float


def fit_preference_model(
    preferences: Sequence[Preference],
    *,
    tokenizer: FileTokenizer,
    trunk: str | Path | Mapping[str, Any] | None = DEFAULT_TRUNK,
    ngram_buckets: int = 65536,
    max_tokens: int = 128,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    dropout: float = 0.1,
    validation: float = 0.1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] | None = None,
) -> tuple[PreferenceRewardModel, FitReport]:
    """Fit a reward model to preferences with the Bradley-Terry loss.

    Two scorers are fitted one after the other, then blended by their loss on held-out pairs.  The n-grams learn from
    little data what single words say; the trunk learns what their order says.  Fitted jointly, the trunk memorises the
    pairs before the n-grams have learned anything (0.75 instead of 0.82 on sentences of real reviews).

    Args:
        preferences: At least 10 pairs.  If texts recur in many pairs, the held-out accuracy is flattering.
        tokenizer: The model's own; saved with it.
        trunk: A folder with a Hugging Face model whose weights to start from (its language-model head is dropped;
            pass the tokenizer it was trained with), or the config of a new one, or None for n-grams alone.
        ngram_buckets: Hashed token pairs of the n-gram scorer; 0 for the trunk alone.
        max_tokens: Longest text read, in tokens; longer texts lose their beginning.
        epochs: Passes of the trunk over the pairs; the n-grams always take 6, which cost a second.
        batch_size: Pairs per optimiser step of the trunk.
        learning_rate: Peak rate of the trunk; the n-grams have their own, 0.03.
        weight_decay: AdamW's, for the trunk.
        dropout: On the trunk's embeddings and pooled state while fitting, in [0, 1); it is off while scoring.
        validation: Share of the pairs held out, in (0, 1).
        seed: Of initial weights, split, order and dropout.  The global generators are left as they were.
        device: Where to fit; the model stays there.
        progress: Called as `progress(part, step, steps, loss)` after every step.

    Raises:
        ValueError: Too few pairs, an argument out of range, or a trunk that does not fit the tokenizer.
    """
    started, device = time.perf_counter(), torch.device(device)
    _check(len(preferences), epochs, batch_size, dropout, validation, trunk is not None or ngram_buckets > 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        body = None if trunk is None else bt.build_trunk(trunk, tokenizer.vocab_size, max_tokens)
        network = bt.PreferenceNetwork(tokenizer.vocab_size, ngram_buckets, body, dropout)
        model = PreferenceRewardModel(network, tokenizer, max_tokens=max_tokens, device=device)
        train, held_out = _split(model, preferences, validation, generator)
        recipes = {"ngrams": _NGRAM_RECIPE, "trunk": (epochs, batch_size, learning_rate, weight_decay)}
        losses, best_epochs, margins = {}, {}, []
        for name, part in network.parts.items():
            passes, pairs, rate, decay = recipes[name]
            curve, best_epochs[name] = bt.fit_scorer(
                part.requires_grad_(True), train, held_out, epochs=passes, batch_size=pairs, learning_rate=rate,
                weight_decay=decay, generator=generator, progress=None if progress is None else partial(progress, name),
            )  # fmt: skip
            losses[name] = tuple(curve)
            chosen, rejected = held_out.scores(part.requires_grad_(False), 64, device)
            margins.append(chosen - rejected)
    if len(margins) == 2:
        network.blend.copy_(bt.blend_weights(torch.stack(margins, 1)))
    chosen, rejected = held_out.scores(network, 64, device)
    sample = bt.PairRows(train.chosen[:1000], train.rejected[:1000]).scores(network, 64, device)
    return model, FitReport(
        len(train), len(held_out), bt.pair_accuracy(*sample), bt.pair_accuracy(chosen, rejected),
        bt.bradley_terry_loss(chosen, rejected).item(), losses, best_epochs,
        dict(zip(network.parts, network.blend.tolist(), strict=True)), time.perf_counter() - started,
    )  # fmt: skip


def _check(n: int, epochs: int, batch_size: int, dropout: float, validation: float, any_part: bool) -> None:
    if n < 10:
        raise ValueError(f"{n} preference(s): give at least 10, better a few hundred")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}: both must be at least 1")
    if not 0 <= dropout < 1 or not 0 < validation < 1:
        raise ValueError(f"dropout={dropout} must be in [0, 1) and validation={validation} in (0, 1)")
    if not any_part:
        raise ValueError("trunk=None and ngram_buckets=0 leave nothing to fit: give one")


def _split(
    model: PreferenceRewardModel, preferences: Sequence[Preference], share: float, generator: torch.Generator
) -> tuple[bt.PairRows, bt.PairRows]:
    pairs = [preferences[i] for i in torch.randperm(len(preferences), generator=generator).tolist()]
    chosen = model.encode([p.prompt + p.chosen for p in pairs])
    rejected = model.encode([p.prompt + p.rejected for p in pairs])
    n = min(max(1, round(share * len(pairs))), len(pairs) - 1)
    return bt.PairRows(chosen[n:], rejected[n:]), bt.PairRows(chosen[:n], rejected[:n])
