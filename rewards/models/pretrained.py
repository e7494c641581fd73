"""Models of transformers that score texts: loading without running code, and reading texts in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from textrl_env.episode import Episode
from textrl_env.utils.control_tokens import ControlTokens, surroundings
from textrl_env.utils.suggestions import insist_on_path

from ..utils.devices import get_device
from .scorers import pad

T = TypeVar("T")
Typed = tuple[tuple[int, int], ...] | None

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def whole_text(episode: Episode) -> tuple[str, Typed]:
    """Return prompt and response as one text, and what in it is text though a chat template wrote the prompt: all of the response too."""
    text = episode.prompt + episode.response
    return text, None if episode.typed is None else (*episode.typed, (len(episode.prompt), len(text)))


def check_ids(rows: Sequence[Sequence[int]], model: Any, path: str | Path) -> None:
    """Insist that the model has an embedding for each token id of the rows.

    Raises:
        ValueError: It lacks one.
    """
    size, largest = model.get_input_embeddings().num_embeddings, max((max(row, default=0) for row in rows), default=0)
    if largest >= size:
        raise ValueError(
            f"{path}: its tokenizer gives the id {largest}, its model has {size} embeddings: save the two that belong together"
        )


class Reading(TypedDict, total=False):
    """Arguments of `Checkpoint` that say how texts are read."""

    device: str | torch.device
    dtype: str
    batch_size: int
    max_tokens: int | None


class Checkpoint:
    """A model, its own tokenizer and its own device.

    Args:
        kind: The auto class of transformers, such as `"AutoModelForCausalLM"`.
        path: Folder, or name on the hub.
        device: Where the model lives, see `rewards.utils.devices.get_device`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`: of weights and arithmetic.
        batch_size: Texts read at once, at least 1.
        max_tokens: Longest text that is read, cut at its beginning; None for the model's limit.

    Raises:
        OSError: There is no such model, or it has no safetensors weights or no tokenizer.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        kind: str,
        path: str | Path,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        batch_size: int = 64,
        max_tokens: int | None = None,
    ) -> None:
        import transformers

        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(_DTYPES)}")
        if batch_size < 1 or (max_tokens is not None and max_tokens < 2):
            raise ValueError(f"batch_size={batch_size}, max_tokens={max_tokens}: need at least 1 and 2")
        insist_on_path(path)
        self.path, self.device, self.batch_size = str(path), get_device(device), batch_size
        safe = {"use_safetensors": True, "trust_remote_code": False}  # a pickle could run code
        model = getattr(transformers, kind).from_pretrained(self.path, dtype=_DTYPES[dtype], **safe)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        if not self.tokenizer.is_fast:
            raise ValueError(f"{self.path} has no tokenizer.json: save its tokenizer in the fast format")
        eos = self.tokenizer.eos_token
        self.controls = ControlTokens(self.tokenizer.backend_tokenizer, [] if eos is None else [eos])
        self._opening, self._closing = surroundings(self.controls.backend)
        limit = getattr(model.config, "max_position_embeddings", None)
        self.max_tokens = min(x for x in (max_tokens, limit, 1 << 20) if x is not None)

    def encode(self, texts: Sequence[str], *, end: bool = False, typed: Sequence[Typed] | None = None) -> list[list[int]]:
        """Return the ids of texts between the special tokens that the tokenizer puts around them; those that texts spell are text.

        Of a text that is too long the beginning is dropped, behind the special tokens that open it, for the response stands at the end.

        Args:
            texts: What is read.
            end: Whether the end-of-text token follows, where the tokenizer has one and does not add it itself.
            typed: Of each text, whether a chat template wrote it, and what in it is text all the same; see `textrl_env.Prompt`.
        """
        eos = self.tokenizer.eos_token_id if end else None
        rows = self.controls.encode(texts)
        for number, spans in enumerate(typed or ()):
            if spans is not None:
                rows[number] = self.controls.encode_template(texts[number], spans)
        rows = [[*(() if row[: len(self._opening)] == self._opening else self._opening), *row, *self._closing] for row in rows]
        check_ids(rows, self.model, self.path)
        return [self._cut(row if eos is None or row[-1:] == [eos] else [*row, eos], len(self._opening)) for row in rows]

    def _cut(self, row: list[int], opening: int) -> list[int]:
        if len(row) <= self.max_tokens:
            return row
        return row[:opening] + row[len(row) - (self.max_tokens - opening) :]

    def read(self, rows: Sequence[Sequence[int]], head: Callable[[Tensor, Tensor, list[int]], list[T]]) -> list[T]:
        """Read rows of ids, neighbours in length together, and return what `head` makes of each, in order.

        Args:
            rows: Token ids, none of them empty.
            head: Called with right-padded ids (B, T), the mask of real tokens (B, T), and the places in `rows`; returns B results.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        results: dict[int, T] = {}
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                ids, mask = pad([torch.tensor(rows[i]).numpy() for i in batch], self.device)
                results.update(zip(batch, head(ids, mask, batch), strict=True))
        return [results[i] for i in range(len(rows))]
