"""Report, comparison and leaderboard of results whose numbers are known."""

import csv
import html
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from agents.benchmark import compare, leaderboard
from agents.benchmark.report import draw, short_names, summarise, write_bench_report
from agents.benchmark.results import read_cells, read_results, scores_of
from agents.benchmark.suites import SUITES
from agents.cli.main import main
from agents.reports import benchmark_plots
from tests.figures import bars_of, check_labels, legend_texts, lines_of, tick_labels
from tests.slow_cases import slow_but

from . import cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = cells.grid()
    rows[0] |= {"status": "crashed", "error": "ValueError: <boom>", "score": 0.0, "measures": {"seconds": 1.0}, "curve": [], "samples": []}
    del rows[4]
    return cells.write(tmp_path_factory.mktemp("bench"), rows)


@pytest.fixture(scope="module")
def page(folder):
    return write_bench_report(folder).read_text(encoding="utf-8")


def test_page_shows_everything_and_runs_nothing(page):
    assert page.count("data:image/png;base64,") == 5
    assert "<script>" not in page and html.escape("<script>alert(1)</script>") in page
    assert html.escape("ValueError: <boom>") in page and "Runs missing: 1<" in page
    assert "://" not in page
    assert "may write 20,000 tokens while it learns and is judged" in page
    assert '<span class="given">a &lt;b&gt;prompt&lt;/b&gt;</span> &lt;script&gt;' in page  # what the agent wrote is told from the prompt
    assert '<th scope="row">my_package<wbr>.agents<wbr>:Mine<wbr>:width=64</th>' in page  # or a narrow screen shows this column alone
    for agent in cells.AGENTS:
        assert agent in page


def test_summary_is_what_the_cells_say(folder, page):
    found = json.loads((folder / "summary.json").read_text())
    own = [c.score for c in read_results(folder) if c.agent == "rloo"]
    assert found["total"]["rloo"]["iqm"][0] == pytest.approx(stats.trim_mean(own, 0.25))
    assert found["total"]["rloo"]["gap"][0] == pytest.approx(np.maximum(1 - np.array(own), 0).mean())
    assert found["agents"] == list(cells.AGENTS)  # 0.12 apart, with noise of 0.03
    assert found["better"]["ppo"]["random"] == pytest.approx(59 / 60)
    assert found["verdicts"][0].startswith("ppo does better than rloo: its mean is 0.103 [0.028, 0.179] higher, seed by seed;")
    assert "rloo does better than grpo" in found["verdicts"][1]  # a run of ppo crashed: its interval is the wider one
    assert found["shown"] == found["agents"] and found["runs"]["ppo"] == 60 and found["runs"]["rloo"] == 59
    assert found["failures"][0]["error"] == "ValueError: <boom>" and len(found["missing"]) == 1


@pytest.mark.slow
def test_plots_show_the_summary(folder):
    results = read_results(folder)
    summary = summarise(results)
    figures = draw(results, summary)
    assert list(figures) == ["intervals", "profiles", "radar", "comparisons", "curves"]
    for figure in figures.values():
        check_labels(figure)
    short = [*cells.AGENTS[:-1], "my_package.agents...dth=64"]

    for axes, key in zip(figures["intervals"].axes, ("iqm", "mean", "gap"), strict=True):
        rows = [(6 - rank, *summary["total"][agent][key]) for rank, agent in enumerate(cells.AGENTS)]
        np.testing.assert_allclose(bars_of(axes), rows)
    assert [label.get_text() for label in tick_labels(figures["intervals"].axes[0].yaxis)] == short

    (axes,) = figures["profiles"].axes
    assert legend_texts(axes) == short
    for line, agent in zip(lines_of(axes), cells.AGENTS, strict=True):
        own = np.array([c.score for c in results if c.agent == agent])
        np.testing.assert_allclose(line[:, 1], [(own > threshold).mean() for threshold in np.linspace(-0.25, 1, 51)])

    for axes, agent, name in zip(figures["radar"].axes, cells.AGENTS, short, strict=True):
        means = [summary["table"][task][agent][0] for task in summary["tasks"]]
        np.testing.assert_allclose(lines_of(axes)[0][:, 1], np.clip([*means, means[0]], 0, 1))
        assert axes.get_title() == name and [text.get_text() for text in axes.texts] == summary["tasks"]

    (axes,) = figures["comparisons"].axes
    shown = {text.get_position(): text for text in axes.texts}
    assert len(shown) == 7 * 6 and shown[1, 0].get_text() == f"{summary['better']['ppo']['rloo']:.2f}".removeprefix("0")
    bold = {place for place, text in shown.items() if text.get_fontweight() == "bold"}
    by = scores_of(results)
    pairs = list(itertools.combinations(range(7), 2))
    each = [stats.ttest_1samp(np.nanmean(by[cells.AGENTS[a]] - by[cells.AGENTS[b]], 0), 0).pvalue for a, b in pairs]
    order = np.argsort(each)
    apart = [pairs[i] for rank, i in enumerate(order) if max(each[k] * (21 - r) for r, k in enumerate(order[: rank + 1])) < 0.05]
    assert len(apart) > 10 and bold == {place for a, b in apart for place in ((a, b), (b, a))}

    assert legend_texts(figures["curves"]) == ["ppo", "rloo", "grpo"]  # the others have no curve
    panel = figures["curves"].axes[3]
    runs = [c.curve for c in results if (c.task, c.agent) == ("task03", "rloo")]
    last = np.mean([run[-1]["score"] + run[-2]["score"] + run[-3]["score"] for run in runs]) / 3  # the window ends with the curve
    assert panel.get_title() == "task03" and lines_of(panel)[1][-1] == pytest.approx([0.5, last])
    low, high = figures["curves"].axes[3].collections[1].get_paths()[0].get_extents().intervaly
    assert low < lines_of(panel)[1][0, 1] and lines_of(panel)[1][-1, 1] < high


LONG = tuple(f"my_package.agents:Mine{i}:width=64" for i in range(6))


@pytest.mark.parametrize("tasks", slow_but([5], [1, 2, 4, 5]))
@pytest.mark.parametrize("agents", slow_but([cells.AGENTS, LONG], [("ppo",), cells.AGENTS, LONG]))
def test_labels_of_learning_curves_are_whole(tasks, agents):
    line = tuple(np.linspace(low, 1, 9) * scale for low, scale in ((0.1, 40_000), (0, 0.8), (0, 0.6), (0, 1)))
    figure = benchmark_plots.curves(agents, {f"task{t}": dict.fromkeys(agents, line) for t in range(tasks)})
    check_labels(figure)
    assert figure.get_supylabel() == "normalised score\nof the texts written" and len(legend_texts(figure)) == len(agents)


def test_csv_has_a_row_for_each_cell(folder, page):
    rows = list(csv.DictReader((folder / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 20 * 7 * 3 - 1
    row = next(r for r in rows if (r["task"], r["agent"], r["seed"]) == ("task03", "grpo", "1"))
    (own,) = (c for c in read_results(folder) if (c.task, c.agent, c.seed) == ("task03", "grpo", 1))
    assert float(row["score"]) == own.score and row["kl_per_sequence"] == "1.5"


def test_exact_tasks_are_apart_from_the_means(tmp_path):
    rows = cells.grid(tasks=4, seeds=5, agents=("ppo", "grpo"))
    rng = np.random.default_rng(1)
    at_kl = {agent: rng.normal(0.9, 0.02, 5) for agent in ("ppo", "grpo")}
    exact = [
        cells.cell("exact-smooth", agent, seed, closed, measures={"of_best_score": at_kl[agent][seed], "seconds": 1.0})
        for agent, closed in (("ppo", 1.0), ("grpo", -3.0))
        for seed in range(5)
    ]
    folder = cells.write(tmp_path, rows + exact)
    page = write_bench_report(folder).read_text(encoding="utf-8")
    found = json.loads((folder / "summary.json").read_text())
    own = [row["score"] for row in rows if row["agent"] == "grpo"]
    assert found["headline"] == [f"task0{t}" for t in range(4)] and found["total"]["grpo"]["mean"][0] == pytest.approx(np.mean(own))
    assert found["total_all"]["grpo"]["mean"][0] == pytest.approx(np.mean([*own, *[-3.0] * 5]))
    closed, of_best = found["exact"]["exact-smooth"]["grpo"]
    assert closed == [-3.0] * 3 and of_best[0] == pytest.approx(at_kl["grpo"].mean())
    text = (folder / "report.md").read_text()
    assert (
        "interquartile mean with exact tasks" in text
        and f"| exact-smooth | grpo | -3.00 [-3.00, -3.00] | {at_kl['grpo'].mean():.2f} [" in text
    )
    assert "Exact tasks" in page and 'href="#cell-2-1"' in page and 'id="cell-2-1"' in page
    assert page.count("<polyline") == 5 * 2 * 5  # every seed of every cell; all of these have a curve


OWN = "my_package.agents:Mine"


def test_an_agent_of_ones_own_has_no_score_on_exact_tasks(tmp_path):
    """Its KL is not known: older results, which took it for 0, are left out too."""
    rows = cells.grid(tasks=2, agents=("ppo", OWN))
    exact = [cells.cell("exact-smooth", agent, seed, score) for agent, score in (("ppo", 0.5), (OWN, 0.9)) for seed in range(3)]
    exact[-1] |= {"status": "crashed", "error": "it did", "score": 0.0}
    both, alone = cells.write(tmp_path / "both", rows + exact), cells.write(tmp_path / "alone", exact)
    page = write_bench_report(both).read_text(encoding="utf-8")
    found = json.loads((both / "summary.json").read_text())
    assert found["table"]["exact-smooth"][OWN] is None and found["table"]["exact-smooth"]["ppo"] == [0.5] * 3
    assert np.isnan(found["total_all"][OWN]["iqm"][0]) and found["total"][OWN]["mean"][0] == pytest.approx(
        np.mean([row["score"] for row in rows if row["agent"] == OWN])
    )
    assert found["unscored"] == {OWN: 3} and "3 runs on exact tasks have no score" in page
    assert "3 runs on exact tasks have no score" in (both / "report.md").read_text()
    page = write_bench_report(alone).read_text(encoding="utf-8")
    found = json.loads((alone / "summary.json").read_text())
    assert found["agents"] == ["ppo", OWN] and found["better"] == {"ppo": {}} and "nan" not in page
    assert [row["agent"] for row in leaderboard.rows_of(alone)] == ["ppo"] and "| nan |" not in (alone / "report.md").read_text()
    write_bench_report(cells.write(tmp_path / "own", exact[3:]))  # nothing has a score, and there is a report


def test_runs_without_a_measure_are_counted(tmp_path):
    """A run that failed or never reached the threshold is as late as can be, not left out of the median."""
    after = {"ppo": [100, 200, 300, None, "failed"], "grpo": [100, None, None, None, 300], "rloo": [None] * 4 + [50], "dpo": [None] * 5}
    rows = []
    for agent, tokens in after.items():
        for seed, reached in enumerate(tokens):
            row = cells.cell("exact-smooth", agent, seed, 0.5)
            row["measures"] |= {"tokens_to_threshold": reached, "of_best_score": 0.8}
            rows.append(row | ({"status": "crashed", "error": "it did", "measures": {}, "curve": []} if reached == "failed" else {}))
    folder = cells.write(tmp_path, rows)
    page = write_bench_report(folder).read_text(encoding="utf-8")
    found = json.loads((folder / "summary.json").read_text())
    assert {a: found["measures"][a]["tokens_to_threshold"] for a in after} == {"ppo": 300, "grpo": np.inf, "rloo": np.inf, "dpo": None}
    assert found["reached"] == {"ppo": [3, 5], "grpo": [2, 5], "rloo": [1, 5], "dpo": [0, 0]}
    assert "300 (3 of 5)" in page and "not reached (2 of 5)" in page and "not reached (1 of 5)" in page
    assert found["exact_runs"]["exact-smooth"] == {"ppo": [4, 5], "grpo": [5, 5], "rloo": [5, 5], "dpo": [5, 5]}
    assert "0.50 / 0.80 (4 of 5)" in page and "0.80 [0.80, 0.80] | 4 of 5 |" in (folder / "report.md").read_text()


def test_a_task_without_a_score_is_no_zero():
    axes = benchmark_plots.radar(("lock", "qa", "modes"), {"ppo": np.array([0.5, np.nan, 0.7]), "rloo": np.array([0.2, 0.0, 1.2])}).axes
    for own, drawn, names in zip(
        axes, ([0.5, np.nan, 0.7, 0.5], [0.2, 0, 1, 0.2]), (["lock", "qa: none", "modes"], ["lock", "qa", "modes"]), strict=True
    ):
        np.testing.assert_array_equal(own.lines[0].get_ydata(), drawn)
        assert [text.get_text() for text in own.texts] == names


def test_agents_that_share_no_task_are_not_compared(tmp_path):
    rows = [
        cells.cell(task, agent, seed, 0.5) for task, agent in (("lock", "ppo"), ("hack", "dpo"), ("exact-wide", "sft")) for seed in range(3)
    ]
    folder = cells.write(tmp_path, rows)
    write_bench_report(folder)
    found = json.loads((folder / "summary.json").read_text())
    assert found["better"] == {"dpo": {}, "ppo": {}} and found["agents"] == ["dpo", "ppo", "sft"] and found["verdicts"] == []


def test_results_of_two_protocols_are_not_mixed_in_silence(tmp_path):
    rows = cells.grid(tasks=3, agents=("ppo",))
    folder = cells.write(tmp_path, [row | {"protocol": 2} for row in rows[1:]] + rows[:1])  # an old one names none
    page = write_bench_report(folder).read_text(encoding="utf-8")
    assert json.loads((folder / "summary.json").read_text())["protocols"] == [1, 2] and "Results of protocols 1 and 2 are mixed" in page


def test_equal_agents_are_not_ranked(tmp_path):
    rows = cells.grid(agents=("one",)) + [{**row, "agent": "two"} for row in cells.grid(agents=("one",))]
    found = summarise(read_results(cells.write(tmp_path, rows)))
    assert found["better"]["one"]["two"] == 0.5 and found["apart"] == []
    assert "cannot be told apart" in found["verdicts"][0]


def test_one_seed_says_nothing_of_who_is_ahead(tmp_path):
    found = summarise(read_results(cells.write(tmp_path, cells.grid(seeds=1))))
    assert found["verdicts"] == ["With 1 of at least 3 seeds, intervals mean little: nothing is said of who is ahead."]


def test_missing_cells_are_found(folder, tmp_path):
    assert read_cells(folder).missing == ["task00 rloo 1"]
    rows = cells.grid(tasks=2, seeds=1, agents=("ppo", "rloo"))
    asked = cells.write(tmp_path, rows)
    assert read_cells(asked).missing == []  # nothing says what was asked for, and the grid is full
    current = {path.stem: {"fingerprint": "0" * 16} for path in (asked / "cells").glob("*.json")}
    (asked / "current.json").write_text(
        json.dumps({**current, "task02--ppo--0": {"fingerprint": "1"}, "task00--ppo--1": {"fingerprint": "1"}})
    )
    assert read_cells(asked).missing == ["task00--ppo--1", "task02--ppo--0"]
    assert "Runs missing: 2<" in write_bench_report(asked).read_text(encoding="utf-8")
    assert "Runs missing: 2;" in (asked / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="lacks 2 runs"):
        leaderboard.rows_of(asked)


def test_tuned_agents_are_beside_their_defaults(tmp_path):
    """One row with both, and the difference of the means, seed by seed; what has no settings has a row of its own."""
    rows = cells.grid(tasks=4, seeds=5, agents=("ppo", "rloo", "random"))
    gains = [0.05, 0.06, 0.07, 0.06, 0.06]
    better = [
        {**row, "agent": f"{row['agent']}:tuned=true", "score": row["score"] + gains[row["seed"]]}
        for row in rows
        if row["agent"] != "random"
    ]
    folder = cells.write(tmp_path, rows + better)
    page = write_bench_report(folder).read_text(encoding="utf-8")
    found = json.loads((folder / "summary.json").read_text())
    assert found["shown"] == ["ppo:tuned=true", "rloo:tuned=true", "random"]
    assert found["untuned"] == {"ppo:tuned=true": "ppo", "rloo:tuned=true": "rloo"}
    low, high = stats.t.interval(0.95, 4, np.mean(gains), stats.sem(gains))
    assert found["tuning"]["ppo:tuned=true"] == pytest.approx([0.06, low, high])
    table = [line.split(" | ") for line in (folder / "report.md").read_text().splitlines() if line.startswith(("| ppo:tuned", "| random"))]
    assert table[0][3] == f"0.060 [{low:.3f}, {high:.3f}]" and table[1][2:4] == ["-", "-"]
    assert "that the choice has cost 4 budgets more" in page and page.count("cannot be told apart") + page.count("does better than") == 2
    assert found["better"].keys() == {"ppo:tuned=true", "rloo:tuned=true", "random"}


def test_agents_that_share_one_seed_of_a_task_are_not_compared(tmp_path):
    """Nothing is said of whether they differ; means of several seeds elsewhere do not make up for it."""
    rows = [
        row
        for row in cells.grid(tasks=3, seeds=4, agents=("ppo", "rloo"))
        if (row["task"], row["agent"]) != ("task00", "rloo") or row["seed"] == 0
    ]
    found = summarise(read_results(cells.write(tmp_path, rows)))
    assert found["verdicts"] == ["ppo and rloo are not compared: on some task they share a single seed."] and found["apart"] == []


def test_a_damaged_file_is_named(tmp_path):
    cells.write(tmp_path, cells.grid(tasks=1))
    (tmp_path / "cells" / "broken.json").write_text('{"task": ')
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results"):
        read_results(tmp_path / "nothing")


def test_compare_finds_what_changed_and_only_that(tmp_path, capsys):
    before = cells.grid(tasks=6, seeds=5)
    gains = [0.29, 0.3, 0.31, 0.3, 0.3]  # by seed; scores of the same seed differ less than seeds do
    after = [row | {"score": row["score"] + gains[row["seed"]] * ((row["task"], row["agent"]) == ("task02", "dpo"))} for row in before]
    a, b = (cells.write(tmp_path / name, rows) for name, rows in (("a", before), ("b", after)))
    (changed,) = (c for c in compare.changes(read_results(a), read_results(b)) if c.is_change)
    assert (changed.task, changed.agent) == ("task02", "dpo")
    x, y = ([r["score"] for r in rows if (r["task"], r["agent"]) == ("task02", "dpo")] for rows in (before, after))
    assert changed.p == pytest.approx(min(1, 42 * stats.ttest_rel(y, x).pvalue))
    low, high = stats.ttest_rel(y, x).confidence_interval(0.95)
    assert (changed.low, changed.high) == pytest.approx((low, high))
    half = stats.t.ppf(0.975, 4) * np.std(gains, ddof=1) / np.sqrt(5) / 6  # of six tasks one changed
    total = compare.totals(read_results(a), read_results(b))
    assert f"dpo, all tasks, seed by seed: +0.050 [{0.05 - half:+.3f}, {0.05 + half:+.3f}]" in total
    assert "ppo, all tasks, seed by seed: +0.000 [+0.000, +0.000]" in total
    assert main(["bench", "compare", str(a), str(b)]) == 0
    assert "1 of 42 comparisons changed" in capsys.readouterr().out
    assert main(["bench", "compare", str(a), str(a)]) == 0
    assert "No change beyond noise" in capsys.readouterr().out


def test_compare_leaves_out_runs_without_a_partner(tmp_path, capsys):
    rows = cells.grid(tasks=1, seeds=3, agents=("ppo",))
    a = cells.write(tmp_path / "a", rows)
    b = cells.write(tmp_path / "b", [row | {"score": row["score"] + 1} for row in rows[1:]])
    assert main(["bench", "compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "1 runs have no partner with the same seed" in out and "ppo, all tasks, seed by seed: +1.000 [+1.000, +1.000]" in out


def test_compare_keeps_exact_tasks_apart(tmp_path):
    """Up by .1 on three tasks and down by 1.5 on an exact one, which the headline leaves out."""
    before = cells.grid(tasks=3, agents=("ppo",)) + [cells.cell("exact-smooth", "ppo", seed, 0.5) for seed in range(3)]
    after = [row | {"score": row["score"] + (-1.5 if row["task"] == "exact-smooth" else 0.1)} for row in before]
    a, b = (read_results(cells.write(tmp_path / name, rows)) for name, rows in (("a", before), ("b", after)))
    assert compare.totals(a, b) == [
        "ppo, all tasks but exact ones, seed by seed: +0.100 [+0.100, +0.100]", "ppo, exact tasks, seed by seed: -1.500 [-1.500, -1.500]"
    ]  # fmt: skip


def test_one_shared_seed_is_not_tested(tmp_path, capsys):
    rows = cells.grid(tasks=2, seeds=1, agents=("ppo",))
    a, b = cells.write(tmp_path / "a", rows), cells.write(tmp_path / "b", [row | {"score": row["score"] + 0.7} for row in rows])
    assert main(["bench", "compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 comparisons share too few seeds to be tested" in out and "No change" not in out and "nan" not in out
    assert "+0.700 (a task shares a single seed: no interval)" in out


def test_compare_names_what_differs_besides(tmp_path, capsys):
    a = cells.write(tmp_path / "a", cells.grid(tasks=2))
    b = cells.write(tmp_path / "b", [row | {"fingerprint": "1" * 16} for row in cells.grid(tasks=1)])
    assert main(["bench", "compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "Only the first has 7 pairs" in out and "21 runs have other inputs" in out


def test_leaderboard_repeats_each_row(tmp_path, capsys):
    folder = cells.write(tmp_path / "r", cells.grid(), tokens=500)
    assert main(["bench", "leaderboard", str(folder), "--out", str(tmp_path / "board.html")]) == 0
    page, text = ((tmp_path / f"board.{kind}").read_text() for kind in ("html", "md"))
    assert "textrl bench --preset quick --agents ppo --seeds 3 --suite diagnostic --total-tokens 500 --texts 256" in page
    rows = [line for line in text.splitlines() if line.startswith("| ") and "textrl bench" in line]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(cells.AGENTS)
    old = [row | {"manifest": cells.MANIFEST | {"versions": {"textrl": "0.0.9"}}} for row in cells.grid()]
    assert {row["version"] for row in leaderboard.rows_of(cells.write(tmp_path / "old", old))} == {"0.0.9"}  # named so at first
    with pytest.raises(ValueError, match="lacks 1 runs"):
        leaderboard.rows_of(cells.write(tmp_path / "hole", cells.grid()[1:]))


def test_a_leaderboard_compares_what_had_the_same_tasks_budgets_seeds_and_texts(tmp_path, capsys):
    def folder(name, *tasks, tokens=1000, seeds=3, texts=256):
        rows = [
            cells.cell(task, "ppo", seed, 0.5, budget=tokens, manifest=cells.MANIFEST | {"config": {"texts": texts}})
            for task in tasks
            for seed in range(seeds)
        ]
        return str(cells.write(tmp_path / name, rows, tasks=list(tasks)))

    def boards(*folders):
        assert main(["bench", "leaderboard", *folders, "--out", str(tmp_path / "board.html")]) == 0
        return [line.removeprefix("## ") for line in (tmp_path / "board.md").read_text().splitlines() if line.startswith("## ")]

    one = folder("one", "recall-4")
    assert boards(one, folder("two", "lock-12", tokens=500_000, seeds=10)) == [
        "recall-4 with 1,000 tokens, 3 seeds, 256 texts, protocol 1", "lock-12 with 500,000 tokens, 10 seeds, 256 texts, protocol 1"
    ]  # fmt: skip
    assert len(boards(one, folder("same", "recall-4"))) == 1
    assert "--seeds 3 --tasks recall-4 " in (tmp_path / "board.md").read_text()
    others = [folder("seeds", "recall-4", seeds=4), folder("texts", "recall-4", texts=64), folder("tokens", "recall-4", tokens=999)]
    assert len(boards(one, *others)) == 4
    assert boards(folder("exact", *SUITES["exact"], tokens=10_000)) == ["7 tasks: exact, quick, 3 seeds, 256 texts, protocol 1"]


def test_names_of_tasks_in_plots():
    assert short_names(["recall", "lock"]) == ["recall", "lock"] and short_names(["review"]) == ["review"]
    assert short_names(["reasoning:dataset=gcd:size=8", "reasoning:dataset=sum:size=8"]) == ["gcd", "sum"]
    assert short_names(["corpus:path=a:n=1", "corpus:path=a:n=2", "lock"]) == ["corpus:1", "corpus:2", "lock"]
    assert short_names(["reasoning:dataset=gcd:size=8"]) == ["gcd:8"]
    assert short_names(["recall:a=1", "recall:b=1"]) == ["recall:a=1", "recall:b=1"]  # or both would be 1


@pytest.mark.reports("Results of earlier inputs stay in the means of textrl bench")
def test_results_of_other_inputs_are_left_out(tmp_path):
    rows = [cells.cell("recall", "ppo", seed, 0.9 if seed < 3 else 0.1, fingerprint="new" if seed < 3 else "old") for seed in range(10)]
    folder = cells.write(tmp_path, rows)
    assert np.mean([c.score for c in read_results(folder)]) == pytest.approx((3 * 0.9 + 7 * 0.1) / 10)  # nothing says what is current
    (folder / "current.json").write_text(json.dumps({f"recall--ppo--{seed}": {"fingerprint": "new"} for seed in range(3)}))
    page = write_bench_report(folder).read_text(encoding="utf-8")
    assert json.loads((folder / "summary.json").read_text())["table"]["recall"]["ppo"] == pytest.approx([0.9] * 3)
    assert "7 results of other inputs left out" in page and "7 results of other inputs left out" in (folder / "report.md").read_text()
    (folder / "current.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="other inputs"):
        read_results(folder)
