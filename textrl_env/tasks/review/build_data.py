"""Build the files of the review task: ``python -m textrl_env.tasks.review.build_data``.

`openings.json` holds the prompts of each split, for drawing them from the grammar takes half a second at every import.

`tokenizer.json` is a byte-level BPE trained on the training pool. Every word, the first too, carries the space before it, so the ids of an
opening followed by the ids of a body are the ids of the whole text. The build is deterministic.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

from ...utils.train_tokenizer import train_tokenizer
from .grammar import Split, split

TOKENIZER = Path(__file__).with_name("tokenizer.json")
OPENINGS = Path(__file__).with_name("openings.json")
ROWS: dict[Split, int] = {"train": 4000, "validation": 500, "test": 500}
VOCABULARY_SIZE = 4096
CORPUS_SIZE = 20_000


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer from the seeded corpus."""
    return train_tokenizer((review.text for review in split("train", CORPUS_SIZE)), VOCABULARY_SIZE)


def build_openings() -> dict[str, list[str]]:
    """Draw the prompts of each split."""
    return {name: [review.opening for review in split(name, number)] for name, number in ROWS.items()}


def main() -> None:
    """Write both files beside this one."""
    TOKENIZER.write_text(build_tokenizer().to_str(pretty=False) + "\n", encoding="utf-8")
    OPENINGS.write_text(json.dumps(build_openings(), indent=0) + "\n", encoding="utf-8")
    print(f"wrote {TOKENIZER} and {OPENINGS}")


if __name__ == "__main__":
    main()
