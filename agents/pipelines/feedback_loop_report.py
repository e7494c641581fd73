"""The report of `textrl loop`: gold score, agreement, reward accuracy and KL, round by round."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

from textrl_env.utils.files import write_text

from ..reports.html_page import templates_of_pages
from ..reports.plots import dress, new_figure, save


def write_loop_report(folder: Path) -> Path:
    """Write `report.html` and `rounds.png` from `rounds.json` of a loop's folder, and return the page's path."""
    found = json.loads((folder / "rounds.json").read_text(encoding="utf-8"))
    rounds = found["rounds"]
    image = None
    if "gold" in rounds[0]:
        figure = new_figure(3.2)
        left, right = figure.subplots(1, 2)
        numbers = [0, *(row["round"] for row in rounds)]
        left.plot(numbers, [found["base"]["gold"], *(row["gold"] for row in rounds)], "o-", color="#0072b2", label="gold")
        left.plot(numbers[1:], [row["learned"] for row in rounds], "s--", color="#d55e00", label="learned")
        left.set(xlabel="round (0: base policy)", ylabel="mean score", xticks=numbers)
        left.legend(fontsize=7, frameon=False)
        accuracy = [row["reward_accuracy"] for row in rounds]
        ends = [[a["rate"] - a["low"] for a in accuracy], [a["high"] - a["rate"] for a in accuracy]]
        right.errorbar(numbers[1:], [a["rate"] for a in accuracy], ends, fmt="o", color="#0072b2", capsize=3)
        right.set(xlabel="round", ylabel="reward model agrees with gold", xticks=numbers[1:])
        for axes in (left, right):
            dress(axes)
        save(figure, folder / "rounds.png")
        image = b64encode((folder / "rounds.png").read_bytes()).decode()
    page = templates_of_pages().get_template("loop_report.html.j2").render(base=found["base"], rounds=rounds, image=image)
    write_text(folder / "report.html", page)
    return folder / "report.html"
