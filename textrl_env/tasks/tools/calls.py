"""How a call is written in a text, and found there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_PLAIN = re.compile(r"\[\s*(?P<name>[A-Za-z_]\w*)(?P<rest>[^\[\]]*)\]\s*$")
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")  # before the JSON of Mistral's and Llama's templates


class Call(NamedTuple):
    """A call that the agent wrote.

    Attributes:
        name: Of the function.
        arguments: By name; or a text, the function's only argument.
        error: What is wrong with how it is written; empty if nothing is.
    """

    name: str
    arguments: Mapping[str, Any] | str
    error: str = ""


def call_in(turn: str) -> Call | None:
    """Return the call in a turn of the agent, None if there is none.

    Two forms are read, and neither depends on the tokenizer:

    - plain, at the end of the turn: `[calculator 3 * (4 + 5)]`.  White space around the parts does not count.  What stands behind the name
      is one text, or the arguments by name where it is a JSON object: `[add {"a": 3, "b": 4}]`.  It holds no square brackets.
    - a chat template's: JSON with `name` and `arguments` (or `parameters`), between `<tool_call>` and `</tool_call>` anywhere in the
      turn, or as the whole turn.  Of several calls the last is made.
    """
    if tagged := _TAGGED.findall(turn):
        return _from_json(tagged[-1]) or Call("", {}, "what stands in <tool_call> is no JSON object with name and arguments")
    bare = turn.strip()
    for mark in _MARKS:
        bare = bare.removeprefix(mark).strip()
    if bare.startswith(("{", "[{")) and (call := _from_json(bare)):
        return call
    if not (plain := _PLAIN.search(turn)):
        return None
    rest = plain["rest"].strip()
    return Call(plain["name"], _loaded(rest) if rest.startswith("{") and isinstance(_loaded(rest), dict) else rest)


def _from_json(text: str) -> Call | None:
    loaded = _loaded(text)
    if isinstance(loaded, list) and loaded:
        loaded = loaded[-1]
    if not isinstance(loaded, dict) or not isinstance(loaded.get("name"), str):
        return None
    arguments = loaded.get("arguments", loaded.get("parameters"))
    if isinstance(arguments, str):  # some models write the arguments as JSON within the JSON
        arguments = _loaded(arguments)
    return Call(loaded["name"], arguments) if isinstance(arguments, dict) else None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
