import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from agents.pipelines.demo_report import explain_kl, print_results, read_run, summarise, write_report
from agents.reports.training_plots import frontier, learning_curve
from tests.figures import check_labels, legend_texts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
HOSTILE = 'Fish & chips <script>alert("x")</script> <img src=https://example.com/a.png>'
BASE = {
    "learned": -0.02,
    "gold": -0.05,
    "kl_per_sequence": 0.0,
    "distinct_2": 0.41,
    "length": 22.9,
    "finished_by_eos": 0.98,
    "tokens_per_second": 5200.0,
}
KL = BASE | {
    "title": "with KL shaping",
    "beta": "adaptive, target 8 nats",
    "learned": 1.52,
    "gold": 1.11,
    "kl_per_sequence": 7.93,
    "distinct_2": 0.36,
    "win_rate": {"rate": 0.86, "low": 0.82, "high": 0.89, "num": 500},
    "seconds": 61.0,
}
NO_KL = KL | {
    "title": "without KL shaping (beta 0)",
    "beta": 0,
    "learned": 2.84,
    "gold": 0.62,
    "kl_per_sequence": 41.3,
    "distinct_2": 0.12,
    "win_rate": {"rate": 0.66, "low": 0.62, "high": 0.70, "num": 500},
}
CURVES = {"kl": (1.5, 1.1, 8.0), "no-kl": (2.9, 0.6, 41.0)}


def write_curve(path, learned, gold, kl, rows=60):
    rng = np.random.default_rng(0)
    done = 1 - np.exp(-np.linspace(0, 4, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow("iteration texts tokens learned gold kl_per_sequence beta entropy length finished_by_eos".split())
        for i, d in enumerate(done):
            noise = rng.normal(0, 0.08, 3)
            hump = 4 * (1.4 - gold) * d * (1 - d) if gold < 1 else 0
            out.writerow(
                [
                    i + 1,
                    128 * (i + 1),
                    2900 * (i + 1),
                    learned * d + noise[0],
                    gold * d + hump + noise[1],
                    kl * min(1, 1.4 * d) + noise[2] * kl * d,
                    0.1,
                    2.0,
                    23,
                    0.98,
                ]
            )


def make_folder(folder, variants=("kl", "no-kl"), **changes):
    measures = {"kl": KL, "no-kl": NO_KL}
    results = {
        "config": {"seed": 0, "target_kl": 8.0, "note": HOSTILE, "curves": ["a", "b"]},
        "reward_model": {"pairs": 3000, "held_out_pairs": 400, "train_accuracy": 0.86, "held_out_accuracy": 0.8, "best_accuracy": 0.85},
        "base": BASE,
        "variants": {name: measures[name] for name in variants},
        "seconds": {"pretrain": 31.0, "compare": 9.1, "reward": 30.2},
        "versions": {"textrl-env": "0.1.0", "torch": "2.13.0"},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name in variants:
        write_curve(folder / name / "curve.csv", *CURVES[name])
    texts = [
        {
            "prompt": f"I went to see Night Train {i} and",
            "base": {"response": "it was a film with a plot and some music in it.", "learned": 0.1, "gold": -0.3},
        }
        for i in range(7)
    ]
    for i, text in enumerate(texts):
        text |= {
            name: {"response": f"the acting was superb, and film {i} moved me to tears.", "learned": 1.6, "gold": 1.2} for name in variants
        }
    texts[0]["base"] = texts[0]["base"] | {"response": HOSTILE}
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Tags, links and table rows of a page, as a browser would find them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.rows = [], [], []
        self.in_row = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "tr":
            self.rows.append("")
            self.in_row = True

    def handle_endtag(self, tag):
        self.in_row = self.in_row and tag != "tr"

    def handle_data(self, data):
        if self.in_row:
            self.rows[-1] += data + " "

    def row(self, label):
        return " ".join(next(row for row in self.rows if row.strip().startswith(label)).split())


def test_report_holds_the_figures(tmp_path):
    page = Page(write_report(make_folder(tmp_path)).read_text(encoding="utf-8"))
    assert page.row("Learned score").endswith("-0.02 +1.52 +2.84")
    assert page.row("Gold score").endswith("-0.05 +1.11 +0.62")
    assert page.row("Gold win rate").endswith("n/a 86.0% [82.0%, 89.0%] 66.0% [62.0%, 70.0%]")
    assert page.row("KL per text").endswith("0.00 7.93 41.30")
    assert page.row("Distinct-2").endswith("0.410 0.360 0.120")
    assert page.row("Length").endswith("22.9 22.9 22.9")
    assert page.row("Finished").endswith("98.0% 98.0% 98.0%")
    assert page.row("Tokens per second").endswith("5,200 5,200 5,200")
    assert page.row("PPO with KL shaping").endswith("61.0")
    assert page.tags.count("blockquote") == 5 and page.tags.count("img") == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "frontier.png", "learning_curve.png", "report.html", "results.json", "texts.jsonl"
    ]  # fmt: skip


def test_plots_of_the_page_show_both_runs(tmp_path):
    run = read_run(make_folder(tmp_path))
    for figure in (frontier(run.curves), learning_curve(run.curves)):
        check_labels(figure)
        assert legend_texts(figure) == [KL["title"], NO_KL["title"], "learned score", "gold score"]


def test_what_a_model_wrote_arrives_escaped_and_nothing_is_loaded(tmp_path):
    html = write_report(make_folder(tmp_path)).read_text(encoding="utf-8")
    assert "Fish &amp; chips &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import", html)


@pytest.mark.parametrize(("variant", "gold"), [("kl", "-0.05 +1.11"), ("no-kl", "-0.05 +0.62")])
def test_one_variant_may_be_missing(tmp_path, variant, gold):
    html = write_report(make_folder(tmp_path, variants=(variant,))).read_text(encoding="utf-8")
    assert "What the KL term is for" not in html
    assert Page(html).row("Gold score").endswith(f"utility {gold}")


def test_a_half_character_and_an_empty_text_are_shown(tmp_path):
    folder = make_folder(tmp_path, variants=("kl",))
    written = {"response": "", "learned": 0.0, "gold": float("nan")}
    (folder / "texts.jsonl").write_text(json.dumps({"prompt": "half \ud83d", "base": written, "kl": written}) + "\n\n")
    html = write_report(folder).read_text(encoding="utf-8")
    assert "half \\ud83d" in html and "(nothing)" in html and "gold n/a" in html


def test_a_folder_that_cannot_be_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="textrl demo"):
        read_run(tmp_path)
    folder = make_folder(tmp_path / "run")
    (folder / "kl" / "curve.csv").write_text("iteration,texts\n")
    with pytest.raises(ValueError, match=r"has 0 rows and lacks texts, learned"):
        read_run(folder)
    with pytest.raises(ValueError, match="no variants"):
        read_run(make_folder(tmp_path / "none", variants=()))


def variant(learned, gold, low=0.6, high=0.7):
    return KL | {"learned": learned, "gold": gold, "win_rate": {"rate": (low + high) / 2, "low": low, "high": high, "num": 500}}


WITH = variant(1.5, 1.0, 0.8, 0.9)


@pytest.mark.parametrize(
    ("kl", "without", "said", "unsaid"),
    [
        (WITH, variant(2.8, -0.6), "reward hacking", "overoptimisation"),
        (WITH, variant(2.8, 0.5), "overoptimisation)", "hacking"),
        (WITH, variant(1.0, 0.5), "poorer training", "overoptimisation"),
        (WITH, variant(2.8, 1.4), "no overoptimisation", "hacking"),
        (WITH, variant(2.8, 0.9, 0.75, 0.85), "hint", "overoptimisation"),
        (variant(1.5, -0.7), variant(2.8, -0.6), "no overoptimisation", "hacking"),
    ],
)
def test_hacking_is_claimed_only_where_the_numbers_show_it(kl, without, said, unsaid):
    text = " ".join(explain_kl(BASE, kl, without))
    assert said in text and unsaid not in text


def test_changes_are_counted_from_the_base():
    facts = explain_kl(BASE, WITH, variant(2.8, -0.65))[0]
    assert "learned score rose by 2.82 (with it, it rose by 1.52)" in facts
    assert "gold score fell by 0.60 (with it, it rose by 1.05)" in facts


@pytest.mark.parametrize(
    ("rate", "low", "high", "said"), [(0.52, 0.48, 0.56, "does not tell"), (0.3, 0.26, 0.34, "worse"), (0.9, 0.85, 0.93, "nats per text.")]
)
def test_verdict_follows_the_interval(tmp_path, rate, low, high, said):
    kl = KL | {"win_rate": {"rate": rate, "low": low, "high": high, "num": 500}}
    run = read_run(make_folder(tmp_path, variants=("kl",)))
    run.results["variants"] = {"kl": kl}
    assert said in summarise(run)[-1]


def test_terminal_twin_fits_and_obeys_no_escape_sequence(tmp_path, capsys):
    folder = make_folder(tmp_path)
    lines = (folder / "texts.jsonl").read_text().splitlines()
    text = json.loads(lines[0]) | {"base": {"response": "[red]markup[/red] \x1b[31mescape", "learned": 0.1, "gold": -0.3}}
    (folder / "texts.jsonl").write_text("\n".join([json.dumps(text), *lines[1:]]))
    print_results(folder, Console(width=160))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for figure in ("-0.05", "+1.11", "86.0% [82.0%, 89.0%]", "41.30", "80.0% of 400", "[red]markup[/red]", "learned +0.10, gold -0.30"):
        assert figure in shown
    assert "\x1b" not in shown
    assert shown.count("I went to see Night Train") == 5


def browse(page, profile, *flags):
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *flags, page.as_uri()], capture_output=True, timeout=120, check=True
    )
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_browser_shows_the_report(tmp_path):
    page = write_report(make_folder(tmp_path / "run"))
    dom = Page(browse(page, tmp_path / "profile", "--dump-dom"))
    assert dom.row("Gold win rate").endswith("n/a 86.0% [82.0%, 89.0%] 66.0% [62.0%, 70.0%]")
    assert dom.row("KL per text").endswith("0.00 7.93 41.30")
    assert "script" not in dom.tags
