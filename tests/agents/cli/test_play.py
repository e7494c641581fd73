"""A person at the keyboard, through a pipe and through a terminal."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import gymnasium as gym
import pytest

from agents.cli.main import main
from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextTask, make_task


def play(*arguments, typed):
    run = subprocess.run([sys.executable, "-m", "agents.cli", "play", *arguments], input=typed, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return " ".join(run.stdout.split())


def test_by_text():
    out = play("--seed", "0", "--reward", "vader", typed="was superb .\n\n:n\nit was awful .\n\n")
    assert "was superb ." in out
    scores = [float(part.split(",")[0]) for part in out.split("eos, score ")[1:]]
    assert len(scores) == 2 and scores[0] > 0 > scores[1]
    assert f"2 text(s), mean score {sum(scores) / 2:.3f}" in out


def test_by_token():
    tokenizer = make_task("review").tokenizer
    was = tokenizer.encode_batch(["was"])[0][0]
    out = play("--by", "token", "--reward", "length", typed=f"was\n#{was}\n#99999\nsuperbx\nsuper\n\n")
    assert "was was" in out
    assert "#99999: ids go from #0 to #4095" in out
    assert "no token is spelled 'superbx'" in out
    assert "eos, score" in out


def read_until(terminal, wanted):
    """Return what the terminal shows until `wanted` appears, until it is closed, or for a minute."""
    seen = b""
    while wanted not in seen and select.select([terminal], [], [], 60)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # Linux reports the closed terminal so
            break
    return seen


@pytest.mark.parametrize("way", ["ctrl-d", "ctrl-c"])
def test_in_a_terminal_both_keys_end_it_cleanly(way):
    terminal, child = pty.openpty()
    command = [sys.executable, "-m", "agents.cli", "play", "--seed", "1"]
    # A shell that runs the tests in the background has them ignore Ctrl-C, which children would inherit.
    run = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    os.close(child)
    for line in (b"was good .\n", b"\n"):
        read_until(terminal, b"> ")
        os.write(terminal, line)
    seen = read_until(terminal, b"> ")
    if way == "ctrl-d":
        os.write(terminal, b"\x04")
    else:
        while run.poll() is None:  # readline misses a signal that comes just before it waits for a key: press again
            run.send_signal(signal.SIGINT)
            time.sleep(0.5)
    seen += read_until(terminal, b"never shown")
    os.close(terminal)
    assert run.wait(timeout=60) == 0
    assert b"eos, score" in seen and b"1 text(s), mean score" in seen
    assert b"Traceback" not in seen


def test_unknown_environments(capsys):
    assert main(["play", "textrl/Reviw-v0"]) == 2
    assert "textrl/Review-v0" in capsys.readouterr().err
    assert main(["play", "CartPole-v1"]) == 2
    assert "CartPole-v1 is a CartPoleEnv, no text environment" in capsys.readouterr().err


def test_bad_rewards(capsys):
    assert main(["play", "--reward", '{"name" "keyword"}']) == 2
    assert '--reward {"name" "keyword"}: no JSON object' in " ".join(capsys.readouterr().err.split())
    assert main(["play", "--reward", "vadre"]) == 2
    assert "no reward model is called 'vadre'" in capsys.readouterr().err


def test_the_seed_is_of_the_first_prompt_only():
    out = play("--seed", "0", typed=":n\n:n\n:n\n")
    prompts = [part.strip() for part in out.split(">")]
    expected = gym.make("textrl/Review-v0").unwrapped
    assert prompts[0].endswith(expected.reset(seed=0)[1]["prompt"])
    assert prompts[1:4] == [expected.reset()[1]["prompt"] for _ in range(3)]


def one_to_five(**settings):
    """Texts of numbers below 6 that may not end before the third."""
    task = TextTask(IntegerTokenizer(6), [Prompt("1")], 5, min_new_tokens=2, constraint=[{"allowed_tokens": [1, 2, 3]}])
    return TextGenerationEnv(task, lambda prompts, completions: [float(len(c.split())) for c in completions], **settings)


def test_illegal_tokens_are_refused_and_the_person_goes_on(monkeypatch, capsys):
    gym.register("test/OneToFive-v0", one_to_five)
    monkeypatch.setattr(sys, "stdin", io.StringIO("#4\n#2\n\n3\n#1\n\n"))
    try:
        assert main(["play", "test/OneToFive-v0", "--by", "token"]) == 0
    finally:
        del gym.registry["test/OneToFive-v0"]
    out = " ".join(capsys.readouterr().out.split())
    assert "' 4' is not legal here; 3 tokens are: #1 ' 1', #2 ' 2', #3 ' 3'" in out
    assert "the end is not legal here" in out
    assert "1 2 3 1 eos, score 3.000" in out


@pytest.mark.parametrize("arguments", [["--help"], ["play", "--help"]])
def test_help_and_play_load_no_torch(arguments):
    attempt = f"import sys\nfrom agents.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
    code = attempt + "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip().endswith("False"), out.stderr
