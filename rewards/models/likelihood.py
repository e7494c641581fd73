"""How likely a causal language model finds a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_no_pictures
from textrl_env.reward_model import RewardError

from ..utils.base_reward import BaseReward
from .pretrained import Checkpoint, Reading, Typed
from .score_memo import TextCache

if TYPE_CHECKING:
    from typing_extensions import Unpack

_OUTPUTS = ("mean", "sum", "perplexity")


class LikelihoodReward(BaseReward):
    """Log-probability of the response after its prompt under a causal language model of transformers.

    A token belongs to the response if it ends behind the prompt.  The end-of-text token counts where the text was ended
    (`finish_reason` `"eos"`) and the tokenizer has one.  A response without any token is as likely as a token drawn at random.

    Args:
        path: Folder, or name on the hub.
        output: `"mean"`, log-probability per token in nats; `"sum"`, of the whole response; or `"perplexity"`, -exp(-mean), so
            that more is better here too.
        reading: How texts are read: `device`, `dtype`, `batch_size` and `max_tokens` of `Checkpoint`.  Of a text that is longer the
            beginning of the prompt is left out; a response that does not fit alone raises `RewardError`.

    Raises:
        OSError: There is no such model, or it has no safetensors weights.
        ValueError: An argument is out of range.
    """

    def __init__(self, path: str | Path, *, output: Literal["mean", "sum", "perplexity"] = "mean", **reading: Unpack[Reading]) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"output={output!r} must be one of {', '.join(_OUTPUTS)}")
        self.output = output
        reading.setdefault("batch_size", 16)  # logits of a whole vocabulary
        self.checkpoint = Checkpoint("AutoModelForCausalLM", path, **reading)
        self._cache = TextCache()

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the prompts have pictures, which this model cannot see."""
        check_no_pictures("likelihood", prompts)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the log-probability of each response, in order."""
        return self._cache.complete([(e.prompt, e.response, e.finish_reason == "eos", e.typed) for e in episodes], self._score)

    def _score(self, contents: list[tuple[str, str, bool, Typed]]) -> list[float]:
        pairs = [self._ids(*content) for content in contents]

        def head(ids: Tensor, mask: Tensor, places: list[int]) -> list[float]:
            logits = self.checkpoint.model(input_ids=ids, attention_mask=mask.long()).logits  # (B, T, V)
            return [self._value(scores, *pairs[i]) for scores, i in zip(logits, places, strict=True)]

        return self.checkpoint.read([row for row, _ in pairs], head)

    def _ids(self, prompt: str, response: str, ended: bool, typed: Typed) -> tuple[list[int], int]:
        """Return the ids that are read, with one in front to predict the first from, and how many of them are the response."""
        tokenizer, controls = self.checkpoint.tokenizer, self.checkpoint.controls
        if typed is None and not controls.spelled_in(prompt + response):
            encoding = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=True)
            ids = list(encoding["input_ids"])
            n = sum(end > len(prompt) for _, end in encoding["offset_mapping"])
        else:  # apart, so that what is spelled stays text
            ids, written = controls.encode([prompt, response])
            ids, n = (ids if typed is None else controls.encode_template(prompt, typed)) + written, len(written)
        eos = tokenizer.eos_token_id
        if ended and eos is not None:
            ids, n = [*ids, eos], n + 1
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
        front = [] if start is None else [start]
        if front and typed is not None and ids[:1] == front:
            ids = ids[1:]
        room = self.checkpoint.max_tokens - len(front)
        if n > room:
            raise RewardError(
                f"likelihood: a response has {n} tokens with its end, and the model reads {room}: the rest would not count; lower "
                "max_new_tokens, or raise max_tokens if the model reads more"
            )
        ids = [*front, *ids[max(0, len(ids) - room) :]] or [0]  # what does not fit is the beginning of the prompt
        return ids, min(n, len(ids) - 1)

    def _value(self, logits: Tensor, row: list[int], n: int) -> float:
        """Return the score of a row's last `n` tokens, from logits (T, V) of the padded row."""
        if n:
            tokens = torch.tensor(row[-n:], device=logits.device)[:, None]  # (n, 1)
            log_probs = logits[len(row) - n - 1 : len(row) - 1].float().log_softmax(-1).gather(1, tokens)  # (n, 1)
        else:
            log_probs = torch.full((1,), -math.log(logits.shape[1]))
        mean = float(log_probs.mean())
        return {"mean": mean, "sum": float(log_probs.sum()), "perplexity": -math.exp(min(-mean, 700.0))}[self.output]

    def __repr__(self) -> str:
        return f"LikelihoodReward({self.checkpoint.path!r}, {self.output})"
