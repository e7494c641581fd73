"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

from agents.sft import SFT

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.sub(r"\W+", " ", s)[:40].strip() for s in SNIPPETS])
def test_snippet(snippet, tmp_path, monkeypatch):
    learn = SFT.learn
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, 15, *args, **kwargs))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def test_there_are_snippets_and_no_unfilled_tables():
    assert len(SNIPPETS) >= 6
    assert "<!--" not in README
