"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def parts(thing: Any) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the text of a docstring in Google's style, and of each section that lists names the meaning of each name."""
    told, sections, now = [], {}, None
    for line in (inspect.getdoc(thing) or "").split("\n"):
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            now = sections.setdefault(line[:-1], {})
        elif now is not None and re.match(r"\S", line):
            now = None
            told.append(line)
        elif now is None:
            told.append(line)
        elif found := re.match(r" {4}(\*{0,2}\w+): (.*)", line):
            name = found[1]
            now[name] = found[2]
        elif now and line.strip():
            last = next(reversed(now))
            now[last] += " " + line.strip()
    return "\n".join(told).strip(), sections


def demoted(text: str, by: int = 0) -> str:
    """Return Markdown in which headings stand `by` levels deeper, and indented blocks are code."""
    text = re.sub(r"^(#+) ", lambda found: "#" * (len(found[1]) + by) + " ", text, flags=re.M)
    return re.sub(r"(?<=[^\n])\n(?=[*-] )", "\n\n", text)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """Return what stands in a cell: bars would end it."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").strip()


def code(text: str, language: str = "") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def arguments(thing: Any, changed: dict[str, Any] | None = None) -> str:
    """Return the table of a callable's arguments: name, default, meaning.

    Args:
        thing: A class or function whose docstring describes its arguments.
        changed: Defaults that differ.
    """
    _, sections = parts(thing)
    told = {name.lstrip("*"): meaning for name, meaning in sections.get("Args", {}).items()}
    rows = []
    for name, one in inspect.signature(thing).parameters.items():
        if name.startswith("_") or (one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and name not in told):
            continue
        default = (changed or {}).get(name, one.default)
        shown = "" if default is one.empty else f"`{default!r}`"
        meaning = re.sub(r"\s*Default: .*?\.$", "", told.get(name, ""))
        rows.append((f"`{name}`", shown, meaning))
    return table(("argument", "default", "meaning"), rows) if rows else ""


def page(title: str, *blocks: str) -> str:
    """Return a page of blocks that are not empty."""
    return "\n\n".join([f"# {title}", *(textwrap.dedent(block).strip("\n") for block in blocks if block)]) + "\n"


def toctree(names: Iterable[str]) -> str:
    """Return a list of pages for the sidebar alone."""
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```"
