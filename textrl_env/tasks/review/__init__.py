"""The film-review task: a corpus from a grammar, a tokenizer for it, and an annotator whose taste is known."""
