"""A tokenizer whose tokens are bytes, as GPT-2's begins, with an end of text."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|endoftext|>"


def byte_tokenizer():
    """Return a backend of 257 tokens, the last of which ends a text."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE({**letters, END: 256}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made
