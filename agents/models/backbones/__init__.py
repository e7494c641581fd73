"""One interface to all models: decoder-only, encoder-decoder, or the user's own."""

from .base import Backbone
from .custom import LanguageModel
from .factory import backbone_of

__all__ = ["Backbone", "LanguageModel", "backbone_of"]
