"""A file of comparisons in the two-transcript form, with the oddities that such files have, from a known taste."""

import gzip
import json
import random

QUESTIONS = (
    "How do I bake bread?",
    "What is a comet?",
    "Why is the sky blue?",
    "Can you fix my bike?",
    "Tell me about whales.",
    "Who wrote this song?",
)
GOOD = ("Of course!", "Here is how.", "Step one is easy.", "I am glad you asked.", "Let me explain.")
BAD = ("No.", "I do not care.", "Go away.", "Whatever.", "That is a stupid question.")
PLAIN = ("It depends.", "Some say so.", "There are many ways.", "People often wonder.")


def answer(rng):
    """Return a text and its worth: good phrases less bad ones."""
    phrases = [rng.choice(rng.choice((GOOD, BAD, PLAIN))) for _ in range(rng.randint(1, 4))]
    return " ".join(phrases), sum((p in GOOD) - (p in BAD) for p in phrases)


def row(rng, noise):
    """Return one comparison; with probability `noise` the label is wrong."""
    start = f"\n\nHuman: {rng.choice(QUESTIONS)} ({rng.randint(0, 999)})"
    for _ in range(rng.randint(0, 2)):
        start += f"\n\nAssistant: {rng.choice(PLAIN)}\n\nHuman: {rng.choice(QUESTIONS)}"
    one, two = answer(rng), answer(rng)
    while one[1] == two[1]:
        two = answer(rng)
    better, worse = (one, two) if (one[1] > two[1]) != (rng.random() < noise) else (two, one)
    return {"chosen": f"{start}\n\nAssistant: {better[0]}", "rejected": f"{start}\n\nAssistant: {worse[0]}"}


def write(path, n=2400, noise=0.1, seed=0):
    """Write `n` sound rows and six odd ones, gzipped if the name says so."""
    rng = random.Random(seed)
    rows = [row(rng, noise) for _ in range(n)]
    start = "\n\nHuman: Hello?"
    rows[10:10] = [
        {"chosen": f"{start}\n\nAssistant: Hi.", "rejected": f"{start}\n\nAssistant: Hi."},  # identical
        {"chosen": f"{start}\n\nAssistant: Let me explain.", "rejected": f"{start}\n\nAssistant:"},  # an empty answer
        {"chosen": f"{start}\n\nAssistant:", "rejected": f"{start}\n\nAssistant:"},  # both empty
        {
            "chosen": f"{start}\n\nAssistant: Of course!\n\nHuman: Thanks.",
            "rejected": f"{start}\n\nAssistant: No.",
        },  # a person has the last word
        {"chosen": f"{start}\n\nAssistant: Naïve café \u2013 你好\u2028!", "rejected": f"{start}\n\nAssistant: Go away.\x00"},
        {"chosen": "Nothing in common.", "rejected": "\n\nHuman: Another one?\n\nAssistant: No."},
    ]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path
