"""What has the form of personal data goes, and nothing else."""

import pytest

from rewards.feedback.personal_data import scrub


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to jo.doe+x@mail.example.org!", "write to [e-mail]!"),
        ("see https://example.com/a?b=c#d or www.example.org.", "see [URL] or [URL]"),
        ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
        ("pay gb82west12345698765432 now", "pay [IBAN] now"),
        ("GB82 WEST ABCD EFGH IJKL 33", "GB82 WEST ABCD EFGH IJKL 33"),  # wrong check digits
        ("4111 1111 1111 1111", "[card]"),
        ("4111-1111-1111-1112", "4111-1111-1111-1112"),  # fails Luhn's check, and no phone number has 16 digits
        ("from 192.168.0.17 and 2001:db8::8a2e:370:7334", "from [IP] and [IP]"),
        ("999.1.1.1 is none, 12:30 neither, nor a::b::c", "999.1.1.1 is none, 12:30 neither, nor a::b::c"),
        ("call +49 (30) 901820 or 0049-30-901820", "call [phone] or [phone]"),
        ("call (415) 555-2671", "call [phone]"),
        ("on 2024-05-17, 17.05.2024 and 1999-2003", "on 2024-05-17, 17.05.2024 and 1999-2003"),
        ("1234567 people, 3.14159265, 10,000,000", "1234567 people, 3.14159265, 10,000,000"),
        ("Call me at 555-123-4567, thanks.", "Call me at [phone], thanks."),
        ("at +49 170 1234567, or 0049 170 1234567- no", "at [phone], or [phone]- no"),
        ("My IBAN is AT61 1904 3002 3457 3201 and I want it back.", "My IBAN is [IBAN] and I want it back."),
        ("ES91 2100 0418 4502 0005 1332 please", "[IBAN] please"),
        ("PL61109010140000071219812874 please", "[IBAN] please"),
        ("DE89 3704 0044 0532 0130 00 or AT61 1904 3002 3457 3201 then", "[IBAN] or [IBAN] then"),
        ("Card 4111 1111 1111 1111 12/27", "Card [card] 12/27"),
        ("no 12 4111-1111-1111-1111 123", "no 12 [card] 123"),
        ("请发到 wang@例子.com", "请发到 [e-mail]"),
        ("", ""),
    ],
)
def test_by_hand(text, clean):
    assert scrub(text)[0] == clean


def test_counts_and_speed():
    _, found = scrub("a@b.com, c@d.com and 4111111111111111")
    assert found == {"e-mail": 2, "card": 1}
    for piece in ("a" * 1_000_000, "1 " * 500_000, "1" * 1_000_000, "a@" * 500_000, "a." * 500_000, "::" * 500_000, "http://" * 100_000):
        scrub(piece)  # linear: a quadratic pattern would not end
