"""Limits of settings, declared beside their types and checked in one place: of flags, `--config` files and arguments in Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Ge, Gt, Interval
from pydantic import AllowInfNan, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from textrl_env.utils.suggestions import did_you_mean

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Texts = Annotated[int, Ge(2)]  # that a mean and its error are taken of
Finite = Annotated[float, AllowInfNan(False)]
Above0 = Annotated[float, Gt(0), AllowInfNan(False)]
AtLeast0 = Annotated[float, Ge(0), AllowInfNan(False)]
Share = Annotated[float, Interval(ge=0, le=1)]
BelowHalf = Annotated[float, Interval(ge=0, lt=0.5)]
Probability = Annotated[float, Interval(gt=0, le=1)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # what numpy's global generator takes
Port = Annotated[int, Interval(ge=0, le=65535)]

_WANTED: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "null", Callable: "a function",
}  # fmt: skip


def check_fields(settings: Any, spelled: Callable[[str, Any], str] = "{}={!r}".format) -> None:
    """Check every field of a dataclass against its declared type and limits.

    Args:
        settings: An instance.
        spelled: How a name and its value are written in messages.

    Raises:
        ValueError: A value is of another type or out of range; the message names it and what is wanted.
    """
    kind: Any = type(settings)
    for name, hint in hints_of(kind).items():
        check(spelled(name, getattr(settings, name)), getattr(settings, name), hint)


def check(label: str, value: Any, hint: Any, as_json: bool = False) -> Any:
    """Return a value as its declared type has it.

    Args:
        label: Name and value, as messages call them.
        value: The value.
        hint: Type, with limits as metadata of `Annotated`.
        as_json: Whether it is plain data of a file: paths are texts there, and tuples lists.

    Raises:
        ValueError: It is of another type or out of range.
    """
    try:
        if as_json:  # in that mode a strict adapter takes paths as texts and tuples as lists, and nothing else
            return _adapter(hint).validate_json(json.dumps(value, default=str), strict=True)
        return _adapter(hint).validate_python(value.item() if isinstance(value, np.generic) else value, strict=True)
    except ValidationError as error:
        close = did_you_mean(value, map(str, get_args(hint))) if isinstance(value, str) else ""
        listed = f", such as [{value}]" if get_origin(hint) is tuple and isinstance(value, str) else ""
        if get_origin(hint) is tuple and isinstance(value, list) and not as_json:
            listed = f", written as a tuple in Python: {tuple(value)!r}"
        raise ValueError(f"{label} is not {wanted(hint)}{listed}{close}") from error


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Return the declared type of each field of a dataclass, limits included."""
    # A class that is exported as `agents.Name` has its annotations' names in the module of its functions
    names = getattr(getattr(kind, "__post_init__", None), "__globals__", None)
    hints = get_type_hints(kind, localns=names, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that brings a configuration of its own
        return TypeAdapter(hint)


def wanted(hint: Any) -> str:
    """Return in words what a type and its limits ask for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for limit in map(_limit, arguments[1:]) if limit]
        return " ".join([wanted(arguments[0]), *limits])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list, each entry {wanted(arguments[0])}"
    if origin in (Union, UnionType):
        return " or ".join(map(wanted, arguments))
    return _WANTED.get(hint) or _WANTED.get(origin) or str(getattr(hint, "__name__", hint))


def _limit(limit: Any) -> str:
    if getattr(limit, "ge", None) is not None and getattr(limit, "le", None) is not None:
        return f"from {limit.ge} to {limit.le}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [f"{word} {getattr(limit, name)}" for name, word in words.items() if getattr(limit, name, None) is not None]
    text = " and ".join(bounds)
    return f"of {text}" if text.startswith("at ") else text
