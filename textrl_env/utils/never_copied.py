"""Objects that deep copies share."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


class NeverCopied:
    """Stays itself in a deep copy: gymnasium deep-copies the arguments of every `make`, models and data among them."""

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        return self
