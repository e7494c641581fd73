"""A person at the keyboard, through a pipe and through a terminal."""

import os
import pty
import subprocess
import sys

import pytest

from agents.cli import main
from textrl_env import make_task


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


def test_in_a_terminal_ctrl_d_ends_it_cleanly():
    parent, child = pty.openpty()
    run = subprocess.Popen([sys.executable, "-m", "agents.cli", "play", "--seed", "1"], stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(parent, b"was good .\n")
    os.write(parent, b"\n")
    os.write(parent, b"\x04")
    seen = b""
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:  # Linux reports the closed terminal so
        pass
    os.close(parent)
    assert run.wait(timeout=60) == 0
    assert b"1 text(s), mean score" in seen


def test_unknown_environments(capsys):
    assert main(["play", "textrl/Reviw-v0"]) == 2
    assert "textrl/Review-v0" in capsys.readouterr().err
    assert main(["play", "CartPole-v1"]) == 2


@pytest.mark.parametrize("arguments", [["--help"], ["play", "--help"]])
def test_help_and_play_load_no_torch(arguments):
    attempt = f"import sys\nfrom agents.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
    code = attempt + "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip().endswith("False"), out.stderr
