"""Write all generated pages: `python -m docs.generator`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from . import algorithms, environments, project, reference, rewards, tutorials

MODULES = (environments, algorithms, rewards, reference, tutorials, project)


def all_pages() -> dict[str, str]:
    """Return every generated page by its path."""
    return {name: text for module in MODULES for name, text in module.pages().items()}


def write(folder: Path, pages: Mapping[str, str]) -> None:
    """Make the folder hold these pages and no others; pages that did not change are left alone, for Sphinx reads by date."""
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "generated"
    write(target, all_pages())
