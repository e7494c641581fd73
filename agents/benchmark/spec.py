"""How agents and tasks are spelled on the command line: `ppo:beta=0.1:n_episodes=32`, `recall-64`, `my_package.agents:Mine:width=64`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from textrl_env.utils.user_code import names_code

TUNED = ":tuned=true"  # behind an agent's name in tables: with the settings that were found for it


@dataclass(frozen=True)
class Spec:
    """A name with settings.

    Attributes:
        text: As it was written; the label in tables.
        name: What is meant.
        settings: Plain data; numbers, booleans and null as YAML reads them.
    """

    text: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> Spec:
    """Read `name:key=value:key=value`; the name may hold colons itself, and so may code and hub ids, as in `reward=mine.py:f`.

    Raises:
        ValueError: There is no name, or a setting is there twice.
    """
    # A colon divides where a key follows
    name, *parts = re.split(r":(?=[^:=]*=)", text.strip())
    settings = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key in settings or not key:
            raise ValueError(f"{text!r}: write name:key=value:key=value, each key once")
        if ":" in value and not (names_code(value) or value.startswith("hf:")):
            raise ValueError(f"{text!r}: write name:key=value:key=value, the name first; {value.partition(':')[2]!r} is no key=value")
        # YAML reads 1e-3 as a text
        settings[key] = _number(value)
    if not name or "=" in name:
        raise ValueError(f"{text!r}: write name:key=value:key=value, the name first")
    return Spec(text.strip(), name, settings)


def parse_all(texts: tuple[str, ...]) -> list[Spec]:
    """Read specs that are separated by spaces or commas.

    Raises:
        ValueError: One cannot be read, or is there twice.
    """
    specs = [parse(part) for text in texts for part in text.split(",") if part.strip()]
    twice = {spec.text for spec in specs if [other.text for other in specs].count(spec.text) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))}: named more than once")
    return specs


def untuned(agent: str) -> str:
    """Return the text of an agent without the mark of one that is tuned."""
    return agent.replace(TUNED, "")


def _number(value: str) -> Any:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return yaml.safe_load(value)
