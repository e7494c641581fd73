"""`make gpu-check` on a CPU with tiny models: every part's table, what a failing part leaves, and what is said without a GPU."""

import os
import sys
from datetime import date
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agents.benchmark.performance import gpu_check as check
from agents.benchmark.performance.gpu_check import BEGIN, END, FULL, PARTS, TITLES, GpuCheck, main

ROOT = Path(__file__).resolve().parents[4]
TRL_PYTHON = Path(os.environ["TRL_PYTHON"]) if "TRL_PYTHON" in os.environ else None


def tiny(out, *parts, **settings):
    return GpuCheck(device="cpu", tiny=True, parts=parts, precision="float32", out=out, **settings)


def tables(text):
    """The cells of all rows of tables in a part, without the heads."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [row for at, row in enumerate(rows) if row[0] != "---" and (at + 1 == len(rows) or rows[at + 1][0] != "---")]


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "gpu.md"
    path.write_text(f"# Title\n\nbefore\n\n{BEGIN}\n\nold\n\n{END}\nafter\n")
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(document):
    before = document.read_text()
    with pytest.raises(SystemExit, match=r"sees no CUDA device here, so nothing was run and .*gpu\.md stays as it is") as ended:
        main(GpuCheck(out=document))
    assert isinstance(ended.value.code, str)  # the interpreter prints it and exits with 1
    assert document.read_text() == before


def test_a_part_that_fails_does_not_stop_the_others(document, monkeypatch):
    def broken(config):
        raise RuntimeError("out of | memory\nhere")

    monkeypatch.setitem(PARTS, "decoding", broken)
    monkeypatch.setitem(PARTS, "memory", lambda config: "| a |\n| --- |\n| 1 |")
    assert main(tiny(document, "decoding", "memory")) == 1
    text = document.read_text()
    assert text.startswith(f"# Title\n\nbefore\n\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert f"### {TITLES['decoding']}\n\n**Failed.** RuntimeError: out of | memory here\n" in text
    assert f"### {TITLES['memory']}\n\n| a |\n| --- |\n| 1 |\n" in text
    assert f"cores of {os.uname().machine}, torch {torch.__version__}" in text and f"{date.today():%B %Y}" in text
    monkeypatch.setitem(PARTS, "decoding", lambda config: "well")
    assert main(tiny(document, "decoding")) == 0 and "Failed" not in document.read_text()


def test_a_document_without_the_marks_is_left_alone(tmp_path):
    (tmp_path / "other.md").write_text("mine")
    with pytest.raises(SystemExit, match=r"other\.md does not hold the lines"):
        main(tiny(tmp_path / "other.md", "decoding"))
    assert (tmp_path / "other.md").read_text() == "mine"
    assert len(check._cut(ROOT / "docs/gpu.md")) == 3


def test_the_models_are_those_they_are_named_after():
    with torch.device("meta"):
        built = {name: AutoModelForCausalLM.from_config(AutoConfig.for_model(**model)) for name, model in FULL.items()}
    sizes = {name: lm.num_parameters() for name, lm in built.items()}
    assert sizes == {"GPT-2 small": 124_439_808, "SmolLM2-135M": 134_515_008}


def test_families_and_decoding(document, monkeypatch):
    ((name, *errors, saved, _, _, _),) = tables(check.families(tiny(document)))
    assert (name, saved) == ("llama", "yes") and all(float(error) < 1e-5 for error in errors)
    rows = tables(check.decode(tiny(document)))
    assert len(rows) == 4 and all(float(row[1].replace(",", "")) > 0 and row[2:] == ["-", "-"] for row in rows)
    monkeypatch.setattr(check.decoding, "main", lambda asked: {"even": 400.0, "even, CUDA graphs": 1000.0})
    assert tables(check.decode(tiny(document))) == [["even", "400", "1,000", "2.50x"]]


@pytest.mark.slow
def test_the_tests_that_need_a_gpu(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = check.tests(tiny(document))
    assert said.startswith("`pytest -m gpu`: 1 ") and (torch.cuda.is_available() or "- 1 skipped: no GPU" in said)


@pytest.mark.slow
def test_memory_and_speed(document):
    rows = tables(check.estimates(tiny(document)))
    assert [row[0] for row in rows] == ["DPO, all weights"] * 2 and all(float(row[1]) > 1 for row in rows)
    rows = tables(check.speed(tiny(document, trl=TRL_PYTHON)))
    assert [row[0] for row in rows if row[0].endswith("ours")] == ["GPT-2 small, ours", "SmolLM2-135M, ours"]
    assert (len(rows) > 2) == (TRL_PYTHON is not None or check.contenders.__globals__["trl_python"](None) is not None)
    assert all(float(row[1].replace(",", "")) > 0 for row in rows if row[1] != "**failed**")


def test_a_contender_that_fails_leaves_a_row():
    cells = check._timed("broken", [sys.executable, "-c", "raise SystemExit('no such | card')"], check.Speed())
    assert cells[0] == "**failed**" and cells[1].endswith("broken ended with code 1: no such card")
