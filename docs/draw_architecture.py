"""Draw docs/architecture.png from the import contracts in pyproject.toml: `python docs/draw_architecture.py`.

Each column is a top-level package, each row a layer of its contract: a folder imports only from rows below its own, and
folders that share a row do not import each other.  Columns import from columns to their right.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tomllib  # Python 3.11 or newer; only who draws the picture needs it
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"agents": "#dbe9f6", "rewards": "#e4f2dd", "textrl_env": "#fbe6d2"}
WIDTH, GAP, HEIGHT = 3.6, 0.9, 0.56  # of a column, between columns, and of a row, in inches


def layers(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, list[list[str]]]:
    """Return the layers of each top-level package, from the top: the folders that share one."""
    contracts: list[dict[str, Any]] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    rooms = next(contract["layers"] for contract in contracts if contract.get("id") == "rooms")
    own = {contract["id"]: contract["layers"] for contract in contracts if "id" in contract}
    return {room: [[name.strip() for name in layer.split("|")] for layer in own[room]] for room in rooms}


def draw(rooms: dict[str, list[list[str]]]) -> Figure:
    """Return the picture."""
    rows = max(map(len, rooms.values()))
    width, height = len(rooms) * (WIDTH + GAP), (rows + 1.6) * HEIGHT
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for column, (room, own) in enumerate(rooms.items()):
        left = GAP / 2 + column * (WIDTH + GAP)
        axes.text(left + WIDTH / 2, height - 0.35, f"{room}/", ha="center", va="center", size=13, weight="bold", family="monospace")
        for row, names in enumerate(own):
            bottom = height - 0.7 - (row + 1) * HEIGHT
            share = WIDTH / len(names)
            for number, name in enumerate(names):
                box = FancyBboxPatch(
                    (left + number * share + 0.04, bottom + 0.06), share - 0.08, HEIGHT - 0.12, boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor=COLOURS.get(room, "#eeeeee"), edgecolor="#666666",
                )  # fmt: skip
                axes.add_patch(box)
                centre = (left + (number + 0.5) * share, bottom + HEIGHT / 2)
                axes.text(*centre, name, ha="center", va="center", size=_size(name, share), family="monospace")
        down = dict(arrowstyle="-|>", color="#666666")
        axes.annotate("", (left - 0.1, height - 0.7 - len(own) * HEIGHT), (left - 0.1, height - 0.7), arrowprops=down)
        if column + 1 < len(rooms):
            axes.annotate("", (left + WIDTH + GAP - 0.15, height - 0.35), (left + WIDTH + 0.1, height - 0.35), arrowprops=down)
    axes.text(width / 2, 0.16, "an arrow reads: imports from", ha="center", va="center", size=9, color="#666666")
    return figure


def _size(name: str, room: float) -> float:
    """Return the size in points at which a monospaced name fits into `room` inches."""
    return min(10.0, 72 * (room - 0.16) / (0.62 * len(name)))


if __name__ == "__main__":
    draw(layers()).savefig(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "architecture.png", dpi=110)
