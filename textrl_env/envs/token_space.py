"""The action space: which tokens there are, and which end a text."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from ..tokenizer import Tokenizer, ends_of, files_of


class TokenSpace(spaces.Discrete):
    """`Discrete(V)` that also tells an agent what its tokens are; only this way does a policy that knows nothing but spaces hear of it.

    Args:
        tokenizer: The task's.

    Attributes:
        eos_token_ids: Ids that end a text, the one to learn from first.
        unused_ids: Ids that no token has; they are not sampled, and written they add nothing to a text.
    """

    __module__ = "textrl_env"

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer.vocab_size)
        self.eos_token_ids = ends_of(tokenizer)
        self.unused_ids: tuple[int, ...] = tuple(getattr(tokenizer, "unused_ids", ()))
        self._tokenizer: Tokenizer | None = tokenizer
        self._files: dict[str, str] | None = None

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        """Draw a token, see `Discrete.sample`."""
        if self.unused_ids and mask is None and probability is None:
            mask = np.ones(int(self.n), np.int8)  # (V,)
            mask[list(self.unused_ids)] = 0
        return super().sample(mask, probability)

    def tokenizer_files(self) -> dict[str, str]:
        """Return the tokenizer as transformers saves it, files by name; none of a tokenizer that has no such files."""
        return files_of(self._tokenizer) if self._files is None else self._files

    def __repr__(self) -> str:
        return f"TokenSpace({self.n}, eos_token_ids={self.eos_token_ids})"

    def __eq__(self, other: Any) -> bool:
        """Return whether the tokens are as many, and, where both are known, the same ones end a text."""
        return super().__eq__(other) and set(getattr(other, "eos_token_ids", self.eos_token_ids)) == set(self.eos_token_ids)

    __hash__ = None  # type: ignore[assignment]  # as that of other spaces

    def __getstate__(self) -> dict[str, Any]:
        """Keep the tokenizer as plain data: a checkpoint holds no object of another library."""
        return {**self.__dict__, "_files": self.tokenizer_files(), "_tokenizer": None}
