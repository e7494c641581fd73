"""Personal data with a fixed form, taken out of texts: e-mail, URL, IBAN, card, IP address, phone.

Names, streets and anything told in words stay: no pattern finds them.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_EMAIL = re.compile(r"[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_URL = re.compile(r"(?:https?|ftp)://[^\s<>\"']{1,2000}|\bwww\.[^\s<>\"']{1,2000}", re.IGNORECASE)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.IGNORECASE)
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w:])(?!\.\d)", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.,-])(?:\+|00)?(?:\(?\d{1,5}\)?[ ./-]?){2,7}\d{1,5}(?!\w|[.,-]\d)")
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{4} ?- ?\d{4}")


def scrub(text: str) -> tuple[str, Counter[str]]:
    """Return the text with `[e-mail]`, `[URL]`, `[IBAN]`, `[card]`, `[IP]` and `[phone]` in place of such data, and how many of each.

    Card numbers must pass Luhn's check, IBANs theirs (modulo 97, ISO 13616), and IP addresses be valid; phone numbers have 7 to 15 digits
    (ITU E.164) and begin with + or 00, or are written in groups.
    """
    counts: Counter[str] = Counter()
    for kind, pattern, is_real in _KINDS:

        def replace(match: re.Match[str], kind: str = kind, is_real: Callable[[str], bool] = is_real) -> str:
            found = _part(match[0], is_real)
            if found is None:
                return match[0]
            counts[kind] += 1
            start, end = found
            return f"{match[0][:start]}[{kind}]{pattern.sub(replace, match[0][end:])}"  # noqa: B023 - called before the next kind

        text = pattern.sub(replace, text)
    return text, counts


def _part(text: str, is_real: Callable[[str], bool]) -> tuple[int, int] | None:
    """Return where what passes a check begins and ends: all of a match, or else some of its groups, since a word or number may follow."""
    if is_real(text):
        return 0, len(text)
    if is_real not in (_is_iban, _is_card):
        return None
    gaps = [gap.span() for gap in re.finditer("[ -]", text)]
    if len(gaps) > MOST_GAPS:
        return None
    for start in (0, *(after for _, after in gaps)):
        for end in (*(before for before, _ in reversed(gaps)), len(text)):
            if end - start >= SHORTEST and is_real(text[start:end]):
                return start, end
    return None


SHORTEST = 13  # characters of a card number or an IBAN
MOST_GAPS = 10  # of an IBAN or card number in groups, with what follows it


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if c.isdecimal()]


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34 or not compact.isascii() or not re.match(r"[A-Z]{2}\d{2}", compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    digits = _digits(text)[::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return 13 <= len(digits) <= 19 and any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.version == 4 or sum(c.isalnum() for c in text) > 2  # "::" alone is punctuation


def _is_phone(text: str) -> bool:
    if not 7 <= len(_digits(text)) <= 15 or _DATE.fullmatch(text) or re.fullmatch(r"\d+\.\d+", text):  # the last is a decimal number
        return False
    return text.startswith(("+", "00")) or len(re.findall(r"\d+", text)) > 1


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("e-mail", _EMAIL, lambda _: True),
    ("URL", _URL, lambda _: True),
    ("IBAN", _IBAN, _is_iban),
    ("card", _CARD, _is_card),
    ("IP", _IP, _is_ip),
    ("phone", _PHONE, _is_phone),
)
