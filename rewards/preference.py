"""A reward model learned from preferences: transformer trunk with a scalar head, plus a linear n-gram scorer."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textrl_env.episode import Episode
from textrl_env.tokenizer import FileTokenizer

from .bradley_terry import NgramScorer

_CONFIG, _WEIGHTS, _TOKENIZER = "preference.json", "model.safetensors", "tokenizer.json"
_FORMAT = 1
# keys of a config that could make transformers fetch or run code
_UNSAFE_KEYS = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config")


class TrunkScorer(nn.Module):
    """A transformer without its language-model head, masked mean of its hidden states, a linear head.

    Args:
        trunk: A transformers base model (`AutoModel`) that returns `last_hidden_state`.
        dropout: Probability used on the embeddings and on the pooled state while training, in [0, 1).
    """

    def __init__(self, trunk: Any, dropout: float) -> None:
        super().__init__()
        width = trunk.config.hidden_size
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1))  # Stiennon et al. 2020
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores, shape (B,), from token ids, shape (B, T), and a mask that is True on real tokens, (B, T)."""
        embedded = self.dropout(self.trunk.get_input_embeddings()(ids))  # (B, T, D)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # (B, T); padding is on the right
        output = self.trunk(inputs_embeds=embedded, attention_mask=mask.long(), position_ids=positions)
        weight = mask / mask.sum(1, keepdim=True)  # (B, T)
        pooled = (output.last_hidden_state * weight[..., None]).sum(1)  # (B, D)
        return self.head(self.dropout(pooled)).squeeze(-1)  # (B,)


class PreferenceNetwork(nn.Module):
    """A blend of an n-gram scorer and a trunk scorer; either may be absent.

    Attributes:
        parts: The scorers by name, `"ngrams"` and `"trunk"`.
        blend: Weight of each part in that order, shape (number of parts,).
    """

    def __init__(self, vocab_size: int, ngram_buckets: int, trunk: Any | None, dropout: float) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        if ngram_buckets:
            self.parts["ngrams"] = NgramScorer(vocab_size, ngram_buckets)
        if trunk is not None:
            self.parts["trunk"] = TrunkScorer(trunk, dropout)
        self.blend: Tensor
        self.register_buffer("blend", torch.ones(len(self.parts)))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores, shape (B,), from token ids, shape (B, T), and a mask that is True on real tokens, (B, T)."""
        scores = torch.stack([part(ids, mask) for part in self.parts.values()], 1)  # (B, parts)
        return scores @ self.blend  # (B,)


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
        network: PreferenceNetwork,
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
            raise ValueError(f"the {len(raw)} episodes all score {mean:.6g} (deviation {deviation:.2g}): give texts that differ")
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
        if path.exists() and not (path / _CONFIG).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"{path} exists and holds no reward model: choose another folder")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
            save_file(weights, temporary / _WEIGHTS)
            self.tokenizer.backend.save(str(temporary / _TOKENIZER))
            (temporary / _CONFIG).write_text(json.dumps(self._config(), indent=2), encoding="utf-8")
            if path.exists():
                old = temporary.with_suffix(".old")
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

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
                trunk = None if config["trunk"] is None else build_trunk(config["trunk"])
                network = PreferenceNetwork(tokenizer.vocab_size, config["ngram_buckets"], trunk, config["dropout"])
            network.load_state_dict(load_file(path / _WEIGHTS))
            scale = {key: config[key] for key in ("max_tokens", "gain", "bias")}
            return cls(network, tokenizer, **scale, batch_size=batch_size, device=device)
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} is a damaged reward model ({type(error).__name__}: {error}): fit and save it again") from error

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids the network reads for each text: its last `max_tokens - 1` ids and the end-of-text id."""
        end = self.tokenizer.eos_token_id
        rows = self.tokenizer.encode_batch(texts)
        return [np.asarray([*row[-(self.max_tokens - 1) :], end], np.int64) for row in rows]

    def _raw(self, episodes: Sequence[Episode]) -> np.ndarray:
        rows = self.encode([e.prompt + e.response for e in episodes])
        return score_rows(self.network, rows, self.batch_size, self.device).double().numpy()  # (len(episodes),)

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


def build_trunk(config: Mapping[str, Any]) -> Any:
    """Return a randomly initialised base model of transformers from plain data, such as `{"model_type": "llama", ...}`.

    Raises:
        ValueError: `model_type` is missing or unknown to transformers.
    """
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in config.items() if key not in _UNSAFE_KEYS}
    if "model_type" not in settings:
        raise ValueError(f"the trunk's config needs 'model_type', such as 'llama'; it has {sorted(config)}")
    return AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32, trust_remote_code=False)


def pad(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded ids, shape (B, T), int64, and the mask of real tokens, shape (B, T), bool."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)  # (B, T)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def score_rows(network: nn.Module, rows: Sequence[np.ndarray], batch_size: int, device: torch.device) -> Tensor:
    """Score token id rows, neighbours in length together, with dropout off.

    Returns:
        Scores in the order of `rows`, shape (len(rows),), float32, on the CPU.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.zeros(len(rows))  # (N,)
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores[batch] = network(*pad([rows[i] for i in batch], device)).float().cpu()
    return scores
