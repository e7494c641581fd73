"""Flags that name a reward model, read the same way by every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from textrl_env.reward_model import list_rewards
from textrl_env.utils.row_files import Rows
from textrl_env.utils.suggestions import did_you_mean
from textrl_env.utils.tables import table_rows
from textrl_env.utils.user_code import absolute, names_code

from ..utils.columns import columns_of as columns_of

_SAVED = {"preference.json": "preference", "groups.json": "personal"}  # what a saved model's folder holds, and the reward that loads it


def reward_of(text: str, flag: str = "--reward") -> Any:
    """Return what a flag names, as plain data that `textrl_env.make_reward` takes.

    Args:
        text: Name of a reward model, folder of a saved one, a JSON object with `name` and its arguments, or code of one's own as
            `file.py:function` or `package.module:name`.
        flag: Whose value it is, for messages.

    Raises:
        FileNotFoundError: There is no such file of code.
        ValueError: It is none of these.
    """
    if text.lstrip().startswith("{"):
        return _json_object(text, flag)
    if names_code(text):
        return {"name": "function", "path": absolute(text)}
    folder = Path(text)
    for file, name in _SAVED.items():
        if (folder / file).is_file():
            return {"name": name, "path": text}
    if text in list_rewards():
        return text
    if folder.exists() or folder.parent.name:
        what = "this folder holds no saved reward model" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{flag} {text}: {what}; pass one with {' or '.join(_SAVED)}, a name, or a JSON object")
    raise _unknown(text, f"{flag} {text}")


def arguments_of(text: str | None, flag: str) -> dict[str, Any] | None:
    """Return the arguments that a flag gives as a JSON object, as `--lora '{"r": 8}'` does; None: the flag is not given.

    Raises:
        ValueError: It is no JSON object.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{flag} {text}: no JSON object; write {flag} '{{\"r\": 8}}'")
    return found


def rows_of_file(file: Path, columns: str | None) -> Path | Rows:
    """Return what `read_prompts` reads: the file, or its rows with the columns renamed."""
    named = columns_of(columns)
    return file if named is None else table_rows(file, named)


def _json_object(text: str, flag: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {text}: no JSON object ({error}); write {flag} '{{\"name\": ...}}'") from error
    if found.get("name") not in list_rewards():
        raise _unknown(found.get("name"), f"{flag} {text}")
    return found


def _unknown(name: Any, where: str) -> ValueError:
    close = did_you_mean(str(name), list_rewards())
    return ValueError(f"{where}: no reward model is called {name!r}{close}; known: {', '.join(list_rewards())}")
