"""A reward model learned from preferences: transformer trunk with a scalar head, plus a linear n-gram scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_no_pictures
from textrl_env.tokenizer import FileTokenizer
from textrl_env.utils.files import new_folder

from ..utils.base_reward import BaseReward
from ..utils.devices import get_device
from .score_memo import TextCache
from .scorers import PreferenceNetwork, build_trunk, score_rows

_CONFIG, _WEIGHTS, _TOKENIZER = "preference.json", "model.safetensors", "tokenizer.json"
_FORMAT = 1
_DTYPES = ("float32", "bfloat16")


class PreferenceRewardModel(BaseReward):
    """Scores prompt + response with a network fitted to preferences: `gain * network(text) + bias`.

    Texts are tokenised by the model's own tokenizer, cut from the left to `max_tokens` with the end-of-text token.
    `fit_preference_model` makes one, `load` reads one back.  A text that comes again is not read again.

    Args:
        network: The scorer.
        tokenizer: Its own tokenizer, which need not be the policy's.
        max_tokens: Longest text it reads, in tokens, the end-of-text token included.
        gain: Factor on the network's output; `normalise` sets it.
        bias: Summand after the factor.
        batch_size: Texts scored at once.
        device: Where the network lives, see `rewards.utils.devices.get_device`.
        dtype: Arithmetic of the transformer, `"float32"` or `"bfloat16"`, which is faster where the processor has it.

    Raises:
        ValueError: An argument is out of range.
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
        device: str | torch.device = "auto",
        dtype: str = "float32",
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(_DTYPES)}")
        if max_tokens < 2 or batch_size < 1:
            raise ValueError(f"max_tokens={max_tokens}, batch_size={batch_size}: need at least 2 and 1")
        self.device, self.dtype = get_device(device), dtype
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.gain, self.bias = float(gain), float(bias)
        self._cache = TextCache()

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the prompts have pictures, which this model cannot see."""
        check_no_pictures("preference", prompts)

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
    def load(
        cls, path: str | Path, *, device: str | torch.device = "auto", batch_size: int = 64, dtype: str = "float32"
    ) -> PreferenceRewardModel:
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
                trunk = None if config["trunk"] is None else build_trunk(config["trunk"], vocab, longest)
                network = PreferenceNetwork(vocab, config["ngram_buckets"], trunk, config["dropout"])
            network.load_state_dict(load_file(path / _WEIGHTS))
            gain, bias = float(config["gain"]), float(config["bias"])
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} is a damaged reward model ({error!r}): fit and save it again") from error
        scale = {"gain": gain, "bias": bias}
        return cls(network, tokenizer, max_tokens=longest, **scale, batch_size=batch_size, device=device, dtype=dtype)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids the network reads: each text's last `max_tokens - 1` ids and the end-of-text id."""
        end = self.tokenizer.eos_token_id
        kept = self.max_tokens - 1
        return [np.asarray([*row[-kept:], end], np.int64) for row in self.tokenizer.encode_batch(texts)]

    def _raw(self, episodes: Sequence[Episode]) -> np.ndarray:
        return np.array(self._cache.complete([e.prompt + e.response for e in episodes], self._read))  # (len(episodes),)

    def _read(self, texts: list[str]) -> list[float]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return score_rows(self.network, self.encode(texts), self.batch_size, self.device).tolist()

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

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.network.parameters())
        parts = "+".join(self.network.parts)
        return f"PreferenceRewardModel({parts}, {size} parameters, gain={self.gain:.4g}, bias={self.bias:.4g})"


def load_preference_reward(path: str | Path, **kwargs: Any) -> PreferenceRewardModel:
    """Build the registry's `preference`: the model saved in the folder `path`; see `PreferenceRewardModel.load`."""
    return PreferenceRewardModel.load(path, **kwargs)
