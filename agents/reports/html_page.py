"""HTML reports from the templates beside this file, in the look that the feedback page has too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rewards.feedback.study import LOOK
from textrl_env.utils.files import new_file


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Fill a template in, write the page, and return its path.

    What the template is filled with is escaped, since a text may hold anything.

    Args:
        path: The page; it appears whole or not at all.
        template: Name of a file in `templates`, without `.html.j2`.
        **values: What the template names.
    """
    templates = Environment(
        loader=FileSystemLoader([Path(__file__).with_name("templates"), LOOK.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with new_file(path) as file:
        file.write(templates.get_template(f"{template}.html.j2").render(values))
    return Path(path)
