"""What the command line says of commands and settings that cannot be, and how it ends."""

import subprocess
import sys

import pytest
import yaml

from agents.cli.main import main, resolve
from agents.cli.train_flags import Train
from agents.utils.run_folder import versions

NEAR = pytest.mark.reports("A wrong name, of a command, task, agent, suite or setting, is refused in a line with the nearest name.")
TOGETHER = pytest.mark.reports("Flags that contradict one another, or that this run would not use, are refused before any work.")


def err_of(capsys, *words, status=2):
    assert main(list(words)) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@NEAR
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian", "error: there is no command 'trian' (did you mean 'train'?); there are:"),
        ("feedback craete", "error: there is no command 'feedback craete' (did you mean 'feedback create'?); there are:"),
        ("reward", "error: there is no command 'reward'"),
        ("bench --tasks recal-64 --agents random", "error: no task is called 'recal-64' (did you mean 'recall-64'?)"),
        ("bench --suite exat", "error: --suite exat: no suite is called so (did you mean 'exact'?); choose one of exact, "),
        ("bench --tasks recall-4 --agents po", "error: no agent is called 'po' (did you mean 'ppo'?)"),
        ("bench --tasks recall-4 --agents ppo:learning_rte=0.1", "error: agent 'ppo:learning_rte=0.1': TextPPO takes no argument "
         "'learning_rte' (did you mean 'learning_rate'?)"),
        ("bench --tasks recall-4 --agents ppo:n_epochs=0", "error: agent 'ppo:n_epochs=0': n_epochs=0 is not a whole number of at least 1"),
        ("bench --tasks recall-4 --agents best-of-n:m=4", "error: agent 'best-of-n:m=4': there is no setting 'm'; it takes n"),
        ("bench --tasks recall-4:max_new_token=3", "did you mean 'max_new_tokens'?"),
        ("tune --task exact-smoth", "error: no task is called 'exact-smoth' (did you mean 'exact-smooth'?)"),
        ("tune --algo pop", "error: --algo pop: no search space for it (did you mean 'ppo'?)"),
        ("train --task reveiw", "error: no task is called 'reveiw' (did you mean 'review'?)"),
        ("loop --task reveiw", "error: no task is called 'reveiw' (did you mean 'review'?)"),
        ("play textrl/Reveiw-v0", "error: Environment `Reveiw` doesn't exist in namespace textrl. Did you mean: `Review`?"),
        ("play --split tset", "did you mean 'test'?"),
    ],
)  # fmt: skip
def test_near_names(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in err_of(capsys, *words.split())


@TOGETHER
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --min-new-tokens 500", "--min-new-tokens 500: a text of this task has at most 26 tokens"),
        ("demo --beta 0.1 --kl-target 4", "--kl-target 4 steers an adaptive beta, and --beta 0.1 is fixed: leave one of them out"),
        ("loop --beta 0.1 --kl-target 4", "--kl-target 4 steers an adaptive beta, and --beta 0.1 is fixed: leave one of them out"),
        ("loop --overlap 3", "--overlap 3 is for people: each simulated annotator answers every pair; name more --annotators"),
        ("loop --weigh", "--weigh needs several answers to each pair: name more --annotators, or raise --overlap with people"),
        ("loop --annotators people --weigh", "--weigh needs several answers to each pair"),
        ("loop --rounds 1 --choose uncertain", "--choose uncertain needs the answers of an earlier round"),
        ("loop --labels 5", "labels=5 make 5 pairs a round: at least 20 are needed"),
        ("loop --annotators {", "--annotators {: Expecting property name"),
        ('loop --annotators {"flop":0.2}', "unexpected keyword argument 'flop'"),
        ("bench --suite exact --tasks recall-4", "--suite exact and --tasks recall-4: tasks are run instead of a suite; leave one out"),
        ("generate runs/demo hello --deterministic --seed 3", "--seed 3 seeds what is drawn, and --deterministic draws nothing"),
        ("feedback create --pairs 50", "--pairs: would not be used, for pairs are made of --samples"),
        ("feedback create --flags rude", "--flags: would not be used, for words are flagged with --kind spans"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in err_of(capsys, *words.split())


@NEAR
def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"textrl {versions()['textrl-env']}\n"
    assert main(["--help"]) == 0
    assert "bench leaderboard" in capsys.readouterr().out
    assert "textrl COMMAND" in err_of(capsys)


@pytest.mark.reports("Settings files of earlier versions are read: what this run does not use is ignored in a line that says so.")
def test_files_of_earlier_versions(tmp_path, capsys):
    old = {"algo": "sft", "task": "review", "total_tokens": 110_000, "n_episodes": 128, "batch_size": 32, "steps": 7, "beta": None}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert resolve(Train, ["--config", str(tmp_path / "old.yaml")]) == Train(algo="sft", steps=7, task="review")
    line = f"--config {tmp_path / 'old.yaml'}: ignored, for this run does not use them: total_tokens, n_episodes, batch_size\n"
    assert capsys.readouterr().err == line
    assert resolve(Train, ["--config", str(tmp_path / "old.yaml"), "--algo", "ppo"]).n_episodes == 128  # it uses them, and not the steps
    assert capsys.readouterr().err.endswith("them: steps\n")
    assert main(["train", "--config", str(tmp_path / "old.yaml"), "--n-episodes", "5"]) == 2  # a flag is not ignored
    assert "leave out --n-episodes, which --algo sft does not use" in capsys.readouterr().err


@pytest.mark.reports("A budget is --total-tokens in every command; the earlier --tokens is an alias, in settings files too.")
@pytest.mark.parametrize("command", ["bench", "tune"])
def test_one_name_for_a_budget(tmp_path, command):
    from agents.benchmark.flags import Bench
    from agents.hyperparameter_search.flags import Tune

    kind = {"bench": Bench, "tune": Tune}[command]
    (tmp_path / "old.yaml").write_text("tokens: 700\n")
    for words in (["--total-tokens", "700"], ["--tokens", "700"], ["--config", str(tmp_path / "old.yaml")]):
        assert resolve(kind, words) == kind(total_tokens=700)


@pytest.mark.reports("A command whose output nobody reads any more ends quietly, and not with status 0.")
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_closed_output(words):
    command = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); from agents.cli.main import main; sys.exit(main(sys.argv[1:]))", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    command.stdout.close()
    assert command.communicate()[1] == b"" and command.returncode == 141


def test_help_and_wrong_flags_load_neither_torch_nor_what_builds_on_it():
    """In an interpreter of its own, since this one has them all."""
    heavy = ("torch", "transformers", "stable_baselines3", "scipy", "sklearn", "pandas")
    script = f"""
import sys
from agents.cli.main import COMMANDS, main
for command in COMMANDS:
    for words in (["--help"], ["--no-such-flag", "1"]):
        try:
            main([*command.split(), *words])
        except SystemExit:
            pass
    loaded = [name for name in {heavy} if name in sys.modules]
    assert not loaded, f"{{command}} --help loads {{loaded}}"
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
