"""`textrl feedback report`: how far to trust a study's answers, on the terminal and as a page."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from textrl_env.utils.files import write_json

from ..reports.html_page import write_page
from ..reports.plots import FONT, data_uri, dress, interval_bars, look, new_figure, save
from .flags import FeedbackReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rewards.feedback.quality_report import AnnotatorQuality, QualityReport
    from rewards.preferences.policy_ranking import Strength


def run_report(config: FeedbackReport) -> None:
    """Read the answers, print tables, and write the page."""
    from rewards.feedback.items import EQUAL
    from rewards.feedback.quality_report import quality_report
    from rewards.feedback.store import FeedbackStore
    from rewards.preferences.policy_ranking import games_of, tournament

    store = FeedbackStore(config.study)
    answers, items = store.answers(), store.items()
    store.close()
    if not answers:
        raise ValueError(f"{config.study} has no answers yet: there is nothing to report on")
    trust = quality_report(answers, store.study)
    given = [(a.item_id, a.item.sources, a.value) for a in answers if a.turn == 0 and a.item.gold is None]
    games = games_of([*given, *((number, item.sources, {"choice": "tie"}) for number, item in items if item.gold == EQUAL)])
    ranking = tournament(games) if games else []
    console = Console()
    _print(console, trust, ranking)
    facts = {"study": store.study.name, "kind": store.study.kind, **asdict(trust), "sources": [asdict(s) for s in ranking]}
    write_json(config.study / "report.json", _plain(facts))
    pictures = {
        name: _picture(figure, config.study / f"{name}.png")
        for name, figure in (("curves", _curves(trust)), ("sources", _sources(ranking)))
    }
    values = {"study": store.study, "trust": trust, "ranking": ranking, "pictures": pictures, "nan": math.isnan}
    console.print(f"report: {write_page(config.study / 'report.html', 'feedback_report', **values)}")


def _print(console: Console, trust: QualityReport, ranking: list[Strength]) -> None:
    agreed = "" if trust.agreement is None else f", {trust.agreement} of {trust.agreement.num} pairs of answers equal"
    console.print(f"{trust.answers} answers to {trust.items} items; Krippendorff's alpha {_number(trust.alpha)}{agreed}", highlight=False)
    table = Table("annotator", "answers", "accuracy", "consistent", "gold", "first shown", "seconds", "doubts")
    for person in trust.people:
        table.add_row(*_row(person), "; ".join(person.doubts))
    console.print(table)
    for criterion, alpha in trust.criteria.items():
        console.print(f"criterion {criterion}: alpha {_number(alpha)}", highlight=False)
    for s in ranking:
        console.print(
            f"{s.player}: {s.strength:+.2f} [{s.low:+.2f}, {s.high:+.2f}] in {s.games} comparisons", highlight=False, markup=False
        )


def _row(p: AnnotatorQuality) -> tuple[str, ...]:
    rates = ("-" if rate is None else f"{rate.rate:.0%} of {rate.num}" for rate in (p.consistency, p.gold, p.first_shown))
    return p.name, str(p.answers), _number(p.accuracy), *rates, _number(p.seconds, 1)


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _picture(figure: Figure | None, path: Path) -> str | None:
    if figure is None:
        return None
    save(figure, path)
    return data_uri(path)


def _curves(trust: QualityReport) -> Figure | None:
    drawn = [p for p in trust.people if len(p.curve) > 1]
    if not drawn:
        return None
    figure = new_figure(3.2)
    axes = figure.subplots()
    for index, person in enumerate(drawn):
        axes.plot(25 * np.arange(1, len(person.curve) + 1), person.curve, **look(index), markersize=5, label=person.name)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=FONT - 1, frameon=False)
    dress(axes, "answers given", "agrees with the others' majority")
    return figure


def _sources(ranking: list[Strength]) -> Figure | None:
    if not ranking:
        return None
    figure = new_figure(3.2)
    axes = figure.subplots()
    places = np.arange(len(ranking))[::-1]
    interval_bars(axes, places, [(s.strength, s.low, s.high) for s in ranking], across=True)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(places, [s.player[:24] for s in ranking])
    axes.set_ylim(-0.6, len(ranking) - 0.4)
    dress(axes, "strength: log-odds against the average")
    return figure


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
