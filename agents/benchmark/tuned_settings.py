"""Settings that `textrl tune` has found good, by algorithm and task."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def tuned(algo: str, task: str) -> dict[str, Any]:
    """Return the settings that `textrl tune` found for an algorithm on a task; they come with the package.

    Raises:
        ValueError: Nobody has looked for them yet.
    """
    file = files("agents.benchmark") / "tuned" / f"{algo}.yaml"
    known = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if task not in known:
        raise ValueError(
            f"no tuned settings of {algo} for task {task!r} (there are: {', '.join(known) or 'none'}); find some with textrl tune"
        )
    return dict(known[task]["settings"])
