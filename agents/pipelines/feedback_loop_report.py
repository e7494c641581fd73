"""The report of `textrl loop`: gold score, agreement, reward accuracy and KL, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from textrl_env.utils.files import read_json
from textrl_env.utils.tables import read_rows

from ..reports.html_page import write_page
from ..reports.plots import data_uri, dress, interval_bars, look, new_figure, save

_SHOWN = 5  # prompts whose texts are shown: the first ones, nobody chooses


def write_loop_report(folder: Path) -> Path:
    """Write `report.html` and `rounds.png` from what the rounds left in a loop's folder, and return the page's path."""
    results = read_json(folder / "rounds.json")
    base, rounds = results["base"], results["rounds"]
    image = None
    if "gold" in rounds[0]:
        save(draw_rounds(base, rounds), folder / "rounds.png")
        image = data_uri(folder / "rounds.png")
    return write_page(
        folder / "report.html", "loop_report", verdict=_verdict(base, rounds[-1]), doubts=list(filter(None, map(below_chance, rounds))),
        base=base, rounds=rounds, image=image, texts=_texts(folder, len(rounds)),
    )  # fmt: skip


def _verdict(base: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Return what came of all rounds, in a sentence."""
    kl = f"at {last['kl_per_sequence']:.1f} nats of KL per text"
    if "gold" not in last:
        return (
            f"The last round's reward model scores its policy's texts {last['learned']:+.2f} and the base policy's "
            f"{last['learned_base']:+.2f}, {kl}; whether people agree, only people can say."
        )
    won = last["win_rate"]
    told = f"The gold score went from {base['gold']:+.2f} to {last['gold']:+.2f} in {last['round']} rounds, {kl}; "
    told += f"the last policy wins {won['rate']:.0%} [{won['low']:.0%}, {won['high']:.0%}] of {won['num']} comparisons with the base policy"
    return told + (", which does not tell the two apart." if won["low"] <= 0.5 <= won["high"] else ".")


def _texts(folder: Path, rounds: int) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Return the first test prompts, each with what the base policy and the first and the last round's policy wrote."""
    files = {"base policy": folder / "base.jsonl"} | {f"round {n}": folder / f"round-{n}" / "texts.jsonl" for n in sorted({1, rounds})}
    written = {title: read_rows(file)[:_SHOWN] for title, file in files.items()}
    return [(row["prompt"], {title: rows[place] for title, rows in written.items()}) for place, row in enumerate(written["base policy"])]


def below_chance(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a round whose reward model agrees with the gold score less often than chance; None if nothing is."""
    accuracy = row.get("reward_accuracy")
    if accuracy is None or accuracy["high"] >= 0.5:
        return None
    return (
        f"round {row['round']}: the reward model agrees with the gold score on {accuracy['rate']:.0%} [{accuracy['low']:.0%}, "
        f"{accuracy['high']:.0%}] of {accuracy['num']} pairs of its policy's and the base policy's texts, worse than chance: the "
        "policy was trained against the gold score. Either it exploits mistakes of the reward model (raise --labels or lower --kl-target), "
        "or many answers are wrong (see the annotators)"
    )


def draw_rounds(base: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw gold and learned score of each round's policy, which have scales of their own, and how often the two prefer the same text."""
    figure = new_figure(7.2)
    gold, learned, agree = figure.subplots(3, 1, sharex=True)
    numbers = [0, *(row["round"] for row in rounds)]
    gold.plot(numbers, [base["gold"], *(row["gold"] for row in rounds)], **look(0))
    learned.plot(numbers[1:], [row["learned"] for row in rounds], **look(1))
    interval_bars(agree, numbers[1:], [(a["rate"], a["low"], a["high"]) for a in (row["reward_accuracy"] for row in rounds)])
    agree.set_xticks(numbers)
    dress(gold, "", "gold score")
    dress(learned, "", "learned score")
    dress(agree, "round (0: base policy)", "same preference")
    return figure
