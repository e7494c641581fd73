"""Turn-level environments as token-level tasks: an environment written here in three shapes, and games of TextArena."""

import functools
import itertools
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest

from textrl_env import TextGenerationEnv, TextGenerationVectorEnv, WordTokenizer
from textrl_env.tasks.turns import FromTurns
from textrl_env.utils.train_tokenizer import train_tokenizer

WORDS = (*map(str, range(10)), "guess", "higher", "lower", "right", ".")


class Guess:
    """Guess a digit in three tries; 0.1 for each try that is answered, 1 for the right one.  Gymnasium's shape."""

    opened = 0

    def __init__(self):
        Guess.opened += 1

    def reset(self, seed=None):
        self.number, self.tries = random.Random(seed).randrange(10), 0
        return f"guess {seed % 10}", {}

    def step(self, action):
        said = int(action.split()[0])
        self.tries += 1
        text = "right" if said == self.number else "higher" if said < self.number else "lower"
        return text, 1.0 if text == "right" else 0.1, text == "right", self.tries == 3, {}


class OpenEnvGuess(Guess):
    """OpenEnv's shape: results are objects, and so are actions."""

    def reset(self, **settings):
        return SimpleNamespace(observation=super().reset(**settings)[0], reward=None, done=False)

    def step(self, action):
        text, reward, ended, cut, _ = super().step(action.text)
        return SimpleNamespace(observation=text, reward=reward, done=ended or cut)


class Growing(Guess):
    """Shows the whole conversation each time."""

    def reset(self, seed=None):
        self.text, info = super().reset(seed)
        return self.text, info

    def step(self, action):
        text, *rest = super().step(action)
        self.text += f" {text}"
        return self.text, *rest


def number_of(seed):
    return random.Random(seed).randrange(10)


def write(env, text):
    words = env.unwrapped.task.tokenizer.words
    for word in text.split():
        _, reward, ended, _, info = env.step(words.index(word))
    return reward, ended, info


def made(factory=Guess, seeds=range(4), **settings):
    own = FromTurns(factory, WordTokenizer(WORDS), seeds, **settings)
    return own, own.task(12, stop_tokens=["."], prompt_order="sequential")


@pytest.mark.parametrize(
    ("factory", "settings"), [(Guess, {}), (OpenEnvGuess, {"act": lambda text: SimpleNamespace(text=text)}), (Growing, {})]
)
def test_a_game_in_tokens(factory, settings):
    _, task = made(factory, **settings)
    env = TextGenerationEnv(task)
    _, info = env.reset(seed=0)
    number = number_of(0)
    assert info["prompt"] == "guess 0"
    low, high = (number - 1 if number else 9), number
    reward, ended, _ = write(env, f"{low} .")
    assert not ended and reward == 0
    assert env.core.text(0)[1] == f" {low} . {'higher' if low < number else 'lower'}"
    reward, ended, info = write(env, f"{high} .")
    assert ended and reward == pytest.approx(1.1) and info["finish_reason"] == "task"
    assert info["response"].split()[-1] == "."


def test_results_are_no_actions_and_the_environments_own_limit_ends_the_text():
    _, task = made()
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    wrong = (number_of(0) + 1) % 10
    for _ in range(3):
        reward, ended, info = write(env, f"{wrong} .")
    assert ended and reward == pytest.approx(0.3) and info["finish_reason"] == "task"
    own = env.core.by_env[0, : env.core.length[0]]
    assert own.tolist() == [False, False, True] * 2 + [False, False]


@pytest.mark.parametrize(("limits", "tokens", "total"), [({"max_turns": 2}, "W . W .", 0.2), ({"max_new_tokens": 4}, "W . W", 0.1)])
def test_a_turn_at_the_limit_of_turns_is_sent_and_one_cut_short_is_not(limits, tokens, total):
    own, _ = made()
    env = TextGenerationEnv(own.task(limits.pop("max_new_tokens", 12), stop_tokens=["."], prompt_order="sequential", **limits))
    env.reset(seed=0)
    reward, ended, _ = write(env, tokens.replace("W", str((number_of(0) + 1) % 10)))
    assert ended and reward == pytest.approx(total)


class Pay:
    """Says `more` after every turn, which pays 1."""

    def __init__(self):
        Pay.actions = []

    def reset(self, seed=None):
        return "go", {}

    def step(self, action):
        Pay.actions.append(action)
        return "more", 1.0, False, False, {}


def paid(text, max_new_tokens=20, again=False, **settings):
    """Write a text over and over until it ends; return its score, why it ended and what was sent, from its first turn on if `again`."""
    tokenizer = WordTokenizer(["go", "more", "x", ".", "[", "].", "]"])
    env = TextGenerationEnv(FromTurns(Pay, tokenizer, seeds=[0]).task(max_new_tokens, **settings))
    env.reset(seed=0)
    Pay.actions, ended, words = [], False, itertools.cycle(text.split())
    while not ended:
        env = pickle.loads(pickle.dumps(env)) if again else env  # no game is open in a copy
        _, reward, ended, _, info = env.step(tokenizer.words.index(next(words)))
    return reward, info["finish_reason"], Pay.actions


@pytest.mark.parametrize(("room", "turns"), [(4, 1), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3)])
def test_a_turn_whose_answer_does_not_fit_is_paid_and_sent_once(room, turns):
    """`x . more x . more x .`: turns end at 2, 5 and 8 tokens."""
    assert paid("x .", room, stop_tokens=["."]) == (turns, "length", ["x ."] * turns)
    reward, *_, actions = paid("x .", room, again=True, stop_tokens=["."])
    assert (reward, actions) == (turns, ["x ."] * turns)  # the last game alone, begun when the score was asked for


@pytest.mark.parametrize(("end", "limits"), [("turns", {"max_turns": 2}), ("length", {"max_new_tokens": 7})])
@pytest.mark.parametrize("again", [False, True])
def test_a_turn_is_sent_as_far_as_its_stop_string(end, limits, again):
    """`[ x ]. more [ x ].`: in the token that ends each turn, a stop is no part of the turn."""
    assert paid("[ x ].", again=again, stop_strings=["]"], **limits) == (2, end, ["[ x ]"] * 2)


@pytest.mark.parametrize("again", [False, True])
def test_a_turn_in_which_the_task_ends_the_text_is_not_sent(again):
    """`x x . more x` has 5 tokens."""
    ends = functools.partial(_have, 5)
    assert paid("x x .", again=again, stop_tokens=["."], ends=ends) == (1, "task", ["x x ."])


@pytest.mark.parametrize("again", [False, True])
def test_an_answer_with_which_the_task_ends_the_text_is_paid(again):
    """`x . more x . more` has 6 tokens."""
    ends = functools.partial(_have, 6)
    assert paid("x .", again=again, stop_tokens=["."], ends=ends) == (2, "task", ["x ."] * 2)


def _have(count, episodes):
    return [len(episode.response_ids) == count for episode in episodes]


def test_games_whose_answers_differ_after_the_same_turn_are_told_apart():
    """Two rows write the same; the first answer, which does not fit, is paid 10, and the second, which does, 1 and then 1 more."""
    answers = iter([("more " * 9, 10.0), ("more", 1.0), ("more", 1.0)])

    class Moody(Pay):
        def step(self, action):
            return *next(answers), False, False, {}

    tokenizer = WordTokenizer(["go", "more", "x", "."])
    env = TextGenerationVectorEnv(2, FromTurns(Moody, tokenizer, seeds=[0]).task(5, stop_tokens=["."]), autoreset_mode="Disabled")
    env.reset(seed=0)
    rewards = []
    for word in ("x", "."):
        _, now, *_ = env.step(np.full(2, tokenizer.words.index(word)))
        rewards.append(now.tolist())
    assert rewards == [[0, 0], [10, 0]]
    env.reset(options={"reset_mask": np.array([True, False])})
    for words in ("x x", "x ."):
        _, now, *_ = env.step(np.array([tokenizer.words.index(word) for word in words.split()]))
    assert now.tolist() == [0, 2]


def test_rows_side_by_side_of_the_same_seed_have_games_of_their_own():
    own = FromTurns(Guess, WordTokenizer(WORDS), [5])
    env = TextGenerationVectorEnv(3, own.task(12, stop_tokens=["."]))
    env.reset(seed=0)
    words, number = env.task.tokenizer.words, number_of(5)
    wrong = (number + 1) % 10
    turns = np.array([[number, wrong, wrong], [-1, -1, -1]])
    turns[1] = words.index(".")
    turns[0] = [words.index(str(n)) for n in turns[0]]
    for actions in turns:
        _, rewards, ended, _, _ = env.step(actions)
    assert rewards.tolist() == [1.0, 0.0, 0.0] and ended.tolist() == [True, False, False]
    opened = Guess.opened
    actions = np.array([words.index(str(wrong)), words.index(str(number)), words.index(str(wrong))])
    env.step(actions)
    _, rewards, ended, _, _ = env.step(np.full(3, words.index(".")))
    np.testing.assert_allclose(rewards[1:], [1.1, 0.0])
    assert Guess.opened <= opened + 1  # games that go on are open still; only the new text begins one


def test_a_game_that_is_not_open_here_is_played_again():
    _, task = made()
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    wrong, number = (number_of(0) + 1) % 10, number_of(0)
    write(env, f"{wrong} .")
    elsewhere = pickle.loads(pickle.dumps(env))
    assert write(elsewhere, f"{number} .")[0] == write(env, f"{number} .")[0] == pytest.approx(1.1)


def test_an_environment_without_a_seed_has_one_prompt():
    class Still(Guess):
        def reset(self):
            return super().reset(0)

    with pytest.raises(ValueError, match=r"reset\(\) takes no seed.*pass seeds=\[0\]"):
        made(Still)
    _, task = made(Still, seeds=[0])
    assert [prompt.text for prompt in task.prompts] == ["guess 0"]


def test_what_cannot_be_used_is_refused():
    class Odd(Guess):
        def step(self, action):
            return "text"

    with pytest.raises(ValueError, match="seeds"):
        made(seeds=[])
    _, task = made(Odd)
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"Odd.step\(\) returned 'text'"):
        write(env, "1 .")


def test_an_environment_that_a_seed_does_not_repeat_is_named():
    class Fickle(Guess):
        count = 0

        def reset(self, seed=None):
            Fickle.count += 1
            super().reset(seed)
            return f"guess {Fickle.count % 10}", {}

    _, task = made(Fickle, seeds=[0])
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    write(env, "1 .")  # the game that showed the prompt
    env.reset()
    with pytest.raises(ValueError, match="can only go on where a seed repeats it"):
        write(env, "1 .")


def test_textarenas_guess_the_number():
    """Bisection finds the number, as the game itself says."""
    arena = pytest.importorskip("textarena", reason="textarena is not installed: pip install textarena")
    tokenizer = train_tokenizer((), 258)
    own = FromTurns(lambda: arena.make("GuessTheNumber-v0"), tokenizer, seeds=[3])
    env = TextGenerationEnv(own.task(600, stop_strings=["]"]))
    _, info = env.reset(seed=0)
    assert "guess the number between 1 and 20" in info["prompt"]
    low, high, ended = 1, 20, False
    while not ended:
        guess = (low + high) // 2
        for token in env.unwrapped.task.tokenizer.encode_batch([f"[{guess}]"])[0]:
            _, reward, ended, _, info = env.step(token)
        told = env.core.text(0)[1].rpartition("target number is ")[2]
        low, high = (guess + 1, high) if told.startswith("higher") else (low, guess - 1)
    assert reward == 1 and info["finish_reason"] == "task"
