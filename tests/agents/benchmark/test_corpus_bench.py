"""The documented command that compares agents on a public corpus."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from agents.benchmark.run_job import task_of
from agents.benchmark.spec import parse
from textrl_env.__main__ import main

from ...byte_tokenizer import byte_tokenizer

DOCS = Path(__file__).parents[3] / "docs" / "real-data.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """aclImdb and a GPT-2 beside it, as the documented command expects them."""
    for split in ("train", "test"):
        for kind in ("pos", "neg"):
            (tmp_path / "aclImdb" / split / kind).mkdir(parents=True)
            for i in range(20):
                text = f"the film {i} was {'good' if kind == 'pos' else 'bad'} and {split} " + "word " * (i + 3)
                (tmp_path / "aclImdb" / split / kind / f"{i}_7.txt").write_text(text, encoding="utf-8")
    tokenizer = byte_tokenizer()
    model = GPT2Config(vocab_size=257, n_positions=128, n_embd=32, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256)
    GPT2LMHeadModel(model).save_pretrained(tmp_path / "gpt2-folder")
    tokenizer.save(str(tmp_path / "gpt2-folder" / "tokenizer.json"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.reports("The documented benchmark on IMDB runs as it is written")
def test_the_documented_command(folder, capsys, monkeypatch):
    command = re.search(r"```bash\ntextrl (bench .*?)\n```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.setattr("sys.argv", ["textrl", *shlex.split(command), "--seeds", "1", "--tokens", "500", "--texts", "16", "--out", "b"])
    assert not main()
    out = capsys.readouterr().out
    assert "3 runs: 1 tasks, 3 agents, 1 seeds" in out and (folder / "b" / "report.html").is_file()


@pytest.mark.reports("A benchmark never judges agents on the split that they train on; test_split= names another test split")
def test_the_split_of_a_benchmark(folder):
    text = "imdb-half:path=aclImdb:tokenizer=gpt2-folder:eos_token=<|endoftext|>"
    train, test = (len(task_of(parse(text), split).prompts) for split in ("train", "test"))
    judged = task_of(parse(f"{text}:test_split=validation"), "test")
    assert len(judged.prompts) == 40 - train and test == 40
    assert not {p.text for p in judged.prompts} & {p.text for p in task_of(parse(text)).prompts}
    for wrong in ("split=validation", "test_split=train"):
        with pytest.raises(ValueError, match=r"agents train on the train split|that they train on"):
            task_of(parse(f"{text}:{wrong}"), "test")


def test_prompts_of_a_file(folder, capsys, monkeypatch):
    (folder / "questions.csv").write_text("question,answer\n" + "".join(f"{i} plus 1 is,{i + 1}\n" for i in range(30)))
    text = "prompts:path=questions.csv:columns=prompt=question:references=answer:max_new_tokens=4:model=gpt2-folder:eos_token=<|endoftext|>"
    for wrong, lacks in ((text, "reward="), ("prompts:path=questions.csv:reward=vader", "model=")):
        with pytest.raises(ValueError, match=f"lacks {lacks}"):
            task_of(parse(wrong))
    train, test = (task_of(parse(f"{text}:reward=exact_match"), split) for split in ("train", "test"))
    assert not {p.text for p in train.prompts} & {p.text for p in test.prompts} and test.prompts[0].references
    command = f"bench --tasks '{text}:reward=rouge' --agents random,rloo --seeds 1 --tokens 300 --texts 8 --out b"
    monkeypatch.setattr("sys.argv", ["textrl", *shlex.split(command)])
    assert not main()
    assert "2 runs: 1 tasks, 2 agents, 1 seeds" in capsys.readouterr().out
