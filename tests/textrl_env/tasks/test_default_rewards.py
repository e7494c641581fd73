"""Every task with its own reward, in the three shells: a text scores the same alone as among others."""

import json

import numpy as np
import pytest

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask, make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import RewardError
from textrl_env.tasks.corpora import CORPORA
from textrl_env.tasks.exact import TASKS
from textrl_env.tasks.ladders import LADDERS

from .test_corpora import reviews, tokenizer  # noqa: F401  # a fixture

NAMED = ["review", *(f"exact-{name.lower()}" for name in TASKS), *(ladder.name.lower() for ladder in LADDERS)]
ROWS = {  # two rows of each corpus
    "tldr": [{"post": "a b", "summary": "c d"}, {"post": "e", "summary": "f"}],
    "cnn-dailymail": [{"article": "rain fell on the town", "highlights": "rain fell"}, {"article": "a b", "highlights": "c"}],
    "common-gen": [{"concepts": ["rain"], "target": "rain fell"}, {"concepts": ["town"], "target": "the town sees"}],
    "wmt": [{"translation": {"en": "a b", "de": "c d"}}, {"translation": {"en": "e f", "de": "g h"}}],
    "iwslt": [{"translation": {"en": "a b", "de": "c d"}}, {"translation": {"en": "e f", "de": "g h"}}],
    "squad": [{"context": "a", "question": "b", "answers": {"text": ["c"]}}, {"context": "d", "question": "e", "answers": {"text": ["f"]}}],
    "dailydialog": [{"dialog": ["a b", "c", "d e"]}, {"dialog": ["f", "g h"]}],
    "gsm8k": [{"question": "a b", "answer": "c #### 42"}, {"question": "d", "answer": "#### 42"}],
}


def corpus(name, folder, tokenizer):  # noqa: F811
    if name.startswith("imdb"):
        return {"name": name, "path": str(reviews(folder)), "tokenizer": tokenizer}
    if name == "narrativeqa":
        (folder / "summaries.csv").write_text("document_id,set,summary,summary_tokenized\nd1,test,a b,x\n", encoding="utf-8")
        questions = "document_id,set,question,answer1,answer2,x\nd1,test,who?,c,d e,y\nd1,test,f?,g,h,y\n"
        (folder / "qaps.csv").write_text(questions, encoding="utf-8")
        return {"name": name, "path": str(folder), "tokenizer": tokenizer}
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    return {"name": name, "path": str(folder / "test.jsonl"), "tokenizer": tokenizer}


def scored_alone_and_among_others(task):
    """Scores of the same random texts to the first prompts: one by one in the scalar environment, and together in both batched ones."""
    rng, vocabulary, rows = np.random.default_rng(0), task.tokenizer.vocab_size, 5
    texts = rng.integers(1, vocabulary, (rows, task.max_new_tokens))
    ends = rng.integers(1, task.max_new_tokens, rows) if task.max_new_tokens > 1 else np.zeros(rows, int)

    def token(row, step):
        return int(task.tokenizer.eos_token_id if step == ends[row] else texts[row, step])

    scalar, alone = TextGenerationEnv(task, prompt_order="sequential"), []
    scalar.reset(seed=0)
    for row in range(rows):
        terminated, step = False, 0
        while not terminated:
            _, _, terminated, _, info = scalar.step(token(row, step))
            step += 1
        alone.append(info["score"])
        scalar.reset()
    batched = []
    for shell in (TextGenerationVecEnv, TextGenerationVectorEnv):
        env = shell(rows, task, prompt_order="sequential")
        env.reset()
        together, step = [None] * rows, 0
        while env.core.live.any():
            result = env.core.step(np.array([token(row, step) for row in range(rows)]))
            step += 1
            for row in result.episodes:
                together[row] = float(result.scores[row])
        batched.append(together)
    return alone, *batched


@pytest.mark.reports("Every registered task scores a text with its own reward alike in the scalar environment and among others")
@pytest.mark.parametrize("name", NAMED)
def test_registered_tasks(name):
    alone, sb3, vector = scored_alone_and_among_others(make_task(name))
    assert alone == pytest.approx(sb3) and alone == pytest.approx(vector)


@pytest.mark.reports("Every public corpus scores a single text with its own reward, common-gen's cider too, and alike among others")
@pytest.mark.parametrize("name", CORPORA)
def test_public_corpora(name, tmp_path, tokenizer):  # noqa: F811
    alone, sb3, vector = scored_alone_and_among_others(make_task(corpus(name, tmp_path, tokenizer), split="test"))
    assert alone == pytest.approx(sb3) and alone == pytest.approx(vector)


@pytest.mark.reports("cider of common-gen weighs n-grams by the references of the whole split")
def test_cider_takes_the_references_of_the_whole_split(tmp_path, tokenizer):  # noqa: F811
    task = make_task(corpus("common-gen", tmp_path, tokenizer), split="test", max_new_tokens=2)
    env = TextGenerationEnv(task, prompt_order="sequential")
    env.reset(seed=0)
    for word in ("rain", "fell"):
        *_, info = env.step(task.tokenizer.encode_batch([word])[0][0])
    # both words stand in one of two documents, so every IDF is log 2: cosine 1 at n = 1 and 2, and no n-grams of 3 and 4
    assert info["response"].split() == ["rain", "fell"] and info["score"] == pytest.approx(0.5)


NEEDS = [
    "exact_match", "numeric", "choice", "bleu", "chrf", "ter", "rouge", "cider", {"name": "sum", "terms": {"a": "vader", "b": "bleu"}},
    {"name": "clip", "reward": {"name": "normalize", "reward": "chrf"}}, {"name": "gold_and_proxy", "proxy": "length", "gold": "rouge"},
    {"name": "ensemble", "members": ["ter", "length"]}, {"name": "improvement", "reward": "choice"},
]  # fmt: skip


def task_of(*prompts):
    return TextTask(IntegerTokenizer(9), list(prompts), max_new_tokens=2)


@pytest.mark.reports(
    "A reward that compares with references is refused at make_task, and when an environment takes it, if a prompt has none"
)
@pytest.mark.parametrize("reward", NEEDS, ids=str)
def test_prompts_without_references_are_refused_at_once(reward):
    task = task_of(Prompt("1", ("2 A",)), Prompt("3", ("4 B",)), Prompt("5"))
    with pytest.raises(ValueError, match="1 of 3 prompts have none, first '5'"):
        make_task(task, reward=reward)
    for shell in (TextGenerationEnv, lambda *args: TextGenerationVecEnv(2, *args), lambda *args: TextGenerationVectorEnv(2, *args)):
        with pytest.raises(ValueError, match="1 of 3 prompts have none, first '5'"):
            shell(task, reward)
    env = TextGenerationEnv(task, "length")
    with pytest.raises(ValueError, match="1 of 3 prompts have none"):
        env.reward_model = reward
    assert "Length" in repr(env.reward_model)
    fine = make_task(task_of(Prompt("1", ("2 A",)), Prompt("3", ("4 B",))), reward=reward)
    TextGenerationEnv(fine)
    TextGenerationEnv(TextTask(IntegerTokenizer(9), [Prompt("5")], max_new_tokens=2, reward=reward), "length")  # what is not asked


@pytest.mark.reports("Rewards that load models are refused at make_task without being loaded")
@pytest.mark.parametrize(
    "reward", [{"name": "bertscore", "path": "/nowhere"}, {"name": "embedding", "path": "/nowhere"}, "meteor"], ids=str
)
def test_large_rewards_are_checked_without_being_built(reward):
    with pytest.raises(ValueError, match="1 of 1 prompts have none"):
        make_task(task_of(Prompt("5")), reward=reward)
    make_task(task_of(Prompt("5", ("6",))), reward=reward)
    make_task(task_of(Prompt("5")), reward={"name": "embedding", "path": "/nowhere", "against": "prompt"})


@pytest.mark.reports(
    "A reward function that needs a column which no prompt has is refused at make_task; a text without the column gives None"
)
def test_columns_of_reward_functions():
    def right(completions, answer, references):
        return [float(a is not None and a in c) for c, a in zip(completions, answer, strict=True)]

    with pytest.raises(ValueError, match=r"reward function right needs the column 'answer', which no prompt has .*columns: topic"):
        make_task(task_of(Prompt("5", metadata={"topic": "x"})), reward=right)
    with pytest.raises(ValueError, match="needs the column 'answer'"):
        TextGenerationEnv(task_of(Prompt("5")), right)
    env = TextGenerationEnv(task_of(Prompt("5", metadata={"answer": "7"}), Prompt("6")), right, prompt_order="sequential")
    env.reset(seed=0)
    env.step(7)
    assert env.step(0)[1] == 1.0
    env.reset()
    env.step(7)
    assert env.step(0)[1] == 0.0  # alone in its batch, and without the column


@pytest.mark.reports("self_bleu is refused where there are no other texts beside one, before the first episode")
def test_self_bleu_needs_other_texts():
    with pytest.raises(ValueError, match="the environment has one row"):
        TextGenerationEnv(task_of(Prompt("5")), {"name": "sum", "terms": {"a": "self_bleu"}})
    env = TextGenerationVecEnv(2, task_of(Prompt("5")), "self_bleu")
    env.reset()
    with pytest.raises(RewardError, match="got one"):
        env.step(np.array([0, 3]))
