"""Pictures of texts that were really played: the prompt, each token as a box, and the score, in the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 300, 118
_LETTER, _LINE, _LETTERS = 7.3, 22, 38  # of a fixed-width font of 12 pixels: its width, the distance of lines, and how many fit
_LINES = 3  # of tokens


def draw(prompt: str, tokens: Sequence[str], score: float, share: float) -> str:
    """Return an SVG element for the middle of a page.

    Args:
        prompt: What was given; its end is shown where it is long.
        tokens: What was written; what does not fit is left out.
        score: Of the text, as it was paid.
        share: Of the bar below that is full, in [0, 1].
    """
    told = " ".join(prompt.split())
    parts = [_letters(0, 14, told if len(told) <= _LETTERS else "…" + told[1 - _LETTERS :], "soft"), *_boxes(tokens)]
    parts.append(f'<rect x="0" y="{_HEIGHT - 12}" width="180" height="6" rx="3" fill="var(--line)"/>')
    parts.append(f'<rect x="0" y="{_HEIGHT - 12}" width="{180 * share:.0f}" height="6" rx="3" fill="var(--main)"/>')
    parts.append(_letters(190, _HEIGHT - 5, f"score {score:.2f}", "ink"))
    said = escape(f"{prompt} | {' '.join(tokens)}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}" font-size="12">{"".join(parts)}</svg>'


def _boxes(tokens: Sequence[str]) -> list[str]:
    made, x, line = [], 0.0, 0
    for place, token in enumerate(tokens):
        shown = token if len(token) <= _LETTERS // 2 else token[: _LETTERS // 2 - 1] + "…"
        width = _LETTER * len(shown) + 6
        if x + width > _WIDTH:
            x, line = 0.0, line + 1
        y = 26 + _LINE * line
        if line == _LINES - 1 and x + width > _WIDTH - 20 and place < len(tokens) - 1:
            return [*made, _letters(x, y + 14, "…", "soft")]
        made.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" rx="4" fill="var(--main-tint)" stroke="var(--line)"/>')
        made.append(_letters(x + 3, y + 13, shown, "ink"))
        x += width + 3
    return made


def _letters(x: float, y: float, text: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="var(--{colour})" font-family="var(--mono)" xml:space="preserve">{escape(text)}</text>'
