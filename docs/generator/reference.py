"""API pages of every public name, and the reference of the command line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from agents.cli.main import COMMANDS

from .docstrings import code, page, parts, table, toctree

_ROOT = Path(__file__).parents[2]
_ROOMS = ("textrl_env", "rewards", "agents")


def public_names() -> dict[str, Any]:
    """Return everything that the packages and their folders export, by its dotted name; of two names of one thing the first is its page."""
    packages = ["textrl_env", "rewards", "agents"]
    stubs = sorted(path.parent.relative_to(_ROOT) for room in _ROOMS for path in (_ROOT / room).rglob("__init__.pyi"))
    packages += [".".join(folder.parts) for folder in stubs if len(folder.parts) > 1]
    found = {}
    for package in packages:
        module = import_module(package)
        for name in module.__all__:
            found[f"{package}.{name}"] = getattr(module, name)
    return found


def pages() -> dict[str, str]:
    """Return a page for each public name, their index, and the command line."""
    made: dict[str, str] = {}
    first: dict[int, str] = {}
    lists: dict[str, list[tuple[str, str]]] = {}
    for name, thing in public_names().items():
        same = first.setdefault(id(thing), name)
        made[f"api/{name}.md"] = _page(name, thing) if same == name else page(name, f"The same as [{same}]({same}.md).")
        package = name.rpartition(".")[0]
        summary = parts(thing)[0].split("\n\n")[0] if inspect.isclass(thing) or callable(thing) else ""
        lists.setdefault(package, []).append((f"[{name.rpartition('.')[2]}]({name}.md)", summary))
    blocks = [text for package, rows in lists.items() for text in (f"## {package}", table(("name", "what it is"), rows))]
    listed = [name.removeprefix("api/").removesuffix(".md") for name in made]
    made["api/index.md"] = page("API reference", "Every public name of the three packages.", *blocks, toctree(listed))
    made["cli.md"] = _command_line()
    return made


def _page(name: str, thing: Any) -> str:
    if not callable(thing):  # a table
        rows = (
            [(f"`{key}`", f"`{value}`") for key, value in thing.items()] if isinstance(thing, Mapping) else [(f"`{row}`",) for row in thing]
        )
        return page(name, f"A {type(thing).__name__} of {len(rows)} rows.", table(("name", "row")[: len(rows[0])], rows))
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    options = "   :members:\n   :show-inheritance:\n" if kind == "autoclass" else ""
    return page(name, f"```{{eval-rst}}\n.. {kind}:: {name}\n{options}```")


def _command_line() -> str:
    """Return the reference of all commands, from the classes that the parsers are made of."""
    usage = code("\n".join(f"textrl {command:<18} {purpose}" for command, (*_, purpose) in COMMANDS.items()), "text")
    blocks = []
    for command, (flags, _, purpose) in COMMANDS.items():
        kind = resolve_name(f"agents.{flags}")
        told, _ = parts(kind)
        blocks += [f"## textrl {command}", f"*{purpose}*", told, table(("flag", "type", "default", "meaning"), _flags(kind))]
    return page(
        "Command-line reference",
        "Also from a YAML file: `--config FILE`. By example: [the command line](../command-line.md).",
        usage,
        *blocks,
    )


def _flags(kind: Any) -> list[tuple[str, ...]]:
    meanings: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)):
        if dataclasses.is_dataclass(base):
            meanings |= parts(base)[1].get("Attributes", {})
    rows = []
    for field in dataclasses.fields(kind):
        annotated = str(field.type)
        positional = "Positional" in annotated
        flag = f"`{field.name.upper()}`" if positional else f"`--{field.name.replace('_', '-')}`"
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        shown = "" if default is None or default == () else f"`{default}`"
        rows.append((flag, _type(annotated), shown, meanings.get(field.name, "")))
    return rows


def _type(annotation: str) -> str:
    """Return the type as a word: `int`, `text`, or the choices."""
    annotation = re.sub(r"Annotated\[([^,]+),.*\]", r"\1", annotation).replace(" | None", "")
    if annotation.startswith("Literal["):
        return ", ".join(f"`{one}`" for one in ast.literal_eval(f"[{annotation[8:-1]}]"))
    words = {
        "str": "text",
        "Path": "path",
        "bool": "True, False",
        "tuple[str, ...]": "texts",
        "tuple[Path, ...]": "paths",
        "Count": "number >= 1",
        "Natural": "number >= 0",
        "Above0": "> 0",
    }
    more = {"AtLeast0": ">= 0", "Probability": "in (0, 1]", "Share": "in [0, 1]", "Seed": "number", "Texts": "number >= 2", "Port": "port"}
    return (words | more).get(annotation, f"`{annotation}`")
