"""Readers of public corpora, on small files in the formats of their authors."""

import json

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from textrl_env import FileTokenizer, TextGenerationVecEnv, make_task
from textrl_env.reward_model import as_reward_model
from textrl_env.tasks.corpora import CORPORA, real_task

WORDS = "<eos> <unk> a b c d e f g h the film was good bad and rain fell on town who sees it Question: Answer: 42".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return FileTokenizer(path)


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def score(task, index, response):
    from textrl_env import Episode

    prompt = task.prompts[index]
    episode = Episode.from_text(prompt.text, response, references=prompt.references, metadata=prompt.metadata)
    return as_reward_model(task.reward).score([episode])[0]


def reviews(folder):
    for split in ("train", "test"):
        for kind in ("pos", "neg"):
            (folder / split / kind).mkdir(parents=True)
            for i in range(10 if split == "train" else 2):
                text = f"the film was {'good' if kind == 'pos' else 'bad'}<br />and a b c d e f {'g' * (i + 1)}"
                (folder / split / kind / f"{i}_7.txt").write_text(text, encoding="utf-8")
    return folder


def test_imdb_the_two_protocols(tmp_path, tokenizer):
    folder = str(reviews(tmp_path))
    half = real_task("imdb-half", folder, tokenizer)
    assert [p.metadata["label"] for p in half.prompts] == [0, 0, 1, 1]
    assert half.prompts[0].text == "the film was bad and a" and half.prompts[0].references == ("b c d e f g",)
    prefix = real_task("imdb-prefix", folder, tokenizer, split="train")
    lengths = [len(ids) for ids in prefix.prompt_ids]
    assert 2 <= min(lengths) and max(lengths) <= 8 and len(set(lengths)) > 1
    again = real_task("imdb-prefix", folder, tokenizer, split="train")
    assert [p.text for p in again.prompts] == [p.text for p in prefix.prompts]
    parts = [len(real_task("imdb-half", folder, tokenizer, split=split).prompts) for split in ("train", "validation", "test")]
    assert parts == [18, 2, 4]


def test_imdb_as_a_table(tmp_path, tokenizer):
    (tmp_path / "test.csv").write_text('text,label\n"the film, was good",1\n', encoding="utf-8-sig")
    (prompt,) = real_task("imdb-half", str(tmp_path), tokenizer).prompts
    assert (prompt.text, prompt.references, prompt.metadata["label"]) == ("the film,", ("was good",), "1")


def test_tldr_has_the_prompt_of_its_paper(tmp_path, tokenizer):
    path = jsonl(
        tmp_path / "test.jsonl", {"subreddit": "tifu", "title": "a b", "post": "c d", "summary": " e f "}, {"post": "g", "summary": "h"}
    )
    one, two = real_task("tldr", path, tokenizer).prompts
    assert one.text == "SUBREDDIT: r/tifu\n\nTITLE: a b\n\nPOST: c d\n\nTL;DR:" and one.references == ("e f",)
    assert two.text == "POST: g\n\nTL;DR:"


def test_cnn_dailymail(tmp_path, tokenizer):
    task = real_task(
        "cnn-dailymail", jsonl(tmp_path / "x.jsonl", {"article": "rain fell on the town", "highlights": "rain fell"}), tokenizer
    )
    assert task.prompts[0].references == ("rain fell",) and score(task, 0, " rain fell") == 1


def test_common_gen_joins_the_references_of_equal_concepts(tmp_path, tokenizer):
    rows = [{"concepts": ["film", "town"], "target": "a film"}, {"concepts": ["film", "town"], "target": "the town"}]
    rows += [{"concepts": ["rain"], "target": ""}]
    one, two = real_task("common-gen", jsonl(tmp_path / "test.jsonl", *rows), tokenizer).prompts
    assert one.text == "generate a sentence with: film town\n" and one.references == ("a film", "the town") and two.references == ()
    authors = {"concept_set": "film#town", "scene": ["a film"]}
    assert real_task("common-gen", jsonl(tmp_path / "dev.jsonl", authors), tokenizer).prompts[0].references == ("a film",)


def test_parallel_text_files_tables_and_iwslt(tmp_path, tokenizer):
    (tmp_path / "wmt").mkdir()
    (tmp_path / "wmt" / "newstest.en").write_text("the rain\r\nthe town\r\n", encoding="utf-8-sig")
    (tmp_path / "wmt" / "newstest.de").write_text("der Regen\ndie Stadt\n", encoding="utf-8")
    task = real_task("wmt", str(tmp_path / "wmt"), tokenizer)
    assert [(p.text, p.references) for p in task.prompts] == [("the rain\n", ("der Regen",)), ("the town\n", ("die Stadt",))]
    back = real_task("wmt", str(tmp_path / "wmt"), tokenizer, source="de", target="en")
    assert back.prompts[0].references == ("the rain",) and score(back, 0, "the rain") == pytest.approx(1)
    (tmp_path / "wmt" / "newstest.de").write_text("der Regen\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"2 sentences and .* 1: they must be parallel"):
        real_task("wmt", str(tmp_path / "wmt"), tokenizer)
    table = jsonl(tmp_path / "t.jsonl", {"translation": {"en": "the rain", "de": "der Regen"}})
    assert real_task("wmt", table, tokenizer).prompts[0].references == ("der Regen",)
    talks = tmp_path / "iwslt"
    talks.mkdir()
    for language, text in (("en", "rain &amp; town"), ("de", "Regen &amp; Stadt")):
        (talks / f"IWSLT17.TED.tst2015.en-de.{language}.xml").write_text(f'<doc><seg id="1"> {text} </seg></doc>', encoding="utf-8")
        (talks / f"train.tags.en-de.{language}").write_text(f"<title>x</title>\n {language} one\n", encoding="utf-8")
    assert real_task("iwslt", str(talks), tokenizer).prompts[0].references == ("Regen & Stadt",)
    assert real_task("iwslt", str(talks), tokenizer, split="train").prompts[0].text == "en one\n"


def test_squad_nested_and_as_a_table(tmp_path, tokenizer):
    item = {"question": "who sees it", "answers": [{"text": "the town", "answer_start": 3}, {"text": "the town", "answer_start": 3}]}
    impossible = {"question": "who", "answers": [], "is_impossible": True}
    data = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "on the town", "qas": [item, impossible]}]}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(data), encoding="utf-8")
    task = real_task("squad", str(tmp_path), tokenizer, split="validation")
    assert task.prompts[0].text == "on the town\n\nQuestion: who sees it\nAnswer:"
    assert [p.references for p in task.prompts] == [("the town",), ("unanswerable",)]
    assert score(task, 0, " Town.") == 1 and score(task, 1, " unanswerable") == 1 and score(task, 0, " rain") == 0
    row = {"context": "c", "question": "q", "answers": {"text": ["a", "a", "b"], "answer_start": [0, 0, 1]}}
    assert real_task("squad", jsonl(tmp_path / "t.jsonl", row), tokenizer).prompts[0].references == ("a", "b")
    (tmp_path / "dev-v2.0.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="has no 'data'"):
        real_task("squad", str(tmp_path), tokenizer, split="validation")


def test_narrativeqa(tmp_path, tokenizer):
    (tmp_path / "summaries.csv").write_text('document_id,set,summary,summary_tokenized\nd1,test," the rain\nfell ",x\n', encoding="utf-8")
    questions = "document_id,set,question,answer1,answer2,x\nd1,test,who?,it,the town,y\nd1,train,q?,a,b,y\n"
    (tmp_path / "qaps.csv").write_text(questions, encoding="utf-8")
    (prompt,) = real_task("narrativeqa", str(tmp_path), tokenizer).prompts
    assert prompt.text == "the rain\nfell\n\nQuestion: who?\nAnswer:" and prompt.references == ("it", "the town")
    (tmp_path / "qaps.csv").write_text(questions.replace("d1,test,who", "d9,test,who"), encoding="utf-8")
    with pytest.raises(ValueError, match="document d9"):
        real_task("narrativeqa", str(tmp_path), tokenizer)


def test_dailydialog_asks_for_every_utterance_but_the_first(tmp_path, tokenizer):
    (tmp_path / "dialogues_test.txt").write_text("a b __eou__ c d __eou__ e __eou__\n\n", encoding="utf-8")
    task = real_task("dailydialog", str(tmp_path), tokenizer)
    assert [(p.text, p.references) for p in task.prompts] == [("a b\n", ("c d",)), ("a b\nc d\n", ("e",))]
    table = jsonl(tmp_path / "rows.jsonl", {"dialog": list("abcdefgh")})
    assert real_task("dailydialog", table, tokenizer).prompts[-1].text == "c\nd\ne\nf\ng\n"  # five before it
    with pytest.raises(ValueError, match="has no list 'dialog'"):
        real_task("dailydialog", jsonl(tmp_path / "bad.jsonl", {"text": "a"}), tokenizer)


def test_gsm8k(tmp_path, tokenizer):
    path = jsonl(tmp_path / "test.jsonl", {"question": "how many?", "answer": "so 40 + 2 = <<40+2=42>>\n#### 1,042"})
    task = real_task("gsm8k", path, tokenizer)
    assert task.prompts[0].references == ("1042",)
    assert score(task, 0, " it is 1,042.") == 1 and score(task, 0, " it is 42") == 0
    with pytest.raises(ValueError, match="does not end in '#### number'"):
        real_task("gsm8k", jsonl(tmp_path / "test.jsonl", {"question": "q", "answer": "42"}), tokenizer)


def test_what_is_wrong_is_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="did you mean 'squad'"):
        real_task("squat", str(tmp_path), tokenizer)
    with pytest.raises(FileNotFoundError, match=r"holds no test file \(\*test\*\.jsonl"):
        real_task("tldr", str(tmp_path), tokenizer)
    with pytest.raises(ValueError, match=r"line 1.* has no summary \(it has post\)"):
        real_task("tldr", jsonl(tmp_path / "x.jsonl", {"post": "a"}), tokenizer)
    with pytest.raises(ValueError, match="split='dev'"):
        real_task("tldr", str(tmp_path / "x.jsonl"), tokenizer, split="dev")


def test_a_corpus_is_played_through_gymnasium_and_in_rows(tmp_path, tokenizer):
    path = jsonl(
        tmp_path / "test.jsonl", *({"article": f"rain fell on the town {'a b c'[: i + 1]}", "highlights": "rain fell"} for i in range(4))
    )
    task = make_task({"name": "cnn-dailymail", "path": path, "tokenizer": str(tokenizer.path)}, max_new_tokens=5, split="test")
    env = gym.make("textrl/Review-v0", task=task)
    env.reset(seed=0)
    ended = False
    while not ended:
        _, reward, ended, _, info = env.step(WORDS.index("rain"))
    assert info["response"].split() == ["rain"] * 5 and 0 < reward < 1
    rows = TextGenerationVecEnv(3, task=task)
    rows.reset()
    done = np.zeros(3, bool)
    while not done.all():
        _, rewards, done, _ = rows.step(np.full(3, WORDS.index("fell")))
    assert (rewards > 0).all()


def test_every_corpus_names_a_reward_that_exists():
    for task in CORPORA.values():
        as_reward_model(task.reward)
