"""Everything that is registered or exported has its page, and what the pages say was really done."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import gymnasium as gym
import pytest
from stable_baselines3.common.logger import Logger

import rewards
import textrl_env
from agents import GRPO, TextPPO, TextTRPO
from agents.algorithms.common.advantage_estimators import ESTIMATORS
from agents.algorithms.registry import ALGORITHMS
from agents.cli.main import COMMANDS
from docs.generator import algorithms, docstrings, environments, pictures, reference, tutorials
from docs.generator import rewards as reward_pages

ROOT = Path(__file__).resolve().parents[2]
TABLE = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 6, "length": 5}


def test_every_environment_has_its_page():
    families = environments.families()
    listed = {name for ids in families.values() for name in ids}
    assert listed == {name for name in gym.registry if name.startswith("textrl/")} and len(listed) > 60
    assert families["Recall"] == ["textrl/Recall-v0", "textrl/Recall-4-v0", "textrl/Recall-16-v0", "textrl/Recall-64-v0"]


@pytest.fixture(scope="module")
def lock():
    return environments._page("Lock", environments.families()["Lock"])


def test_a_page_of_an_environment_says_what_gymnasium_says(lock):
    env = gym.make("textrl/Lock-v0")
    assert f"`{env.action_space}`" in lock and str(env.observation_space) in lock
    assert all(f"`{name}`" in lock for name in environments.families()["Lock"])
    assert "## Version History" in lock and "v0: first version" in lock


def test_a_transcript_can_be_played_again(lock):
    """Token by token, as the page has it: the same rewards."""
    prompt = re.search(r"^prompt: (.+)$", lock, re.M)[1]
    steps = re.findall(r"^step +\d+  (\S.*?) +reward ([+-][\d.]+)$", lock, re.M)
    task = textrl_env.make_task("lock")
    env = textrl_env.TextGenerationEnv(task)
    env.reset(seed=0)
    while env.core.text(0)[0] != prompt:
        env.reset()
    for token, told in steps:
        action = task.tokenizer.eos_token_id if token == "(end)" else task.tokenizer.encode_batch([" " + token])[0][0]
        _, reward, ended, _, _ = env.step(action)
        assert reward == pytest.approx(float(told), abs=5e-4)
    assert ended and len(steps) > 3


def test_every_algorithm_has_its_page():
    pages = algorithms.pages()
    for name, algorithm in ALGORITHMS.items():
        page = pages[f"algorithms/{algorithms.slug(name)}.md"]
        assert f"`--algo {name}`" in page and f"agents.{algorithm.name}" in page
        for argument in ("beta", "learning_rate", "n_episodes"):
            assert f"| `{argument}` | `" in page
    assert {"SFT", "DPO", "ExpertIteration", "best_of_n", "TextPolicyGradient"} <= set(algorithms.names())
    assert len(pages) == len(algorithms.names()) + 1


def test_a_page_has_the_defaults_of_its_name():
    page = algorithms.pages()["algorithms/dapo.md"]
    assert "| `clip_range_high` | `0.28` |" in page and "| `beta` | `0.0` |" in page
    assert inspect.getsource(ESTIMATORS["grpo"]).strip() in algorithms.pages()["algorithms/grpo.md"]  # the code of its advantages


@pytest.mark.parametrize("name", [name for name in algorithms.names() if algorithms.example(name)])
def test_the_example_of_an_algorithm_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path))
    exec(compile(algorithms.example(name).replace("500", "60"), name, "exec"), {"__name__": "__main__"})


def test_every_algorithm_that_plays_has_an_example():
    assert all(algorithms.example(name) for name in ALGORITHMS)


def test_every_reward_has_its_paragraph():
    (page,) = reward_pages.pages().values()
    sections = dict(re.findall(r"^## (\w+)\n\n(.+?)$", page, re.M))
    assert set(sections) == set(rewards.list()) and min(map(len, sections.values())) > 20


def test_every_public_name_has_its_page():
    pages = reference.pages()
    for package in (textrl_env, rewards, __import__("agents")):
        for name in package.__all__:
            assert f"api/{package.__name__}.{name}.md" in pages
    assert "api/agents.evaluation.optimality_gap.md" in pages
    assert "same as [textrl_env.RewardError]" in pages["api/rewards.RewardError.md"]


def test_every_command_and_flag_is_in_the_reference():
    page = reference.pages()["cli.md"]
    assert all(f"## textrl {command}\n" in page for command in COMMANDS)
    train = page.split("## textrl train\n")[1].split("\n## ")[0]
    done = subprocess.run([sys.executable, "-m", "agents.cli", "train", "--help"], capture_output=True, text=True, check=True)
    flags = set(re.findall(r"^[│ ]*(--[a-z][a-z-]+)", done.stdout, re.M)) - {"--help", "--config"}
    flags = {flag for flag in flags if not flag.startswith("--no-")}
    assert len(flags) > 30 and not [flag for flag in flags if f"`{flag}`" not in train]


def test_every_metric_that_is_logged_is_explained(monkeypatch):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z]+/[\w/]+)`", page))
    logged, dump = set(), Logger.dump

    def keep(self, step=0):
        logged.update(self.name_to_value)
        dump(self, step)

    monkeypatch.setattr(Logger, "dump", keep)
    for made in (TextPPO, GRPO, TextTRPO):
        env = textrl_env.TextGenerationVecEnv(8, textrl_env.make_task("exact-smooth", group_size=4))
        model = made(next(iter(made.policy_aliases)), env, n_episodes=8, policy_kwargs={"model": TABLE}, seed=0)
        model.learn(60)
    assert len(logged) > 30
    assert not sorted(name for name in logged if name not in explained and not name.startswith("tokens/finished_by_"))


def test_docstrings_are_taken_apart():
    class Example:
        """What it is.

        More of it.

        Args:
            a: First,
                over two lines.
            b: Second.  Default: 3.

        Raises:
            ValueError: It is wrong.
        """

        def __init__(self, a, b=3):
            pass

    told, sections = docstrings.parts(Example)
    assert told == "What it is.\n\nMore of it."
    assert sections == {"Args": {"a": "First, over two lines.", "b": "Second.  Default: 3."}, "Raises": {"ValueError": "It is wrong."}}
    rows = docstrings.arguments(Example, {"b": 4}).split("\n")[2:]
    assert rows == ["| `a` |  | First, over two lines. |", "| `b` | `4` | Second. |"]


def test_a_program_becomes_a_page(tmp_path):
    program = tmp_path / "one.py"
    program.write_text('"""One\n\nWhat it shows.\n"""\n\nimport math\n\n# %%\n# Some *text*.\nprint(math.pi)\n', encoding="utf-8")
    program.with_suffix(".txt").write_text("3.14\n", encoding="utf-8")
    page = tutorials._page(program)
    assert page.startswith("# One\n\nWhat it shows.\n\n```python\nimport math\n```\n\nSome *text*.\n\n```python\nprint(math.pi)\n```")
    assert "```text\n3.14\n```" in page


def test_the_glossary_has_ten_words_at_most():
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", page.split("## Words")[1], re.M)[1:]
    assert 5 < len(words) <= 10


def test_a_picture_shows_prompt_tokens_and_score():
    root = ElementTree.fromstring(pictures.draw("a <b> & " + "c" * 60, ["x"] * 200, 0.5, 0.25))
    shown = ["".join(text.itertext()) for text in root.iter("text")]
    assert shown[0] == "…" + "c" * 37 and shown[-2:] == ["…", "score 0.50"]
    boxes = list(root.iter("rect"))
    assert boxes[-1].get("width") == "45" and boxes[-2].get("width") == "180"  # a quarter of the bar
    assert all(float(box.get("x")) + float(box.get("width")) <= 300 for box in boxes)
    assert {box.get("y") for box in boxes[:-2]} == {
        "26",
        "48",
        "70",
    }


def test_every_base_policy_is_described():
    assert environments._base(textrl_env.make_task("caption-1")).startswith(
        "A vit of 2 layers, width 32 and a gpt2 of 2 layers, width 32, pretrained for"
    )
    for ids in environments.families().values():
        assert environments._base(textrl_env.make_task(gym.spec(ids[0]).kwargs["task"]))
