"""All kinds of algorithms on film reviews in small: results are kept, summed up and drawn."""

import json

import numpy as np
import pytest

from agents.benchmark.studies import film_reviews as review
from agents.benchmark.studies.film_reviews import Review, draw, main
from rewards.utils.intervals import win_rate
from tests.figures import check_labels, lines_of

from . import small_reviews


@pytest.mark.slow
def test_every_kind_is_trained_judged_and_kept(small_reviews_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTRL_CACHE", str(small_reviews_cache))
    monkeypatch.setattr(review, "make_task", small_reviews.small_task)
    for name in ("share", "run_one"):
        monkeypatch.setattr(review, name, getattr(small_reviews, name))
    names = ("rloo", "sft", "dpo", "expert-iteration", "best-of-8", "random")
    config = Review(algorithms=names, seeds=1, tokens=800, texts=40, out=tmp_path, markdown=tmp_path / "t.md", figure=tmp_path / "f.png")
    rows = main(config)
    assert rows["random"]["by_seed"][0].high < 0.5
    assert rows["best-of-8"]["gold"] > rows["random"]["gold"]
    result = json.loads((tmp_path / "seed-0" / "dpo" / "result.json").read_text())
    assert rows["dpo"]["by_seed"] == [win_rate(np.array(result["gold"]), np.array(result["base"]))]
    assert rows["dpo"]["wins"].value == rows["dpo"]["by_seed"][0].rate
    assert [share for share, _ in result["curve"]] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rows["rloo"]["curves"][0][-1][0] == 1 and rows["rloo"]["kl"] > 0
    table = (tmp_path / "t.md").read_text()
    assert all(f"| {name} |" in table for name in ("base", *names)) and "f.png" in table
    assert (tmp_path / "f.png").is_file()
    figure = draw(rows)
    check_labels(figure)
    assert [axes.get_title() for axes in figure.axes] == ["rloo", "sft", "dpo", "expert-iteration"]  # the others do not learn
    for axes, name in zip(figure.axes, names, strict=False):
        curve, level = lines_of(axes)
        np.testing.assert_allclose(curve[:, 0], [100 * share for share, _ in rows[name]["curves"][0]])
        assert set(level[:, 1]) == {rows["random"]["base"]}
    written = (tmp_path / "seed-0" / "rloo" / "result.json").stat().st_mtime_ns
    assert str(main(config)) == str(rows)  # as text, for intervals of one run are NaN; nothing is run again
    assert (tmp_path / "seed-0" / "rloo" / "result.json").stat().st_mtime_ns == written
    assert "wins against base" in capsys.readouterr().out
