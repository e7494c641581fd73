"""Tutorials: programs under docs/tutorials, shown as pages with what they printed."""

from __future__ import annotations

import re
from pathlib import Path

from .docstrings import code

_FOLDER = Path(__file__).parents[1] / "tutorials"


def programs() -> list[Path]:
    """Return the programs, each of which is a tutorial."""
    return sorted(_FOLDER.glob("*.py"))


def pages() -> dict[str, str]:
    """Return a page for each program."""
    return {f"tutorials/{path.stem}.md": _page(path) for path in programs()}


def _page(path: Path) -> str:
    """Return a program as a page: its docstring, comments that begin a block as text, code, and what was printed when it was run.

    `# %%` begins a block; comment lines directly under it are its text.
    """
    told, _, body = path.read_text(encoding="utf-8").removeprefix('"""').partition('"""')
    title, _, introduction = told.strip().partition("\n")
    blocks = [f"# {title.rstrip('.')}", introduction.strip()]
    for block in re.split(r"^# %%\s*\n", body.strip() + "\n", flags=re.M):
        found = re.match(r"((?:#.*\n)*)", block)
        assert found is not None
        blocks.append(re.sub(r"^# ?", "", found[1], flags=re.M).strip())
        rest = block[found.end() :].strip()
        if rest:
            blocks.append(code(rest, "python"))
    printed = path.with_suffix(".txt")
    if printed.exists():
        blocks += ["## What it prints", code(printed.read_text(encoding="utf-8"), "text")]
    blocks.append(f"The program: [docs/tutorials/{path.name}](../../tutorials/{path.name}), run by the tests.")
    return "\n\n".join(block for block in blocks if block) + "\n"
