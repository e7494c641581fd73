"""`textrl train` on judgements of single texts, on the relatives of DPO, and by a judge that compares."""

import json

import numpy as np
import pytest
import yaml

from agents.algorithms.sft import SFT
from agents.cli.main import main

SENTENCES = [f"the {a} was {b} and i {c} it" for a in ("plot", "cast", "song") for b in ("good", "bad", "slow") for c in ("saw", "liked")]
RATED = [
    {"prompt": "the plot", "text": f" was {word} and i {did} it", "ratings": [rating, rating, 3]}
    for word, rating in (("good", 5), ("bad", 1))
    for did in ("saw", "liked")
]
JUDGE = """
class Longer:
    def score(self, episodes):
        return [0.0] * len(episodes)

    def compare(self, firsts, seconds):
        with open({log!r}, "a") as file:
            file.write(f"{{len(firsts)}}\\n")
        return [float(len(one.response) > len(two.response)) for one, two in zip(firsts, seconds)]
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    learn = SFT.learn
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, min(steps, 5), *args, **kwargs))
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES))
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RATED))
    pairs = [{"prompt": "the plot", "chosen": f" was good and i {v} it", "rejected": f" was bad and i {v} it"} for v in ("saw", "liked")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    files = {"corpus": tmp_path / "corpus.txt", "ratings": tmp_path / "ratings.jsonl", "preferences": tmp_path / "pairs.jsonl"}

    def run(algo, *flags, read=()):
        of_files = [word for name in ("corpus", *read) for word in (f"--{name}", str(files[name]))]
        return main(["train", "--algo", algo, *of_files, "--reward", "length", "--out", str(tmp_path / "run"), "--eval-texts", "0", *flags])

    return run


def test_kto_learns_from_ratings(train, tmp_path, capsys):
    assert train("kto", "--steps", "3", "--desirable-weight", "1.2", read=["ratings"]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["beta"], saved["desirable_weight"], saved["undesirable_weight"], saved["learning_rate"]) == (0.1, 1.2, None, 2e-4)
    assert train("kto", "--steps", "3", "--desirable-weight", "1.2", read=["ratings"]) == 0  # done already
    assert train("kto", "--steps", "3", "--desirable-weight", "1.2", "--good-above", "2", read=["ratings"]) == 2
    assert "good_above" in capsys.readouterr().err  # another run


@pytest.mark.parametrize(
    ("algo", "flags", "said"),
    [
        ("kto", ["--ratings", "r", "--preferences", "p"], "pass --ratings FILE, or else --preferences FILE"),
        ("kto", ["--preferences", "p", "--good-above", "2"], "--good-above 2: for the file of --ratings, which is not given"),
        ("dpo", ["--preferences", "p", "--ratings", "r"], "leave out --ratings, which --algo dpo does not use"),
        ("dpo", ["--preferences", "p", "--desirable-weight", "2"], "leave out --desirable-weight"),
        ("simpo", [], "--algo simpo learns from preferences: pass --preferences FILE"),
        ("rloo", ["--judge", "vader"], "leave out --judge"),
        ("dpo", ["--preferences", "p", "--label-smoothing", "0.5"], "label-smoothing"),
    ],
)
def test_what_is_refused(train, capsys, algo, flags, said):
    assert train(algo, *flags) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_relatives_of_dpo_take_their_settings(train, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("agents.algorithms.dpo.DPO.learn", lambda self, *args, **kwargs: made.append(self) or self.losses.append(0.0))
    for algo, flags in (("dpo", []), ("robust-dpo", []), ("simpo", []), ("dpo", ["--label-smoothing", "0.2", "--gamma", "0.5"])):
        assert train(algo, "--overwrite", *flags, read=["preferences"]) == 0
    assert [(one.loss, one.beta, one.label_smoothing, one.gamma) for one in made] == [
        ("sigmoid", 0.1, 0.0, 0.0), ("robust", 0.1, 0.1, 0.0), ("simpo", 2.0, 0.0, 1.0), ("sigmoid", 0.1, 0.2, 0.5),
    ]  # fmt: skip


def test_a_judge_compares_and_the_reward_measures(train, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE.format(log=str(tmp_path / "asked.txt")))
    sizes = ["--total-tokens", "400", "--n-episodes", "16", "--batch-size", "8", "--judge", f"{tmp_path / 'judge.py'}:Longer"]
    assert train("online-dpo", *sizes) == 0
    rollouts = (tmp_path / "asked.txt").read_text().splitlines()
    assert rollouts and set(rollouts) == {"8"}
    (log,) = (tmp_path / "run" / "online-dpo" / "log-0").glob("progress.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) >= len(rollouts) >= 1 and all(row["objective/score"] > 0 for row in rows)
    assert all(np.isfinite(row["policy/accuracy"]) for row in rows[1:])  # a row is written before its update
