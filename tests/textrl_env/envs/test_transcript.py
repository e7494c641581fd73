"""Texts as images and in a terminal."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.textrl_env.test_imports import loaded_after
from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVecEnv, TextGenerationVectorEnv, TextTask
from textrl_env.envs import transcript
from textrl_env.envs.transcript import FADED, GAIN, LOSS, PAPER, REPLY, SURPRISE, Terminal, draw, mixed, printable, token_texts, wrapped

SHAPE = (transcript.HEIGHT, transcript.WIDTH, 3)


class Dense:
    """Scores unfinished texts by their last token less 4, and finished ones 2."""

    def score(self, episodes):
        return [2.0] * len(episodes)

    def score_steps(self, episodes):
        return [float(e.response_ids[-1]) - 4 for e in episodes]


def toy(kind=TextGenerationEnv, *args, **settings):
    task = TextTask(IntegerTokenizer(10), [Prompt("3")], max_new_tokens=12)
    return kind(*args, task, **{"reward": Dense(), "render_mode": "rgb_array", **settings})


def written(env, *tokens, log_probs=()):
    env.reset(seed=0)
    for token, log_prob in zip(tokens, log_probs or [None] * len(tokens), strict=True):
        env.log_probs = log_prob
        env.step(token)
    return env


def cells(image, line=0, upto=16):
    """The colour of the ground of each character of a line: the pixel at the top left of its cell."""
    cell = transcript._pillow()[2].getlength("m")
    return [tuple(image[transcript.MARGIN + line * transcript.LINE, round(transcript.MARGIN + i * cell)].tolist()) for i in range(upto)]


def test_tokens_have_the_colour_of_their_reward():
    """Prompt 3, then 8 (reward 4, the largest), 2 (-2), 4 (0) and the end (2): two characters a token, and one for the end."""
    image = written(toy(), 8, 2, 4, 0).render()
    assert image.shape == SHAPE and image.dtype == np.uint8
    white, half_green = (255, 255, 255), mixed(GAIN, 0.5)
    assert cells(image, upto=9) == [white, *[mixed(GAIN, 1)] * 2, *[mixed(LOSS, 0.5)] * 2, white, white, half_green, white]
    assert mixed(GAIN, 1) == (0x4F, 0xB0, 0x6D) and mixed(GAIN, 0) == white


def test_log_probabilities_colour_the_tokens_of_their_steps_only():
    env = written(toy(), 8, 7, 5, log_probs=(np.log(0.25), None, 0.0))
    expected = [mixed(SURPRISE, 0.75)] * 2 + [mixed(GAIN, 3 / 4)] * 2 + [(255, 255, 255)] * 2
    assert cells(env.render(), upto=7)[1:] == expected
    env.reset()
    env.step(9)
    assert cells(env.render(), upto=3)[1:] == [mixed(GAIN, 1)] * 2  # nothing is left of the text before


def test_the_outcome_is_drawn_when_a_text_has_ended():
    env = written(toy(), 8)
    before = env.render()
    env.step(0)
    bottom = slice(transcript.HEIGHT - transcript.MARGIN - transcript.LINE, None)
    assert not np.array_equal(before[bottom], env.render()[bottom])
    np.testing.assert_array_equal(env.render()[bottom], draw([], "eos, score 2.000", "green, red: reward")[bottom])
    env.reset()
    np.testing.assert_array_equal(env.render()[bottom], before[bottom])


def test_what_the_environment_replies_is_no_token_of_the_agent():
    task = TextTask(IntegerTokenizer(10), [Prompt("3")], 12, reply=lambda episodes: ["1 1"] * len(episodes), max_turns=3)
    env = written(TextGenerationEnv(task, Dense(), render_mode="rgb_array"), 8, 0, 9)
    pieces = env._transcripts._pieces(0, ~env.core.by_env[0, : env.core.length[0]])
    assert [(piece.text, piece.ink) for piece in pieces] == [
        ("3", FADED), (" 8", transcript.INK), (transcript.END, transcript.INK), (" 1", REPLY), (" 1", REPLY), (" 9", transcript.INK)
    ]  # fmt: skip
    # rewards 4, then of the step that brought the reply: its last token less 4, then 5
    assert [piece.paper for piece in pieces] == [PAPER, mixed(GAIN, 0.8), mixed(LOSS, 0.6), PAPER, PAPER, mixed(GAIN, 1.0)]


def test_images_of_many_texts():
    vector, sb3 = toy(TextGenerationVectorEnv, 4), toy(TextGenerationVecEnv, 4)
    single = written(toy(), 5)
    for env in (vector, sb3):
        env.reset()
        env.step(np.full(4, 5))
    assert [image.tolist() for image in vector.render()] == [single.render().tolist()] * 4
    tiled = sb3.render()  # SB3 tiles them
    assert tiled.shape == (2 * SHAPE[0], 2 * SHAPE[1], 3)
    np.testing.assert_array_equal(tiled[: SHAPE[0], : SHAPE[1]], single.render())
    np.testing.assert_array_equal(tiled, sb3.render("rgb_array"))
    stock = DummyVecEnv([toy] * 4)
    stock.reset()
    stock.step(np.full(4, 5))
    np.testing.assert_array_equal(stock.render(), tiled)


def test_videos(tmp_path):
    pytest.importorskip("moviepy", reason="videos are written by moviepy: pip install 'textrl-env[video]'")
    env = RecordVideo(toy(), str(tmp_path / "videos"), episode_trigger=lambda number: True)
    for _ in range(2):
        written(env, 8, 2, 0)
    env.close()
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["rl-video-episode-0.mp4", "rl-video-episode-1.mp4"]


def test_frames_of_a_whole_text():
    frames = gymnasium.wrappers.RenderCollection(toy())
    written(frames, 8, 2, 0)
    images = frames.render()
    assert len(images) == 4 and len({image.tobytes() for image in images}) == 4


def test_render_modes_that_there_are_not():
    with pytest.raises(ValueError, match=r"render_mode='video': pass None or one of 'ansi', 'human', 'rgb_array'"):
        toy(render_mode="video")


def test_a_missing_library_is_named(monkeypatch):
    transcript._pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"render_mode='rgb_array' draws with Pillow .*: pip install pillow matplotlib"):
        written(toy(), 3).render()


def test_nothing_heavy_is_loaded_before_an_image_is_asked_for():
    code = "e = gymnasium.make('textrl/Lock-4-v0', render_mode='rgb_array'); e.reset(seed=0); e.step(5)"
    assert not loaded_after(f"import textrl_env, gymnasium; {code}") & {"PIL", "matplotlib", "torch"}
    assert "PIL" in loaded_after(f"import textrl_env, gymnasium; {code}; e.render()")


def test_a_terminal_is_updated_in_place(monkeypatch, capsys):
    """Three lines of ten columns are taken back before the next picture of the text; what ended stays above the next text."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: (10, 5))
    env = toy(render_mode="human")
    env.reset(seed=0)
    assert capsys.readouterr().out == "\x1b[2m3\x1b[0m\n"
    for token in (4, 5, 6, 7):
        env.step(token)
    assert capsys.readouterr().out.endswith("\x1b[1F\x1b[J\x1b[2m3\x1b[0m 4 5 6 7\n")
    env.step(8)
    assert capsys.readouterr().out == "\x1b[1F\x1b[J\x1b[2m3\x1b[0m 4 5 6 7 \n\x1b[2m\x1b[0m8\n"
    env.step(0)
    assert capsys.readouterr().out.splitlines()[0].startswith("\x1b[2F\x1b[J")
    env.reset()
    assert capsys.readouterr().out == "\x1b[2m3\x1b[0m\n"
    vector = toy(TextGenerationVectorEnv, 9, render_mode="human")
    vector.reset()
    vector.render()
    assert capsys.readouterr().out.count("\n") == 4  # the window has five lines, and one is the cursor's
    vector.render()
    assert capsys.readouterr().out.startswith("\x1b[4F\x1b[J")


def test_control_characters_do_not_steer_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Terminal().show([("a\x1b[2J", "\tb\u202e", "")])
    assert capsys.readouterr().out == "\x1b[2ma\ufffd[2J\x1b[0m b\ufffd\n"
    assert printable("ä\r\n中\x00") == "ä \n中\ufffd"


def test_lines():
    def lines(text, columns):
        return [text[begin:end] for begin, end in wrapped(text, columns)]

    assert lines("", 5) == [""]
    assert lines("ab cd efg", 5) == ["ab cd", " efg"]
    assert lines("abcdefghijk", 4) == ["abcd", "efgh", "ijk"]
    assert lines("a\n\nbc", 4) == ["a", "", "bc"]
    text = "one two three " * 9
    assert "".join(lines(text, 7)) == text and max(map(len, lines(text, 7))) <= 7


def test_texts_of_tokens_add_up():
    class Bytes:
        """A token a byte, as byte-level tokenizers have it for rare characters."""

        def decode_batch(self, ids):
            return [bytes(row).decode(errors="replace") for row in ids]

    ids = list("aé中b".encode())
    assert token_texts(Bytes(), ids) == ["a", "", "é", "", "", "中", "b"]
    assert token_texts(Bytes(), ids[:2]) == ["a", "\ufffd"]  # unfinished
    assert token_texts(Bytes(), []) == []
