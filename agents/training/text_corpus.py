"""A text task from plain sentences: train a tokenizer on them, and let episodes go on with openings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from textrl_env import BaseRecipe, FileTokenizer, Prompt, TextTask
from textrl_env.utils.files import read_lines as read_lines
from textrl_env.utils.files import write_text

PAD, EOS = "<pad>", "<eos>"  # ids 0 and 1


def corpus_task(
    sentences: Sequence[str],
    openings: Sequence[str],
    folder: str | Path,
    *,
    vocab_size: int = 2000,
    opening_words: int = 4,
    max_new_tokens: int = 32,
    steps: int = 600,
) -> TextTask:
    """Make a task whose episodes go on with the first words of sentences.

    Args:
        sentences: What tokenizer and base policy learn from.
        openings: Sentences whose first words are the prompts; ones with fewer than two words more are left out.
        folder: Gets `tokenizer.json`; a tokenizer that is already there is used.
        vocab_size: Tokens of the byte-level BPE, special ones included; fewer if the text has not so many pairs.
        opening_words: Words of a prompt.
        max_new_tokens: Length limit of a response.
        steps: Optimizer steps of the base policy.

    Raises:
        ValueError: No opening is long enough.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        write_text(file, train_tokenizer(sentences, vocab_size))
    tokenizer = FileTokenizer(file, EOS)
    prompts = [Prompt(" ".join(words[:opening_words])) for words in map(str.split, openings) if len(words) >= opening_words + 2]
    if not prompts:
        raise ValueError(f"none of {len(openings)} sentences has {opening_words + 2} words: lower opening_words={opening_words}")
    task = TextTask(tokenizer, prompts, max_new_tokens)
    room = 1 << (task.prompt_width + max_new_tokens).bit_length()
    model = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": max(room, 128),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    }

    def corpus() -> list[tuple[str, str]]:
        rows = (sentence.split() for sentence in sentences)
        return [(" ".join(words[:opening_words]), " ".join(words[opening_words:])) for words in rows if len(words) > opening_words]

    return TextTask(tokenizer, prompts, max_new_tokens, recipe=BaseRecipe(corpus=corpus, model=model, steps=steps))


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> str:
    """Return a byte-level BPE fitted to texts, as the content of a `tokenizer.json`; any text can be encoded in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Every word carries its leading space, the first one too: a text may be cut between any two words
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # any text can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer.to_str()
