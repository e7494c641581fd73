"""Tasks from files of prompts: columns, chats, and which prompts are evaluated on."""

import gzip
import json
import shutil
from datetime import datetime
from unittest.mock import Mock

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from textrl_env import FileTokenizer, IntegerTokenizer, make_task
from textrl_env.prompts.reader import deal_texts, split_of_text

TEMPLATE = "<|im_start|>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer whose tokens are bytes, with a beginning of text, two ends, and a chat template."""
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "</s>"])  # ids 256 to 258
    path = tmp_path_factory.mktemp("model")
    made.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258]}))
    return str(path)


def prompts_of(folder, path, split="train", **settings):
    return make_task({"name": "prompts", "path": str(path), "tokenizer": folder, **settings}, split=split)


def texts_of(task):
    return [prompt.text for prompt in task.prompts]


def test_lines_of_text(tmp_path, folder):
    lines = [f"film {i}" for i in range(60)]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    parts = {split: texts_of(prompts_of(folder, tmp_path / "p.txt", split)) for split in ("train", "validation", "test")}
    assert parts == {split: [line for line in lines if split_of_text(line) == split] for split in parts} and all(parts.values())
    task = prompts_of(folder, tmp_path / "p.txt", stop_strings=["\n"], max_prompt_tokens=40)
    assert (task.eos_token_ids, task.max_new_tokens, task.stop_strings, task.prompt_width) == ((257, 258), 64, ["\n"], 40)
    assert prompts_of(folder, tmp_path / "p.txt").prompt_width == 7  # the longest
    assert task.prompt_ids[0].tolist() == FileTokenizer(folder).encode_batch([parts["train"][0]])[0]
    begun = prompts_of(folder, tmp_path / "p.txt", add_bos=True)
    assert begun.prompt_ids[0].tolist() == [256, *task.prompt_ids[0].tolist()]
    assert prompts_of(folder, tmp_path / "p.txt", eos_token="</s>").eos_token_ids == (258,)


def test_a_split_in_the_data_and_another_beside_it(tmp_path, folder):
    (tmp_path / "p.txt").write_text("\n".join("abcdefghijklmnopqrstuvwxyz"))
    spec = {"name": "prompts", "path": str(tmp_path / "p.txt"), "tokenizer": folder}
    own = {split: texts_of(make_task({**spec, "split": split})) for split in ("train", "validation", "test")}
    assert own == {split: texts_of(make_task(spec, split=split)) for split in own}
    assert texts_of(make_task({**spec, "split": "test"}, split="test")) == own["test"]
    with pytest.raises(ValueError, match="split='test': the task itself says split='train'"):
        make_task({**spec, "split": "train"}, split="test")


def test_tables_with_references(tmp_path, folder):
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1), "kind": "sum"} for i in range(40)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(tmp_path / "q.csv.gz", "wt") as file:
        file.write("question,answer,kind\n" + "".join(f"{row['question']},{row['answer']},sum\n" for row in rows))
    for name in ("q.jsonl", "q.csv.gz"):
        task = prompts_of(folder, tmp_path / name, columns={"prompt": "question"}, references="answer", reward="exact_match")
        assert all(p.references == (str(int(p.text.split()[0]) + 1),) and p.metadata == {"kind": "sum"} for p in task.prompts)
    with pytest.raises(ValueError, match=r"q\.jsonl, line 1: no column 'prompt'; the row has 'question', 'answer', 'kind'"):
        prompts_of(folder, tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="compares with references"):
        prompts_of(folder, tmp_path / "q.jsonl", columns={"prompt": "question"}, reward="exact_match")
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"p\.txt is plain text, a prompt a line, without columns"):
        prompts_of(folder, tmp_path / "p.txt", columns={"prompt": "question"})


def test_chats_go_through_the_template_once(tmp_path, folder):
    said = [f"say {i} </s>" for i in range(12)]
    (tmp_path / "p.txt").write_text("\n".join(said))
    chats = [{"prompt": [{"role": "user", "content": text}]} for text in said]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    plain, messages = prompts_of(folder, tmp_path / "p.txt", chat=True), prompts_of(folder, tmp_path / "p.jsonl")
    assert {p.text for p in plain.prompts} == {p.text for p in messages.prompts}
    assert len(plain.prompts) == sum(split_of_text(text) == "train" for text in said) > 0
    theirs = AutoTokenizer.from_pretrained(folder)
    for prompt, ids in zip(plain.prompts, plain.prompt_ids, strict=True):
        asked = next(chat["prompt"] for chat in chats if chat["prompt"][0]["content"] in prompt.text)
        assert prompt.text == theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert ids.tolist().count(256) == 1 and ids.tolist().count(257) == 1 and 258 not in ids  # the user's "</s>" is text
    with pytest.raises(ValueError, match="IntegerTokenizer has no chat template"):
        make_task({"name": "prompts", "path": str(tmp_path / "p.txt"), "tokenizer": IntegerTokenizer(9), "chat": True})


def test_a_template_with_a_date_moves_no_prompt(tmp_path, folder, monkeypatch):
    dated = tmp_path / "dated"
    shutil.copytree(folder, dated)
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d') }} {{ messages[0]['content'] }}")
    (tmp_path / "p.txt").write_text("\n".join(f"say {i}" for i in range(40)))
    seen = []
    for day in (1, 2):
        monkeypatch.setattr("textrl_env.chat.datetime", Mock(now=lambda day=day: datetime(2026, 1, day)))
        seen.append(texts_of(prompts_of(str(dated), tmp_path / "p.txt", chat=True)))
    assert [text.replace("01 ", "02 ", 1) for text in seen[0]] == seen[1] != seen[0]


def test_no_prompt_is_evaluated_on_that_was_trained_on(tmp_path, folder):
    (tmp_path / "one.txt").write_text("\n".join("a b c d e f".split()))
    (tmp_path / "two.txt").write_text("\n".join("d e x".split()))
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    with pytest.warns(UserWarning, match=r"2 of 6 prompts of .*one\.txt are among those to evaluate on"):
        assert texts_of(prompts_of(folder, one, test_path=str(two))) == ["a", "b", "c", "f"]
    assert texts_of(prompts_of(folder, one, "test", test_path=str(two))) == ["d", "e", "x"]
    with pytest.raises(ValueError, match="leave it out, or ask for those"):
        prompts_of(folder, one, "validation", test_path=str(two))
    with pytest.raises(ValueError, match=r"all 6 prompts of .*one\.txt are among those to evaluate on"):
        prompts_of(folder, one, test_path=str(one))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.txt").write_text("a\nb\n")
    (tmp_path / "own" / "test.txt").write_text("b\nc\n")
    with pytest.warns(UserWarning, match="1 of 2 prompts"):
        assert texts_of(prompts_of(folder, tmp_path / "own")) == ["a"]
    assert texts_of(prompts_of(folder, tmp_path / "own", "test")) == ["b", "c"]
    with pytest.raises(FileNotFoundError, match="has no validation split"):
        prompts_of(folder, tmp_path / "own", "validation")


def test_few_prompts_are_dealt_too(tmp_path, folder):
    collection = [f"prompt {i}" for i in range(40)]
    trained = set()
    for number in range(1, len(collection) + 1):  # a file that grows
        dealt = deal_texts(collection[:number])
        test = {text for text, split in dealt.items() if split == "test"}
        assert test and not test & trained
        trained |= {text for text, split in dealt.items() if split == "train"}
    (tmp_path / "p.txt").write_text("only one\nonly one\n")
    assert texts_of(prompts_of(folder, tmp_path / "p.txt", "test")) == ["only one"] * 2
    with pytest.raises(ValueError, match="none of its 1 different prompts is in the train split"):
        prompts_of(folder, tmp_path / "p.txt")


def test_prompts_that_are_too_long(tmp_path, folder):
    (tmp_path / "p.txt").write_text("\n".join(f"film number {i}" for i in range(9)))
    with pytest.raises(ValueError, match=r"prompt 'film number \d' has 13 tokens, max_prompt_tokens=5"):
        prompts_of(folder, tmp_path / "p.txt", max_prompt_tokens=5)
    assert prompts_of(folder, tmp_path / "p.txt", max_prompt_tokens=5, over_long="left").start_of(0)[0].text.startswith("ber ")
