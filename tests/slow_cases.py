"""Which cases of a test every run of the tests takes, and which `make test-slow` adds."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return the cases as parameters; those that are not in `fast` are slow."""
    cases, fast = list(cases), list(fast)
    assert all(case in cases for case in fast), f"not all of {fast} are cases"
    return [pytest.param(case, marks=[pytest.mark.slow] * (case not in fast)) for case in cases]


def slow_where(is_slow: Callable[..., bool], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return cases of several arguments as parameters; those of which `is_slow` says so are slow."""
    return [pytest.param(*case, marks=[pytest.mark.slow] * is_slow(*case)) for case in cases]
