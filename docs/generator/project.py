"""Pages that are files of the repository's root."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


def pages() -> dict[str, str]:
    """Return them, with links that hold from where they stand."""
    made = {}
    for source, name in _FILES.items():
        text = (_ROOT / source).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](../../", text)
        text = re.sub(r"\]\((CHANGELOG|CONTRIBUTING|SECURITY)\.md", lambda found: f"]({found[1].lower()}.md", text)
        made[f"project/{name}"] = re.sub(r"^```(python|text) \S+$", r"```\1", text, flags=re.M)
    return made
