"""From token ids to hidden states, logits, log-probabilities and sampled tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
