"""What to install when an optional library is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional_import(extra: str, need: str) -> Iterator[None]:
    """Import an optional library in the block.

    Args:
        extra: The extra of this distribution that installs it.
        need: What needs which library, for the message.

    Raises:
        ImportError: It is not installed; the message is `need` and the command that installs the extra.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{need}: pip install 'textrl-env[{extra}]'") from error
