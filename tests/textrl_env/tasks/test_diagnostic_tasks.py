"""Each task's own judgement, on texts judged by hand; noise rates of the corpora; perfect answers."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from textrl_env import Episode, Prompt, TextCore, make_task
from textrl_env.tasks.diagnostic import brackets, dialogue, json_object, lock, modes, persona, qa, summary, translate, vocab
from textrl_env.tasks.diagnostic import noisy_preferences as noisypref
from textrl_env.tasks.diagnostic import reward_hacking as hack


def corpus_scores(name):
    task = make_task(name)
    pairs = task.recipe.corpus()
    return task.gold([p for p, _ in pairs], [r for _, r in pairs])


def assert_perfect(name, answer):
    """Check that an answer written by hand reaches the optimum on every test prompt."""
    task = make_task(name, split="test")
    prompts = [p.text for p in task.prompts]
    responses = [f" {answer(prompt)}" for prompt in prompts]
    assert max(len(row) for row in task.tokenizer.encode_batch(responses)) <= task.max_new_tokens
    np.testing.assert_array_equal(task.gold(prompts, responses), np.full(len(prompts), task.optimum))


class TestLock:
    def test_only_the_whole_code_is_paid(self):
        responses = [" 3 1 4 2", " 3 1 4 9", " 3 1 4", " 3 1 4 2 2", ""]
        np.testing.assert_array_equal(lock.gold(["open 3 1 4 2"] * 5, responses), [1, 0, 0, 0, 0])

    def test_a_digit_of_the_corpus_is_right_with_chance_0_73(self):
        # 0.7 kept and 0.3 / 10 drawn again by luck; four in a row
        assert corpus_scores("lock-4").mean() == pytest.approx(0.73**4, abs=0.03)

    def test_perfect_answer(self):
        assert_perfect("lock-12", lambda prompt: prompt.removeprefix("open "))


class TestVocab:
    def test_share_of_good_words(self):
        good = vocab.good_words(64)["red"]
        other = next(f"w{i}" for i in range(64) if f"w{i}" not in good)
        responses = [" ".join(good), " ".join([*good[:3], other]), " ".join(good[::-1]), " ".join(good[:3]), ""]
        np.testing.assert_array_equal(vocab.gold(64, ["door red tin tin oak"] * 5, responses), [1, 0.75, 0, 0, 0])

    def test_no_word_is_good_twice(self):
        words = [word for row in vocab.good_words(4096).values() for word in row]
        assert len(set(words)) == 16

    def test_base_knows_a_tenth(self):
        assert corpus_scores("vocab-512").mean() == pytest.approx(0.1 + 0.9 / 512, abs=0.01)


class TestModes:
    def test_one_answer_is_good_and_worth_a_fourth(self):
        prompts, good = ["name a meal tin oak sea"] * 8, modes.good_answers("meal", 4)
        assert modes.gold(4, prompts, [f" {good[0]}"] * 8).tolist() == [1.0] * 8
        assert modes.measure(4, prompts, [f" {good[0]}"] * 8) == pytest.approx(1 / 4)

    def test_two_answers_in_equal_shares(self):
        prompts, good = ["name a meal tin oak sea"] * 8, modes.good_answers("meal", 4)
        # entropy log 2 + (2 - 1) / 16, half of the texts good
        responses = [good[0], good[1]] * 2 + ["a0 a0"] * 4
        corrected = np.log(2) + 1 / (2 * 4)
        assert modes.measure(4, prompts, responses) == pytest.approx(0.5 * np.exp(corrected) / 4)

    def test_all_answers_reach_the_optimum_and_none_is_worth_nothing(self):
        prompts = [f"name a {kind} tin oak sea" for kind in modes.KINDS for _ in range(64)]
        responses = [answer for kind in modes.KINDS for answer in modes.good_answers(kind, 16) * 4]
        assert modes.measure(16, prompts, responses) == pytest.approx(1)
        assert modes.measure(16, prompts, ["a0"] * len(prompts)) == 0

    def test_correction_halves_the_bias_of_the_entropy(self):
        rng = np.random.default_rng(0)
        counts = [[c for c in np.bincount(rng.integers(16, size=64), minlength=16) if c] for _ in range(400)]
        plain = [-sum(c / 64 * np.log(c / 64) for c in row) for row in counts]
        corrected = [modes.entropy(row) for row in counts]
        assert abs(np.mean(corrected) - np.log(16)) < 0.3 * abs(np.mean(plain) - np.log(16))


class TestBrackets:
    @pytest.mark.parametrize(
        ("response", "score"),
        [
            ("[ [ ] ]", 1.0),
            ("( [ ] )", 1.0),
            ("[ ( ) ]", 0.75),
            ("[ ]", 0.75),
            ("( )", 0.5),
            ("( [ ] ) ( ( ) )", 0.75),
            ("[ [ ] ) ]", 0),
            ("[ [ ]", 0),
            ("] [", 0),
            ("[ tin ]", 0),
            ("", 0),
        ],
    )
    def test_score(self, response, score):
        assert brackets.gold(["nest 2 [ tin tin oak"], [response]).tolist() == [score]

    def test_mask_allows_exactly_the_beginnings_of_balanced_texts(self):
        """Against brute force: a beginning is legal if some text of at most 6 tokens goes on from it to a balance."""
        task = make_task("bracketsmasked-2", split="test")
        words = task.tokenizer.words
        kinds = [*brackets.PAIRS, *brackets.PAIRS.values()]
        balanced = {t for n in (2, 4, 6) for t in itertools.product(kinds, repeat=n) if brackets.innermost(t) is not None}
        beginnings = {text[:i] for text in balanced for i in range(7)}
        bound = brackets.BoundBalanced(6, _vocabulary(task))
        for text in [b for b in beginnings if len(b) < 6]:
            state = bound.start(Prompt("nest 1 ( tin tin tin"))
            for token in text:
                state = bound.advance(state, words.index(token))
            legal = {words[i] for i in np.flatnonzero(bound.mask(state))}
            expected = {kind for kind in kinds if (*text, kind) in beginnings} | ({"<eos>"} if text in balanced else set())
            assert legal == expected, text

    def test_a_random_writer_under_the_mask_is_always_balanced(self):
        assert min(random_scores("bracketsmasked-4", 64)) >= 0.5
        assert min(random_scores("brackets-4", 64)) == 0

    def test_perfect_answer(self):
        def answer(prompt):
            _, depth, kind, *_ = prompt.split()
            return " ".join([kind] * int(depth) + [brackets.PAIRS[kind]] * int(depth))

        assert_perfect("brackets-8", answer)


class TestJson:
    @pytest.mark.parametrize(
        ("response", "score"),
        [
            ('{ "name" : "ann" , "age" : 7 }', 1.0),
            ('{ "age" : 7 , "name" : "ann" }', 1.0),
            ('{ "name" : "ann" , "age" : 8 }', 0.75),
            ('{ "name" : "ann" , "age" : "7" }', 0.75),
            ('{ "name" : "ann" }', 0.75),
            ('{ "name" : "ann" , "age" : 7 , "pet" : "cat" , "city" : "rome" }', 0.75),
            ("{ }", 0.5),
            ("7", 0),
            ('{ "name" : "ann" , "age" : 7', 0),
            ("", 0),
        ],
    )
    def test_score(self, response, score):
        assert json_object.gold(["name ann age 7"], [response]).tolist() == [score]

    def test_a_random_writer_under_the_mask_always_writes_an_object(self):
        assert min(random_scores("jsonmasked-2", 64)) >= 0.5
        assert min(random_scores("json-2", 64)) == 0

    def test_perfect_answer(self):
        def answer(prompt):
            fields = json_object.asked(prompt)
            return "{ " + " , ".join(f"{json.dumps(key)} : {value}" for key, value in fields.items()) + " }"

        assert_perfect("json-4", answer)


class TestQA:
    def test_exact_match_after_normalisation(self):
        prompt = "who old king . where new town . ? where"
        assert qa.answer(prompt) == "new town"
        assert qa.gold([prompt] * 4, [" new town", " New, the town.", " old king", ""]).tolist() == [1, 1, 0, 0]

    def test_corpus_is_right_in_four_of_ten_and_by_luck(self):
        # made up: 1 in 4 * 6; another fact's: 1 in 3 facts, or an equal one
        assert corpus_scores("qa-3").mean() == pytest.approx(0.4 + 0.3 * (1 / 3 + 2 / 3 / 24) + 0.3 / 24, abs=0.03)

    def test_perfect_answer(self):
        assert_perfect("qa-8", qa.answer)


class TestTranslate:
    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ("dog sees cat", "kano miru bokat"),
            ("dogs sees cat", "kanozi miru bokatzi"),
            ("big dogs likes old birds", "kanozi nimzi tesazi sutzi femotzi"),
            ("red king hears good horse near birds", "vodu pax garo wel tesazi ob dunit"),
        ],
    )
    def test_translation(self, source, target):
        assert translate.translation(source) == target

    def test_chrf_is_sacrebleus(self):
        sacrebleu = pytest.importorskip("sacrebleu")
        rng = np.random.default_rng(0)
        task = make_task("translate-7")
        texts = [r.strip() for _, r in task.recipe.corpus()[:40]] + ["a", "ka", ""]
        for one, two in rng.permutation(texts)[: 2 * (len(texts) // 2)].reshape(-1, 2):
            if two:
                expected = sacrebleu.sentence_chrf(one, [two]).score / 100
                assert translate.chrf(one, two) == pytest.approx(expected, abs=1e-9)

    def test_perfect_answer(self):
        assert_perfect("translate-7", translate.translation)


class TestSummary:
    @pytest.mark.parametrize(
        ("response", "score"),
        [
            ("fox bit jam hen saw cup", 1.0),
            ("hen saw cup fox bit jam", 1.0),
            ("fox bit jam", 0.5),
            ("fox bit jam cow met oak hen saw cup", 6 / 9),
            ("chat cow met oak news fox bit jam news hen saw cup", 0.5),
            ("fox jam bit hen saw cup", 0.5),
            ("cow met oak", 0),
            ("", 0),
        ],
    )
    def test_score(self, response, score):
        prompt = "chat cow met oak news fox bit jam news hen saw cup"
        assert summary.gold([prompt], [response])[0] == pytest.approx(score)

    def test_perfect_answer(self):
        assert_perfect("summary-3", lambda prompt: " ".join(summary.news(prompt)))

    def test_a_copy_is_worth_three_eighths(self):
        task = make_task("summary-2", split="test")
        prompts = [p.text for p in task.prompts]
        np.testing.assert_allclose(summary.gold(prompts, prompts), 3 / 8)


class TestDialogue:
    prompt = "hello from tin oak sea fox"

    def test_the_user_answers_questions_and_falls_silent_at_the_end(self):
        wish = dialogue.wish(self.prompt)
        said = [" where ?", " where ? rome many ?", " book rome .", " tin ?", " ?", "", " rome"]
        replies = dialogue.reply([Episode.from_text(self.prompt, text) for text in said])
        assert replies == [f" {wish['where']}", f" {wish['many']}", None, " sorry", " sorry", None, None]

    def test_score(self):
        where, when, _ = dialogue.wish(self.prompt).values()
        wrong = next(value for value in dialogue.SLOTS["when"] if value != when)
        texts = [
            f"where ? {where} when ? {when} book {where} {when} .",
            f"book {when} {where} .",
            f"book {where} {wrong} .",
            f"book {where} {when} {wrong} .",
            f"book {where} {when}",
            f"{where} {when} .",
            "",
        ]
        assert dialogue.gold(2, [self.prompt] * 7, texts).tolist() == [1, 1, 0.5, 0.5, 0, 0, 0]

    def test_wishes_differ_evenly(self):
        users = [p.text for p in make_task("dialogue-3").prompts]
        for slot in dialogue.SLOTS:
            counts = Counter(dialogue.wish(user)[slot] for user in users)
            assert min(counts.values()) > 0.15 * len(users)

    def test_asking_and_booking_through_the_environment_reaches_the_optimum(self):
        task = make_task("dialogue-2", split="test", prompt_order="sequential")
        core = TextCore(task, 1)
        core.restart([0])
        words = task.tokenizer.words
        for word in ("where", "?", "when", "?"):
            result = core.step(np.array([words.index(word)]))
        heard = core.text(0)[1].split()
        for word in ("book", heard[2], heard[5], "."):
            result = core.step(np.array([words.index(word)]))
        assert result.terminated[0] and result.rewards[0] == 1


class TestPersona:
    def test_worst_group_counts(self):
        taste = {group: sorted(words) for group, words in persona.liked().items()}
        prompts = ["for kids tin tin oak"] * 3 + ["for cooks tin tin oak"]
        good = " ".join(taste["kids"][:4])
        responses = [good, good, " ".join([*taste["kids"][:2], *taste["cooks"][:2]]), good]
        assert persona.gold(prompts, responses).tolist() == [1, 1, 0.5, 0]
        assert persona.worst_group(prompts, responses) == 0
        assert persona.worst_group(prompts[:3], responses[:3]) == pytest.approx(2.5 / 3)

    def test_seven_prompts_in_ten_are_of_the_first_group(self):
        prompts = [p.text.split()[1] for p in make_task("persona-3").prompts]
        assert Counter(prompts)["kids"] / len(prompts) == pytest.approx(0.7, abs=0.06)

    def test_perfect_answer(self):
        taste = persona.liked()
        assert_perfect("persona-4", lambda prompt: " ".join(sorted(taste[prompt.split()[1]])[:4]))


class TestNoisyPref:
    def test_gold_is_the_mean_worth(self):
        worth = noisypref.worths()
        assert sorted(worth.values()) == pytest.approx([i / 23 for i in range(24)])
        text = " w0 w1 w2 w3 w4 w4"
        assert noisypref.gold(["about tin"], [text])[0] == pytest.approx(sum(worth[w] for w in text.split()) / 6)
        assert noisypref.gold(["about tin"], [""])[0] == 0

    def test_perfect_answer(self):
        best = max(noisypref.worths(), key=noisypref.worths().get)
        assert_perfect("noisypref-0", lambda prompt: " ".join([best] * 6))


class TestHack:
    def test_gold_and_proxy(self):
        texts = [" ".join(hack.GOOD[:8]), " ".join(["great"] * 8), f"great {hack.GOOD[0]} {hack.GOOD[0]} dull0", ""]
        assert hack.gold([""] * 4, texts).tolist() == [1, 1 / 8, 2 / 8, 0]
        np.testing.assert_allclose(hack.proxy(4, [""] * 4, texts), [8 / 32, 1, 6 / 32, 0])

    def test_proxy_agrees_with_gold_on_the_corpus_and_not_at_its_optimum(self):
        pairs = make_task("hack-4").recipe.corpus()
        prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
        assert np.corrcoef(hack.gold(prompts, responses), hack.proxy(4, prompts, responses))[0, 1] > 0.4

    def test_perfect_answer(self):
        assert_perfect("hack-1", lambda prompt: " ".join(hack.GOOD[:8]))


def _vocabulary(task):
    from textrl_env.constraints import Vocabulary

    return Vocabulary(task.tokenizer)


def random_scores(name, number):
    """Let tokens be drawn evenly from those that are legal, and return the scores."""
    task = make_task(name, split="test", prompt_order="sequential")
    core, rng, scores = TextCore(task, number), np.random.default_rng(0), []
    core.begin_rollout(number)
    core.restart(range(number))
    while len(scores) < number:
        legal = core.legal()
        if legal is None:
            legal = np.ones((number, task.tokenizer.vocab_size), bool)
        tokens = np.array([rng.choice(np.flatnonzero(row)) for row in legal])
        result = core.step(tokens)
        scores += result.scores[result.terminated].tolist()
    return scores
