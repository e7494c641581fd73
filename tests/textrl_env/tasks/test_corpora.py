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
    assert parts[0] + parts[1] == 20 and 1 <= parts[1] <= 4 and parts[2] == 4  # a tenth of the training reviews, by a hash


def test_imdb_as_a_table(tmp_path, tokenizer):
    (tmp_path / "test.csv").write_text('text,label\n"the film, was good",1\n', encoding="utf-8-sig")
    (prompt,) = real_task("imdb-half", str(tmp_path), tokenizer).prompts
    assert (prompt.text, prompt.references, prompt.metadata["label"]) == ("the film,", ("was good",), 1)


def test_tldr_has_the_prompt_of_its_paper(tmp_path, tokenizer):
    path = jsonl(
        tmp_path / "test.jsonl", {"subreddit": "tifu", "title": "a b", "post": "c d", "summary": " e f "}, {"post": "g", "summary": "h"}
    )
    one, two = real_task("tldr", path, tokenizer).prompts
    assert one.text == "SUBREDDIT: r/tifu\n\nTITLE: a b\n\nPOST: c d\n\nTL;DR:" and one.references == ("e f",)
    assert two.text == "POST: g\n\nTL;DR:"


def test_cnn_dailymail(tmp_path, tokenizer):
    task = real_task(
        "cnn-dailymail", jsonl(tmp_path / "test.jsonl", {"article": "rain fell on the town", "highlights": "rain fell"}), tokenizer
    )
    assert task.prompts[0].references == ("rain fell",) and score(task, 0, " rain fell") == 1


def test_common_gen_joins_the_references_of_equal_concepts(tmp_path, tokenizer):
    rows = [{"concepts": ["film", "town"], "target": "a film"}, {"concepts": ["film", "town"], "target": "the town"}]
    rows += [{"concepts": ["rain"], "target": ""}]
    one, two = real_task("common-gen", jsonl(tmp_path / "test.jsonl", *rows), tokenizer).prompts
    assert one.text == "generate a sentence with: film town\n" and one.references == ("a film", "the town") and two.references == ()
    authors = {"concept_set": "film#town", "scene": ["a film"]}
    assert texts_of("common-gen", jsonl(tmp_path / "dev.jsonl", authors), tokenizer, "validation")[0][1] == ("a film",)


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
    table = jsonl(tmp_path / "test.jsonl", {"translation": {"en": "the rain", "de": "der Regen"}})
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
    assert real_task("squad", jsonl(tmp_path / "test.jsonl", row), tokenizer).prompts[0].references == ("a", "b")
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
    table = jsonl(tmp_path / "test.jsonl", {"dialog": list("abcdefgh")})
    assert real_task("dailydialog", table, tokenizer).prompts[-1].text == "c\nd\ne\nf\ng\n"  # five before it
    with pytest.raises(ValueError, match="has no dialog or utterances"):
        real_task("dailydialog", jsonl(tmp_path / "test.jsonl", {"text": "a"}), tokenizer)


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
    with pytest.raises(FileNotFoundError, match=r"has no test split; it holds no file that ends in \.jsonl"):
        real_task("tldr", str(tmp_path), tokenizer)
    with pytest.raises(ValueError, match=r"line 1.* has no summary \(it has post\)"):
        real_task("tldr", jsonl(tmp_path / "test.jsonl", {"post": "a"}), tokenizer)
    with pytest.raises(ValueError, match="split='dev'"):
        real_task("tldr", str(tmp_path / "test.jsonl"), tokenizer, split="dev")


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


SPLITS = ("train", "validation", "test")


def texts_of(name, path, tokenizer, split="test", **options):
    return [(p.text, p.references) for p in real_task(name, str(path), tokenizer, split=split, **options).prompts]


@pytest.mark.reports("IMDB as one CSV of review and sentiment: labels are 0 and 1, line breaks become spaces, no review is in two splits")
def test_imdb_as_the_well_known_csv(tmp_path, tokenizer):
    lines = [
        f'"the film was {word}<br /><br />and a b c {"d " * (i // 2)}",{label}'
        for i in range(200)
        for word, label in (("good", "positive"), ("bad", "negative"))
    ]
    (tmp_path / "IMDB Dataset.csv").write_text("review,sentiment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "IMDB Dataset.csv"):
        tasks = [real_task("imdb-half", str(path), tokenizer, split=split) for split in SPLITS]
        reviews = [[p.text + " " + p.references[0] for p in task.prompts] for task in tasks]
        assert sum(map(len, reviews)) == 400 and len(set().union(*reviews)) == 200  # each review is there twice, in one split
        assert sum(len(set(part)) for part in reviews) == 200
        assert [0.6 < len(reviews[0]) / 400 < 0.95, *(0 < len(part) / 400 < 0.25 for part in reviews[1:])] == [True] * 3
        assert not any("<" in text for part in reviews for text in part)
        assert all(p.metadata["label"] == int(" good " in f" {p.text} ") for task in tasks for p in task.prompts)
    (tmp_path / "IMDB Dataset.csv").write_text("review,sentiment\nthe film,mixed\n", encoding="utf-8")
    with pytest.raises(ValueError, match="label 'mixed'"):
        real_task("imdb-half", str(tmp_path), tokenizer)


@pytest.mark.reports("A corpus's split that does not exist is an error that lists what is there, and never another split")
def test_no_split_takes_the_place_of_another(tmp_path, tokenizer):
    row = {"question": "how many?", "answer": "#### 3"}
    train = jsonl(tmp_path / "train.jsonl", row)
    for split in ("validation", "test"):
        with pytest.raises(FileNotFoundError, match=rf"has no {split} split; it holds train\.jsonl"):
            real_task("gsm8k", str(tmp_path), tokenizer, split=split)
        with pytest.raises(ValueError, match=rf"is the train split by its name, not split='{split}'"):
            real_task("gsm8k", train, tokenizer, split=split)
    jsonl(tmp_path / "train_socratic.jsonl", row, row)  # as beside GSM8K's own
    assert len(texts_of("gsm8k", tmp_path, tokenizer, "train")) == 1
    jsonl(tmp_path / "test_a.jsonl", row)
    jsonl(tmp_path / "test_b.jsonl", row)
    with pytest.raises(ValueError, match=r"2 files of its test split \(test_a\.jsonl, test_b\.jsonl\): pass one"):
        real_task("gsm8k", str(tmp_path), tokenizer)
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        real_task("gsm8k", str(tmp_path / "nowhere"), tokenizer)


@pytest.mark.reports("A table that the hub cut into numbered files is read whole, not only its first file")
def test_all_numbered_files_of_a_split_are_read(tmp_path, tokenizer):
    (tmp_path / "main").mkdir()
    for i in range(2):
        jsonl(tmp_path / "main" / f"test-{i:05d}-of-00002.jsonl", {"question": f"a {'b' * (i + 1)}", "answer": f"#### {i}"})
    assert [references for _, references in texts_of("gsm8k", tmp_path, tokenizer)] == [("0",), ("1",)]


@pytest.mark.reports("One file that holds a whole corpus is dealt to train, validation and test; what belongs together stays on one side")
def test_one_file_never_serves_two_splits(tmp_path, tokenizer):
    rows = [{"context": f"c{i // 3}", "question": f"q{i}", "answers": {"text": [f"a{i}"]}} for i in range(300)]
    whole = jsonl(tmp_path / "squad.jsonl", *rows)
    parts = [texts_of("squad", whole, tokenizer, split) for split in SPLITS]
    contexts = [{text.partition("\n")[0] for text, _ in part} for part in parts]
    assert sum(map(len, parts)) == 300 and sum(map(len, contexts)) == len(set().union(*contexts)) == 100  # three questions of each
    assert texts_of("squad", whole, tokenizer, "test") == parts[2]
    said = "".join(f"{'a ' * (i % 50)}b{i} __eou__ c{i} __eou__ d{i} __eou__\n" for i in range(100))
    (tmp_path / "dialogues_text.txt").write_text(said, encoding="utf-8")
    parts = [texts_of("dailydialog", tmp_path / "dialogues_text.txt", tokenizer, split) for split in SPLITS]
    starts = [{prompt.split("\n")[0] for prompt, _ in part} for part in parts]
    assert sum(map(len, parts)) == 200 and sum(map(len, starts)) == len(set().union(*starts)) == 100


@pytest.mark.reports("DailyDialog's folders give the texts, not the acts and emotions beside them, whole or cut into splits")
def test_dailydialog_folders(tmp_path, tokenizer):
    for split in SPLITS:
        (tmp_path / "cut" / split).mkdir(parents=True)
        for kind, line in (("", f"{split} __eou__ a __eou__"), ("act_", "3 4 2"), ("emotion_", "0 0 0")):
            (tmp_path / "cut" / split / f"dialogues_{kind}{split}.txt").write_text(line + "\n", encoding="utf-8")
    assert [texts_of("dailydialog", tmp_path / "cut", tokenizer, split) for split in SPLITS] == [
        [(f"{split}\n", ("a",))] for split in SPLITS
    ]
    flat = tmp_path / "flat"
    flat.mkdir()
    for kind, line in (("text", "b __eou__ c __eou__"), ("act", "1 1"), ("emotion", "0 0"), ("topic", "1")):
        (flat / f"dialogues_{kind}.txt").write_text(line + "\n", encoding="utf-8")
    dealt = {split: real_or_none("dailydialog", flat, tokenizer, split) for split in SPLITS}
    assert [texts for texts in dealt.values() if texts] == [[("b\n", ("c",))]]  # one dialogue falls into one split
    with pytest.raises(ValueError, match="without __eou__, the end of an utterance: '3 4 2'"):
        real_task("dailydialog", str(tmp_path / "cut" / "test" / "dialogues_act_test.txt"), tokenizer)


def real_or_none(name, path, tokenizer, split):
    try:
        return texts_of(name, path, tokenizer, split)
    except ValueError as error:
        assert "0 of its rows are in that split" in str(error)
        return None


@pytest.mark.reports("SQuAD's folder gives train and dev; a test split, which its authors keep, is refused")
def test_squads_folder(tmp_path, tokenizer):
    for name in ("train", "dev"):
        item = {"context": f"the {name}", "qas": [{"question": "who?", "answers": [{"text": name, "answer_start": 4}]}]}
        (tmp_path / f"{name}-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [item]}]}))
    assert [texts_of("squad", tmp_path, tokenizer, split)[0][1] for split in ("train", "validation")] == [("train",), ("dev",)]
    with pytest.raises(FileNotFoundError, match=r"no test split; it holds dev-v2\.0\.json, train-v2\.0\.json"):
        real_task("squad", str(tmp_path), tokenizer)


@pytest.mark.reports("WMT's folders: pairs by their whole names, SGML, training files by their origins, and never another language pair")
def test_wmt_folders(tmp_path, tokenizer):
    def write(name, *lines):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for pair in ("de-en", "cs-en"):
        for language in pair.split("-"):
            write(f"training/europarl-v7.{pair}.{language}", f"{pair} {language} one", f"{pair} {language} two")
    write("training/commoncrawl.de-en.de", "crawl de")
    write("training/commoncrawl.de-en.en", "crawl en")
    for pair, one, two in (("deen", "de", "en"), ("csen", "cs", "en")):
        for a, b in ((one, two), (two, one)):
            write(f"test/newstest2014-{pair}-src.{a}.sgm", f'<srcset><doc><seg id="1">{pair} {a} &amp; news</seg></doc></srcset>')
            write(f"test/newstest2014-{pair}-ref.{b}.sgm", f'<refset><doc><seg id="1">{pair} {b} &amp; news</seg></doc></refset>')
    sides = {"source": "de", "target": "en"}
    assert texts_of("wmt", tmp_path, tokenizer, "test", **sides) == [("deen de & news\n", ("deen en & news",))]
    train = texts_of("wmt", tmp_path, tokenizer, "train", **sides)
    assert train == [("crawl de\n", ("crawl en",)), ("de-en de one\n", ("de-en en one",)), ("de-en de two\n", ("de-en en two",))]
    assert texts_of("wmt", tmp_path, tokenizer, "test", source="cs", target="en") == [("csen cs & news\n", ("csen en & news",))]
    with pytest.raises(FileNotFoundError, match="no validation split from de to en; it holds"):
        real_task("wmt", str(tmp_path), tokenizer, split="validation", **sides)
    with pytest.raises(FileNotFoundError, match="no test split"):  # no pair of these two
        real_task("wmt", str(tmp_path), tokenizer, source="de", target="cs")
    flat = tmp_path / "flat"
    for year in (2013, 2014):
        write(f"flat/newstest{year}.de", f"de {year}")
        write(f"flat/newstest{year}.en", f"en {year}")
    with pytest.raises(ValueError, match=r"2 files of its test split \(newstest2013\.de, newstest2014\.de\): pass one"):
        real_task("wmt", str(flat), tokenizer, **sides)
    assert texts_of("wmt", flat / "newstest2014.de", tokenizer, **sides) == [("de 2014\n", ("en 2014",))]
    write("flat/alone-test.de", "x")
    with pytest.raises(FileNotFoundError, match="has no other side"):
        real_task("wmt", str(flat / "alone-test.de"), tokenizer, **sides)


@pytest.mark.reports("CommonGen's older files: the parts of speech are no part of the concepts")
def test_common_gen_with_parts_of_speech(tmp_path, tokenizer):
    path = jsonl(tmp_path / "commongen.dev.jsonl", {"concept_set": "look_V#town_N", "scene": ["who sees the town"]})
    assert texts_of("common-gen", path, tokenizer, "validation") == [("generate a sentence with: look town\n", ("who sees the town",))]


@pytest.mark.reports("A corpus whose columns have other names is read with columns=; a column that is not there is named")
def test_columns_of_other_names(tmp_path, tokenizer):
    path = jsonl(tmp_path / "test.jsonl", {"body": "a b", "tldr": "c"})
    columns = {"post": "body", "summary": "tldr"}
    assert texts_of("tldr", path, tokenizer, columns=columns) == [("POST: a b\n\nTL;DR:", ("c",))]
    assert make_task({"name": "tldr", "path": path, "tokenizer": str(tokenizer.path), "columns": columns}, split="test").prompts[
        0
    ].references == ("c",)
    with pytest.raises(ValueError, match=r"has no boddy \(it has body, tldr\)"):
        real_task("tldr", path, tokenizer, columns={**columns, "post": "boddy"})
    with pytest.raises(ValueError, match="NarrativeQA is read from"):
        real_task("narrativeqa", path, tokenizer, columns=columns)


def test_every_corpus_names_a_reward_that_exists():
    for task in CORPORA.values():
        as_reward_model(task.reward)
