"""What a bar shows: in a terminal of 80 columns, and in a file."""

import io
import re

import pytest
from rich.console import Console

from agents import TextPPO
from agents.utils import progress
from agents.utils.progress import Bar

from ..conftest import LLAMA


def shown(terminal, width=80):
    file = io.StringIO()
    return file, Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)


def lines(file):
    """The lines that were drawn, without the codes that move the cursor."""
    return [line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())) if line.strip()]


def test_a_terminal_of_80_columns_shows_all_of_it():
    file, console = shown(True)
    bar = Bar("TextPPO", 110_000, console=console)
    bar.advance(54_321, "reward 0.123 KL 12.3 length 23.4")
    bar.close()
    last = lines(file)[-1]
    assert len(last.rstrip()) <= 80
    for part in ("TextPPO", "54321/110000", "0:00:00", "reward 0.123 KL 12.3 length 23.4"):
        assert part in last
    assert "…" not in last


def test_a_file_gets_plain_lines_at_intervals(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    file, console = shown(False)
    bar = Bar("generate", 1000, console=console)
    for second in (1, 9, 11, 12, 22, 30):
        now[0] = second
        bar.advance(100, f"reward {second}")
    now[0] = 400.0
    bar.advance(200)
    now[0] = 415.0  # a twentieth of the time that has passed is longer than ten seconds by now
    bar.advance(100)
    now[0] = 421.0
    bar.advance(100)
    bar.close()
    assert file.getvalue().splitlines() == [
        "generate 300/1,000, 0:00:11, 0:00:26 left, reward 11",
        "generate 500/1,000, 0:00:22, 0:00:22 left, reward 22",
        "generate 800/1,000, 0:06:40, 0:01:40 left, reward 30",
        "generate 1,000/1,000, 0:07:01, reward 30",
    ]
    file, console = shown(False)
    Bar("quiet", 3, show=False, console=console).close()
    assert file.getvalue() == ""


def test_a_training_shows_reward_kl_and_length(make_env, capsys):
    model = TextPPO("TransformerPolicy", make_env(8), n_episodes=8, batch_size=4, policy_kwargs={"model": LLAMA}, seed=0, device="cpu")
    model.learn(40, progress_bar=True)
    rollout, line = model.last_rollout, capsys.readouterr().out.splitlines()[-1]
    mean = sum(info["score"] for info in rollout.infos) / len(rollout.infos)
    assert line.startswith(f"TextPPO {model.num_timesteps:,}/{model.num_timesteps:,}, 0:00:0")
    assert line.endswith(
        f"reward {round(mean, 3):.3g} KL {round(rollout.stats.kl_per_sequence, 3) + 0.0:.3g} length {rollout.stats.num_tokens / 8:.3g}"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_more_than_was_asked_for_is_all_there_is_to_do(terminal):
    file, console = shown(terminal)
    bar = Bar("write", 10, console=console)
    bar.advance(13)
    bar.close()
    assert "13/13" in lines(file)[-1]
