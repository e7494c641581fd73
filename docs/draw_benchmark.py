"""Write docs/benchmark from a full run: tables, pictures, scores, and the cells, so that others can put their agents beside them.

    python docs/draw_benchmark.py runs/full

It prints the table of README.md and docs/benchmark.md, which tests/test_documents.py computes again from scores.csv.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from agents.benchmark.flags import Leaderboard
from agents.benchmark.leaderboard import run_leaderboard
from agents.benchmark.report import draw, shown, summarise, write_bench_report
from agents.benchmark.results import CURRENT, read_cells
from agents.reports.plots import save
from agents.reports.tables import markdown_table
from textrl_env.utils.files import write_text

OUT = Path(__file__).parent / "benchmark"
PICTURES = ("curves", "intervals", "comparisons", "profiles")
DIGITS = 7  # of what cells hold besides the score, in the archive


def headline_table(summary: dict[str, Any]) -> str:
    """Return the table of all agents: interquartile means, tuned and with the defaults, and the paired difference of means."""
    rows = []
    for agent in summary["shown"]:
        defaults = summary["untuned"].get(agent)
        plain = shown(summary["total"][defaults or agent]["iqm"])
        tuned, by = (shown(summary["total"][agent]["iqm"]), shown(summary["tuning"][agent], 3)) if defaults else ("-", "-")
        rows.append((defaults or agent, tuned, plain, by))
    return markdown_table(("agent", "tuned", "defaults", "mean, tuned - defaults"), rows)


def rounded(value: Any) -> Any:
    """Return plain data whose numbers have fewer digits."""
    if isinstance(value, dict):
        return {key: item if key == "score" and "curve" in value else rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def pack_cells(folder: Path, path: Path) -> None:
    """Write what `textrl bench --out FOLDER` goes on from, and other agents are put beside."""
    files = [
        folder / CURRENT,
        folder / "config.yaml",
        *(path for part in ("tasks", "cells") for path in sorted((folder / part).glob("*.json"))),
    ]
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for file in files:
            data = file.read_bytes()
            if file.parent.name == "cells":
                data = json.dumps(rounded(json.loads(data)), separators=(",", ":")).encode()
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def main(folder: Path, out: Path = OUT) -> None:
    """Write all files."""
    write_bench_report(folder)
    found = read_cells(folder)
    summary = summarise(found.cells) | {"missing": found.missing, "left_out": found.left_out}
    write_text(out / "scores.csv", (folder / "scores.csv").read_text(encoding="utf-8"))
    write_text(out / "table.md", "# All scores by task\n\n" + (folder / "report.md").read_text(encoding="utf-8"))
    for name, figure in draw(found.cells, summary).items():
        if name in PICTURES:
            save(figure, out / f"{name}.png")
            Image.open(out / f"{name}.png").convert("RGB").quantize(128).save(out / f"{name}.png", optimize=True)  # a fourth of the bytes
    pack_cells(folder, out / "cells.tar.xz")
    if not found.missing:
        run_leaderboard(Leaderboard((folder,), out / "leaderboard.html"))
        (out / "leaderboard.html").unlink()
    print(headline_table(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
