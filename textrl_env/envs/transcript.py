"""Texts as people see them: printed in a terminal, and drawn as an image."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .core import TextCore
from .step_result import StepResult

WIDTH, HEIGHT, MARGIN, FONT_SIZE, LINE = 640, 272, 12, 15, 21  # pixels; videos are made of squares of 16
SIDE = 216  # pixels of the longer side of a prompt's picture
INK, FADED, REPLY, PAPER, GAIN, LOSS, SURPRISE = "#1a1a1a", "#7a7a7a", "#2458a6", "#ffffff", "#4fb06d", "#e06c6c", "#f5a04c"
END = "¶"  # a token without text, such as the end of it, has a place too


class Piece(NamedTuple):
    """A stretch of text in one colour, on one colour."""

    text: str
    ink: str
    paper: str | tuple[int, int, int] = PAPER


class Transcripts:
    """The texts of a core, with what it does not keep of each token: the reward and the agent's log-probability.

    Args:
        core: It must be stepped by `step` for tokens to have colours.
    """

    def __init__(self, core: TextCore) -> None:
        self.core = core
        self.rewards = np.zeros(core.response.shape)  # (B, T)
        self.log_probs = np.full(core.response.shape, np.nan)  # (B, T) NaN: the agent gave none

    def step(self, actions: np.ndarray, log_probs: Any) -> StepResult:
        """Step the core; `log_probs` of the actions have shape (B,) or (), or are None."""
        if self.core.unscored is None:  # else the step is that of the tokens before
            rows = np.flatnonzero(self.core.live)
            self._at = rows, self.core.length[rows]  # where the agent's tokens come to lie; a reply may follow them
            self._given = np.broadcast_to(np.nan if log_probs is None else np.asarray(log_probs, float), self.core.num_rows)[rows]
        result = self.core.step(actions)
        self.rewards[self._at], self.log_probs[self._at] = result.rewards[self._at[0]], self._given
        return result

    def image(self, row: int, outcome: str) -> np.ndarray:
        """Draw a text: the prompt grey, what the environment replied blue, each token of the agent on the colour of its worth.

        That is orange the less probable the token was to the agent, if it gave its log-probabilities; or else green or red by the
        reward of its step, relative to the largest one of the text.  Of a text that is too long the end is shown.  A picture of the prompt
        stands to the right.

        Returns:
            Shape (272, 640, 3), uint8.

        Raises:
            ImportError: Pillow or matplotlib, whose font is used, is missing.
        """
        if self.core.prompts[row] is None or (self.core.length[row] == 0 and not self.core.live[row]):
            return draw([], "", "")
        own = ~self.core.by_env[row, : self.core.length[row]]  # (t,) tokens that the agent wrote
        known = np.isfinite(self.log_probs[row, : len(own)][own]).any()
        legend = "orange: improbable tokens" if known else "green, red: reward"
        return draw(self._pieces(row, own), outcome, legend, None if self.core.image is None else self.core.image[row])

    def _pieces(self, row: int, own: np.ndarray) -> list[Piece]:
        rewards, log_probs = self.rewards[row, : len(own)], self.log_probs[row, : len(own)]
        largest = np.abs(rewards[own]).max(initial=1e-12)
        pieces = [Piece(self.core.text(row)[0], FADED)]
        for at, text in enumerate(token_texts(self.core.task.tokenizer, self.core.response[row, : len(own)].tolist())):
            if not own[at]:
                pieces.append(Piece(text, REPLY))
            elif np.isfinite(log_probs[at]):
                pieces.append(Piece(text or END, INK, mixed(SURPRISE, -np.expm1(log_probs[at]))))
            else:
                pieces.append(Piece(text or END, INK, mixed(GAIN if rewards[at] > 0 else LOSS, abs(rewards[at]) / largest)))
        return pieces


class Terminal:
    """Prints texts over what it printed before; where the output is no terminal, below it."""

    def __init__(self) -> None:
        self._lines = 0

    def show(self, texts: Sequence[tuple[str, str, str]]) -> None:
        """Print the end of all texts that the window has room for; each is prompt, response and outcome."""
        if not sys.stdout.isatty():
            print("\n".join(transcript(*text) for text in texts))
            return
        columns, rows = shutil.get_terminal_size()
        lines = []
        for prompt, response, outcome in texts:
            whole = printable(prompt + response + _in_brackets(outcome))
            for begin, end in wrapped(whole, columns):
                faded = min(max(len(prompt), begin), end)
                lines.append(f"\x1b[2m{whole[begin:faded]}\x1b[0m{whole[faded:end]}")
        lines = lines[1 - rows :]
        up = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
        print(up + "\n".join(lines), flush=True)
        self._lines = len(lines)


def transcript(prompt: str, response: str, outcome: str = "") -> str:
    """Return a text for a terminal: the prompt dim, the response plain, the outcome in brackets."""
    return f"\x1b[2m{prompt}\x1b[0m{response}{_in_brackets(outcome)}"


def _in_brackets(outcome: str) -> str:
    return f"  [{outcome}]" if outcome else ""


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return what each token adds to the text; a character of several tokens is added by the last of them."""
    texts, before = [], ""
    for number, text in enumerate(tokenizer.decode_batch([ids[:n] for n in range(1, len(ids) + 1)]), 1):
        settled = text if number == len(ids) else text.rstrip("\ufffd")
        texts.append(settled[len(before) :])
        before = settled
    return texts


def printable(text: str) -> str:
    """Return the text with a mark for each character that would steer a terminal or has no glyph; as long as before."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in text)


def wrapped(text: str, columns: int) -> list[tuple[int, int]]:
    """Return where each line of at most `columns` characters begins and ends; lines are broken between words where possible."""
    lines, begin = [], 0
    for word in re.finditer(r"\S+|\s", text):
        if word.end() - begin > columns and word.start() > begin:
            lines.append((begin, word.start()))
            begin = word.start()
        while word.end() - begin > columns:
            lines.append((begin, begin + columns))
            begin += columns
        if word.group() == "\n":
            lines.append((begin, word.start()))
            begin = word.end()
    return [*lines, (begin, len(text))]


def mixed(colour: str, share: float) -> tuple[int, int, int]:
    """Return white with a share of a colour."""
    red, green, blue = (round(255 + share * (int(colour[i : i + 2], 16) - 255)) for i in (1, 3, 5))
    return red, green, blue


def draw(pieces: Sequence[Piece], outcome: str, legend: str, picture: np.ndarray | None = None) -> np.ndarray:
    """Return an image of the end of a text, over a line with the outcome and what the colours mean; shape (272, 640, 3), uint8.

    Args:
        pieces: The text.
        outcome: Stands below on the left.
        legend: Stands below on the right.
        picture: Stands right of the text, enlarged or made smaller; (H, W, 3), uint8.
    """
    Image, ImageDraw, font = _pillow()
    image, width = Image.new("RGB", (WIDTH, HEIGHT), PAPER), WIDTH - 2 * MARGIN  # of the text
    if picture is not None:
        high, wide = (max(1, round(SIDE * of / max(picture.shape[:2]))) for of in picture.shape[:2])
        image.paste(Image.fromarray(picture).resize((wide, high), Image.Resampling.NEAREST), (WIDTH - MARGIN - wide, MARGIN))
        width -= wide + MARGIN
    pen, cell = ImageDraw.Draw(image), font.getlength("m")
    text = printable("".join(piece.text for piece in pieces))
    styles = [piece for piece in pieces for _ in piece.text]
    room = (HEIGHT - 2 * MARGIN) // LINE - 1
    for number, (begin, end) in enumerate(wrapped(text, int(width / cell))[-room:]):
        for column, at in enumerate(range(begin, end)):
            x, y = MARGIN + column * cell, MARGIN + number * LINE
            pen.rectangle((x, y, x + cell - 1, y + LINE - 3), fill=styles[at].paper)
            pen.text((x, y), text[at], styles[at].ink, font)
    y = HEIGHT - MARGIN - LINE + 4
    pen.line((MARGIN, y - 5, WIDTH - MARGIN, y - 5), FADED)
    pen.text((MARGIN, y), outcome, INK, font)
    pen.text((WIDTH - MARGIN - font.getlength(legend), y), legend, FADED, font)
    return np.asarray(image).copy()


@cache
def _pillow() -> tuple[Any, Any, Any]:
    """Return Pillow's modules, and a font of which all characters are equally wide; loaded when an image is asked for."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("render_mode='rgb_array' draws with Pillow and a font of matplotlib: pip install pillow matplotlib") from error
    return Image, ImageDraw, ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf", FONT_SIZE)
