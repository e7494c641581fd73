"""The documentation site: Sphinx with MyST and furo; `make docs` builds it, without a network."""

from __future__ import annotations

import gc
import re
import sys
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = "textrl"
author = "The textrl authors"
copyright = "The textrl authors, MIT licence"
release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build", "_templates", "inventories"]
source_suffix = {".md": "markdown"}
nitpicky = False
default_role = "py:obj"  # docstrings write code in single backticks: what has a page becomes a link

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # sections of docstrings begin at their own depth

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

locale_dirs = ["locales"]
gettext_compact = False

html_theme = "furo"
html_title = "textrl"
_LOOK = (HERE.parent / "rewards" / "feedback" / "static" / "look.css").read_text(encoding="utf-8")
_LIGHT, _DARK = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.+?)\}", _LOOK, re.S))
_FURO = {  # whose names for them
    "foreground-primary": "ink", "foreground-secondary": "soft", "foreground-muted": "soft", "background-primary": "paper",
    "background-secondary": "tint", "background-border": "line", "brand-primary": "main", "brand-content": "main", "brand-visited": "main",
}  # fmt: skip
_OURS = {f"color-{theirs}": f"var(--{ours})" for theirs, ours in _FURO.items()} | {
    "font-stack": "var(--sans)",
    "font-stack--monospace": "var(--mono)",
}
html_theme_options = {"light_css_variables": _LIGHT | _OURS, "dark_css_variables": _DARK | _OURS}
templates_path = ["_templates"]
_REST = ("scroll-start", "navigation", "scroll-end")
html_sidebars = {"**": ["sidebar/brand.html", "sidebar/search.html", "languages.html", *(f"sidebar/{part}.html" for part in _REST)]}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def inventories(folder: Path) -> dict[str, tuple[str, str]]:
    """Write the inventories that intersphinx reads, and return its mapping.

    `inventories/NAME.txt` holds the address of a project's documentation in its first line, and in each further line a name, what it is,
    and where below the address it stands: the few that our pages refer to, so that no build asks a network for thousands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for path in sorted((HERE / "inventories").glob("*.txt")):
        address, *rows = path.read_text(encoding="utf-8").splitlines()
        lines = "".join(f"{name} {role} 1 {place} -\n" for name, role, place in map(str.split, rows))
        head = (
            f"# Sphinx inventory version 2\n# Project: {path.stem}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
        )
        written = folder / f"{path.stem}.inv"
        written.write_bytes(head.encode() + zlib.compress(lines.encode()))
        mapping[path.stem] = (address, str(written))
    return mapping


intersphinx_mapping = inventories(HERE / "_build" / "inventories")


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: Gymnasium's `##` headings become rubrics, and signs of markup outside of code are signs."""
    told = "\n".join(lines)
    parts = re.split(r"(`[^`]+`)", told)
    parts[::2] = [re.sub(r"(?<![\\*\w])([|])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part) for part in parts[::2]]
    parts[1::2] = [f"{part}\\ " if after[:1].isalnum() else part for part, after in zip(parts[1::2], parts[2::2], strict=True)]
    told = re.sub(r"^## (.+)$", r".. rubric:: \1\n", "".join(parts), flags=re.M)
    told = re.sub(r"(?<=\S)\n(?=[*-] )", "\n\n", told)  # a list needs a blank line before it
    lines[:] = told.split("\n")


def setup(app: Any) -> None:
    """Connect the hook before napoleon's, and leave garbage alone: to look for it takes 40% of the time."""
    gc.disable()
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
