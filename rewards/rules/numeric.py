r"""Numbers in running text: which number a response gives as its answer, and whether it is the right one."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from .references import ReferenceRule

_SPACES = "\u00a0\u2009\u202f"  # no-break, thin and narrow spaces group digits; a common space separates numbers
_GROUPS = rf"(?:,|\{{,\}}|\\[,!]|[_{_SPACES}])"
_DIGITS = rf"\d{{1,3}}(?:{_GROUPS}\d{{3}})+(?!\d)|\d+"
_DECIMAL = rf"(?:{_DIGITS})(?:\.\d+)?"
# signs stand before the currency or after it, and not behind a word or a closing bracket, where they are an operator
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}.])(?P<sign>[-+\u2212\u2013]))? (?:\\?[$\u20ac\u00a3\u00a5])? (?:(?<=[$\u20ac\u00a3\u00a5])(?P<sign2>[-+\u2212\u2013]))?
    (?:
      (?<![\w.]) (?:(?P<whole>\d+)[ ])? (?P<top>{_DECIMAL})[ ]?/[ ]?(?P<bottom>{_DECIMAL}) (?![\d/.,]\d)
    | (?<![^\W\d]) (?<!\d) (?P<digits>{_DIGITS}) (?P<decimals>\.\d+)? (?P<exponent>[eE][-+]?\d+)?
    | (?<![\w.]) (?P<bare>\.\d+) (?P<exponent2>[eE][-+]?\d+)?
    )
    (?P<percent>[ ]?\\?%)?
    """,
    re.VERBOSE,
)
_FRAC = re.compile(r"(?P<before>\d)?\\[dt]?frac(?:\{(?P<a>[^{}]*)\}\{(?P<b>[^{}]*)\}|(?P<c>\d)(?P<d>\d))")
# what may stand beside the number in a box: units, in words or as \text, with a power; `x =`; degrees; spaces of TeX
_POWER = r"\^\{?\d\}?"
_UNIT = re.compile(rf"\\(?:text|textbf|mathrm|mbox)\s*\{{[^{{}}\d]*\}}(?:{_POWER})?|(?<![A-Za-z\\])(?:[A-Za-z]{{2,}}|m){_POWER}(?![\w{{])")
_STYLED = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{([-\d.,\s]*)\}")
_VARIABLE = re.compile(r"(?![msghLNJWVAKCF])[A-Za-z](?![A-Za-z])")  # directly behind a number, as in 2x
_COMMAND = r"\\(?:(?:circ|degree|left|right|quad|approx)(?![A-Za-z])|[,!;: $%])|\^\{?(?=\\circ)"
_BESIDE = re.compile(rf"(?:{_COMMAND}|[A-Za-z\s{{}}=~.,:;$%\u00b0\u20ac\u00a3\u00a5])*")
_LONGEST = 1000  # digits of a number, and of its exponent 3: exact arithmetic on what lies beyond takes for ever


class Number(NamedTuple):
    """A number read from a text.

    Attributes:
        value: As written, a percentage not yet divided by 100.
        percent: Whether a percent sign follows.
    """

    value: Fraction
    percent: bool

    def readings(self) -> tuple[Fraction, ...]:
        """Return what it may mean: 50% may be meant as 50 or as 0.5."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


class NumericReward(ReferenceRule):
    r"""1.0 where the number that the response gives as its answer is that of a reference, else 0.0.

    The answer is, of the first of these marks that the text holds: what follows the last `####` (the first number of it), what
    stands in the last `\boxed{...}` (one number, with a unit or `x =` at most), or the last number of the text.  A mark without a number
    is no answer: it scores 0, and so does a box with more than a number, such as a root, a power or a pair.  Signs, decimals,
    exponents, fractions (`3/4`, `1 1/2`, `\frac{3}{4}`), currency signs and separators of thousands (comma, underscore, narrow space)
    are understood; a comma is never a decimal point.  Where only one of the two has a percent sign, 50% is equal to 50 and to 0.5.
    References are read in the same way, so that GSM8K's worked solutions serve as they are.  Arithmetic is exact, in numbers of up
    to 1,000 digits; a longer one scores 0.

    Args:
        tolerance: Largest absolute difference that counts as equal.

    Raises:
        ValueError: `tolerance` is negative or not finite.
    """

    name = "numeric"

    def __init__(self, tolerance: float = 1e-6) -> None:
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"tolerance={tolerance} must be 0 or a positive number")
        self.tolerance = tolerance

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        answer = find_answer(response)
        wanted = [_required(reference) for reference in references]
        return float(answer is not None and any(self._equal(answer, number) for number in wanted))

    def _equal(self, answer: Number, wanted: Number) -> bool:
        if answer.percent and wanted.percent:
            return abs(answer.value - wanted.value) <= Fraction(self.tolerance)
        return any(abs(a - b) <= Fraction(self.tolerance) for a in answer.readings() for b in wanted.readings())

    def __repr__(self) -> str:
        return f"NumericReward(tolerance={self.tolerance:g})"


def find_answer(text: str) -> Number | None:
    """Return the number that a text gives as its answer (see `NumericReward`), or None."""
    if "####" in text:
        return _pick(text.rpartition("####")[2], 0)
    boxed = last_boxed(text)
    return _pick(text, -1) if boxed is None else _only(boxed)


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, braces within braces respected; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return text[start:at]
    return None


def _pick(text: str, which: int) -> Number | None:
    matches = list(_NUMBER.finditer(_FRAC.sub(_plain_fraction, text)))
    return _value(matches[which]) if matches else None


def _only(boxed: str) -> Number | None:
    """Return the number that a box holds, None if it holds anything else that counts."""
    plain = _UNIT.sub(" ", _FRAC.sub(_plain_fraction, _STYLED.sub(r"\1", boxed)))
    matches = list(_NUMBER.finditer(plain))
    if len(matches) != 1:
        return None
    before, behind = plain[: matches[0].start()], plain[matches[0].end() :]
    if _VARIABLE.match(behind) or not _BESIDE.fullmatch(f"{before} {behind}"):
        return None
    return _value(matches[0])


def _plain_fraction(match: re.Match[str]) -> str:
    before = f"{match['before']} " if match["before"] else ""
    return f"{before}{match['a'] or match['c']}/{match['b'] or match['d']}"


def _value(match: re.Match[str]) -> Number | None:
    if len(match[0]) > _LONGEST or len((match["exponent"] or match["exponent2"] or "").lstrip("eE+-")) > 3:
        return None
    if match["bottom"]:
        bottom = _exact(match["bottom"])
        if not bottom:
            return None
        value = int(match["whole"] or 0) + _exact(match["top"]) / bottom
    elif match["digits"]:
        value = _exact(f"{match['digits']}{match['decimals'] or ''}{match['exponent'] or ''}")
    else:
        value = _exact(f"0{match['bare']}{match['exponent2'] or ''}")
    negative = (match["sign"] or match["sign2"] or "+") != "+"
    return Number(-value if negative else value, match["percent"] is not None)


def _exact(written: str) -> Fraction:
    return Fraction(re.sub(_GROUPS, "", written))


def _required(reference: str) -> Number:
    number = find_answer(reference)
    if number is None:
        raise ValueError(f"numeric finds no number in the reference {reference[:100]!r}: give references that hold the right answer")
    return number
