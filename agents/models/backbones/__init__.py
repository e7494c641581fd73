"""What policy, buffer and cache need of a model: decoder-only, encoder-decoder, or the user's own."""

from .base import Backbone
from .custom import LanguageModel
from .factory import backbone_of

__all__ = ["Backbone", "LanguageModel", "backbone_of"]
