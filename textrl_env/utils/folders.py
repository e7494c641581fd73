"""Where what was built once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return where built models are kept: `$TEXTRL_CACHE`, else `textrl` in the user's cache folder."""
    own = os.environ.get("TEXTRL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "textrl"
