"""Headers and addresses of requests: secrets stay in environment variables, and so out of manifests, logs and reprs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from textrl_env.reward_model import RewardError

_SECRET = re.compile(r"auth|token|key|secret|cookie|password", re.IGNORECASE)
_NAME, _VALUE = re.compile(r"[\w-]+", re.ASCII), re.compile(r"[ -~]*")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def checked_url(url: str) -> str:
    """Return `url` if it is an http(s) address without secrets in it.

    Raises:
        ValueError: It is none, or holds a password or a key.
    """
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except (ValueError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise ValueError(f"url={url!r}: give an address such as 'http://127.0.0.1:8900/score'")
    if parts.username or parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        host = f"{parts.scheme}://{parts.hostname}"
        raise ValueError(f"the url at {host} holds a secret, which logs would show: pass it in headers, as '${{NAME}}' of a variable")
    return url


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers if no secret stands in them as it is.

    Raises:
        TypeError: A name or a value is no string.
        ValueError: A header cannot be sent, or one that looks like a secret names no environment variable.
    """
    headers = dict(headers or {})
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {name!r} has a {type(value).__name__}: names and values must be strings")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"header {name!r} cannot be sent: use letters, digits and '-' in names, printable ASCII in values")
        if _SECRET.search(name) and not _VARIABLE.search(value):
            raise ValueError(
                f"header {name!r} holds a secret as it is, which manifests would store: set an environment variable and "
                f"write {{{name!r}: 'Bearer ${{NAME}}'}} with its name"
            )
    return headers


def expanded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with every `${NAME}` replaced by that environment variable.

    Raises:
        RewardError: A variable is not set, or holds what no header can.
    """
    return {name: _VARIABLE.sub(_value, value) for name, value in headers.items()}


def _value(match: re.Match[str]) -> str:
    value = os.environ.get(match[1], "").strip()
    if not value:
        raise RewardError(f"the environment variable {match[1]}, which a header names, is not set: set it before the run")
    if not _VALUE.fullmatch(value):
        raise RewardError(f"the environment variable {match[1]}, which a header names, holds signs that no header can: set it anew")
    return value
