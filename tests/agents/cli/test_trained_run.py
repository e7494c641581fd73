"""`textrl train`, then `evaluate` and `generate` on the run it left."""

import json
import math
import shutil
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import pytest

from agents.algorithms.common.training_warnings import TrainingWarning
from agents.algorithms.registry import ALGORITHMS
from agents.algorithms.sft import SFT
from agents.cli.main import main
from agents.training.settings import FROM_PAIRS, OFFLINE
from tests.slow_cases import slow_but
from textrl_env import make_task

SENTENCES = [f"the {a} was {b} and i {c} it" for a in ("plot", "cast", "song") for b in ("good", "bad", "slow") for c in ("saw", "liked")]
LEARN = SFT.learn


@contextmanager
def few_steps(number, cache):
    """Have base policies, and whatever else imitates, learn for a few steps; base policies are kept in a cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTRL_CACHE", str(cache / str(number)))
        patch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: LEARN(self, texts, min(steps, number), *args, **kwargs))
        yield


@pytest.fixture(scope="session")
def cache(made_once):
    return made_once("trained-run-cache", lambda folder: None)


@pytest.fixture
def corpus(tmp_path, cache):
    """A file of texts, whose base policy learns for 5 steps."""
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES))
    with few_steps(5, cache):
        yield str(tmp_path / "corpus.txt")


@pytest.fixture(scope="session")
def finished(made_once, cache):
    """The folder of a finished run."""

    def train(folder):
        (folder / "corpus.txt").write_text("\n".join(SENTENCES))
        reward = '{"name": "keyword", "keywords": ["good"]}'
        sizes = ["--total-tokens", "900", "--n-episodes", "16", "--batch-size", "8"]
        with few_steps(15, cache), redirect_stdout(StringIO()) as out:
            assert main(["train", "--corpus", str(folder / "corpus.txt"), "--reward", reward, "--out", str(folder / "run"), *sizes]) == 0
        assert "policy.zip" in out.getvalue().replace("\n", "")

    return made_once("trained-run", train) / "run"


@pytest.fixture
def run(finished, cache, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished, tmp_path / "run")
    with few_steps(15, cache):
        yield tmp_path / "run"


def test_evaluate_and_generate(run, capsys, tmp_path):
    assert main(["evaluate", str(run), "--texts", "20"]) == 0
    figures = json.loads((run / "evaluation-ppo.json").read_text())
    rows = [json.loads(line) for line in (run / "evaluation-ppo.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and "20 texts of each policy" in figures["prompts"]
    told = json.loads((run / "outcome.json").read_text())["prompts"]
    assert told.endswith("9 of which are among the training prompts: they are not held out, and a gain may be one of memory")
    assert figures["score"] == pytest.approx(sum(row["score"] for row in rows) / 20)
    assert figures["return"] == figures["score"]  # this task has no penalties
    assert figures["kl_per_sequence"] > 0 and figures["length"] >= 1
    assert sum(value for key, value in figures.items() if key.startswith("finished_by")) == pytest.approx(1)

    capsys.readouterr()
    assert main(["generate", str(run), "the plot", "--seed", "3"]) == 0
    streamed = capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("the plot\nthe cast\n")
    assert (
        main(["generate", str(run), "--file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out.jsonl"), "--deterministic"]) == 0
    )
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["the plot", "the cast"]
    assert streamed.startswith("the plot") and len(streamed) > len("the plot\n")


FAST = ("a2c", "grpo")  # of each kind of loop one; the others run with the slow tests


@pytest.mark.parametrize(
    "algo",
    slow_but(FAST, (name for name in ALGORITHMS if name not in ("ppo", "distill"))),
)
def test_every_algorithm_from_the_command_line(corpus, tmp_path, capsys, algo):
    sizes = ["--total-tokens", "300", "--n-episodes", "16", "--algo", algo, "--eval-texts", "8"]
    sizes += ["--reward", '{"name": "sum", "terms": {"length": "length"}}' if algo == "gdpo" else "length"]
    sizes += ["--batch-size", "8"] if ALGORITHMS[algo].minibatches else []
    arguments = ["train", "--corpus", corpus, "--out", str(tmp_path / "run"), *sizes]
    assert main(arguments) == 0
    curve = (tmp_path / "run" / algo / "curve.csv").read_text()
    assert len(curve.splitlines()) >= 2
    samples = [json.loads(line) for line in (tmp_path / "run" / algo / "samples.jsonl").read_text().splitlines()]
    assert samples and set(samples[0]) == {"tokens", "prompt", "response", "score"}
    (log,) = (tmp_path / "run" / algo / "log-0").glob("progress.json")
    names = {name.split("/")[0] for line in log.read_text().splitlines() for name in json.loads(line)}
    assert {"objective", "kl", "tokens", "time"} <= names <= {"objective", "kl", "tokens", "time", "policy", "value", "rollout", "reward"}
    assert main(arguments) == 0  # done already: nothing is trained again
    assert (tmp_path / "run" / algo / "curve.csv").read_text() == curve
    assert main(["evaluate", str(tmp_path / "run"), "--texts", "8"]) == 0
    assert (tmp_path / "run" / f"evaluation-{algo}.json").is_file()
    capsys.readouterr()


@pytest.mark.parametrize("algo", slow_but(("sft", "dpo"), OFFLINE))
def test_training_without_playing_from_the_command_line(corpus, tmp_path, capsys, algo):
    pairs = [{"prompt": "the plot", "chosen": f" was good and i {v} it", "rejected": f" was bad and i {v} it"} for v in ("saw", "liked")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["train", "--corpus", corpus, "--out", str(tmp_path / "run"), "--algo", algo, "--reward", "length"]
    if algo in (*FROM_PAIRS, "kto"):
        assert main(arguments) == 2
        assert "--preferences FILE" in capsys.readouterr().err
        arguments += ["--preferences", str(tmp_path / "pairs.jsonl")]
    arguments += ["--steps", "2", "--eval-texts", "8"]
    assert main(arguments) == 0
    weights = tmp_path / "run" / algo / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert main(arguments) == 0 and weights.stat().st_mtime_ns == written  # done already
    assert not (tmp_path / "run" / algo / "checkpoint").exists()
    assert main(["evaluate", str(tmp_path / "run"), "--texts", "8"]) == 0
    assert json.loads((tmp_path / "run" / f"evaluation-{algo}.json").read_text())["length"] >= 1
    capsys.readouterr()


@pytest.mark.reports("`textrl train` says first which model it starts from, and warns where that knows no such texts as it is given")
@pytest.mark.slow
def test_the_first_policy_is_named(corpus, cache, tmp_path, capsys):
    known = [{"prompt": "the plot was good", "chosen": f" and i {v} it", "rejected": " and i it it"} for v in ("saw", "liked")]
    strange = [{"prompt": "Gegeben sei", "chosen": " eine Matrix X", "rejected": " ein Vektor Y"}]
    with few_steps(60, cache):
        for algo, rows, told in (("dpo", known, False), ("dpo", strange, True), ("ipo", strange, True), ("sft", strange, True)):
            (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            files = ["--corpus", corpus, "--eval-texts", "8", "--preferences", str(tmp_path / "pairs.jsonl")]
            assert main(["train", "--algo", algo, "--steps", "1", *files, "--out", str(tmp_path / f"{algo}-{told}")]) == 0
            said = capsys.readouterr().out
            assert said.startswith("starts from the base policy of the text files, as there is no --model\n")
            assert ("does not know such texts" in said) == told
        assert main(["train", "--algo", "expert-iteration", "--steps", "1", *files[:4], "--out", str(tmp_path / "best")]) == 0
        assert capsys.readouterr().out.startswith("starts from the base policy of the text files")
        model = str(tmp_path / "dpo-True" / "dpo" / "model")
        assert main(["train", "--algo", "dpo", "--steps", "1", "--model", model, *files, "--out", str(tmp_path / "again")]) == 0
        assert capsys.readouterr().out.startswith(f"starts from {model}\n")


@pytest.mark.reports("`textrl train` uses the ties of a file, counts what it cuts, and refuses to imitate where nothing is preferred")
@pytest.mark.slow
def test_what_a_file_of_preferences_says(corpus, tmp_path, capsys):
    tie = {"prompt": "the plot", "chosen": " was good", "rejected": " was bad", "label": "tie"}
    long = {"prompt": "the plot", "chosen": " was good and i saw it" * 20, "rejected": " was bad"}
    files = ["--corpus", corpus, "--preferences", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run")]
    files += ["--overwrite", "--eval-texts", "8"]

    def train(algo, *rows):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return main(["train", "--algo", algo, "--steps", "30", *files])

    assert train("dpo", *[tie] * 5) == 0
    facts = json.loads((tmp_path / "run" / "stages.json").read_text())["dpo"]
    assert facts["loss"] == pytest.approx(math.log(2), abs=1e-3) and facts["cut"] == 0
    assert train("sft", tie) == 2 and "all 1 comparisons are ties" in capsys.readouterr().err
    with pytest.warns(TrainingWarning, match=r"1 of 2 responses \(50%\) are longer than max_new_tokens=32"):
        assert train("dpo", long) == 0
    with pytest.warns(TrainingWarning) as warned:
        assert train("sft", tie, long) == 0
    said = [str(w.message) for w in warned]
    assert "1 of 2 comparisons are ties" in said[0] and "1 of 1 responses (100%)" in said[1]
    assert train("ipo", {**long, "chosen": " was", "margin": 2}) == 2 and "leave margins out" in capsys.readouterr().err


@pytest.mark.reports("A damaged config.yaml of a run is named, with what writes it anew")
def test_a_damaged_configuration_is_named(run, capsys):
    file = run / "config.yaml"
    whole = file.read_bytes()
    for damaged in (b"", whole[:60], b"\xff\xfe", b"- 1\n", b"algo: [\n"):
        file.write_bytes(damaged)
        for command in (["evaluate", str(run)], ["generate", str(run), "the plot"]):
            assert main(command) == 2
            assert f"error: {file} is empty or damaged (" in " ".join(capsys.readouterr().err.split())
        assert file.read_bytes() == damaged


def test_wrong_folders_and_policies(run, tmp_path, capsys):
    for arguments, message in (
        (["evaluate", str(tmp_path)], "holds no config.yaml"),
        (["evaluate", str(run), "--policy", "kl"], "choose one of ppo"),
        (["generate", str(run)], "nothing to go on with"),
    ):
        assert main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_rewards_by_group_before_and_after(tmp_path, capsys):
    sizes = ["--total-tokens", "4000", "--n-episodes", "64", "--batch-size", "32", "--learning-rate", "2e-3", "--beta", "0"]
    reward = '{"name": "keyword", "keywords": ["w1"]}'
    assert main(["train", "--task", "persona", "--reward", reward, "--out", str(tmp_path), *sizes]) == 0
    assert main(["evaluate", str(tmp_path), "--by", "group", "--texts", "60"]) == 0
    found = json.loads((tmp_path / "groups-ppo.json").read_text())
    task = make_task("persona", split="test")
    shares = Counter(task.prompts[i].metadata["group"] for i in range(60))
    for when in ("before", "after"):
        means = {m["group"]: m for m in found[when]["means"]}
        assert {g: m["num"] for g, m in means.items()} == shares and len(shares) > 1
        assert found[when]["gap"] == pytest.approx(max(m["mean"] for m in means.values()) - min(m["mean"] for m in means.values()))
    rows = [json.loads(line) for line in (tmp_path / "evaluation-ppo.jsonl").read_text().splitlines()]
    kids = [row["score"] for row in rows if row["prompt"].split()[1] == "kids"]
    assert {m["group"]: m["mean"] for m in found["after"]["means"]}["kids"] == pytest.approx(sum(kids) / len(kids))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--by", "colour", "--texts", "10"]) == 2
    assert "known: group" in capsys.readouterr().err.replace("\n", " ")
