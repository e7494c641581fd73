"""What policy, buffer and cache need of a model: decoder-only, encoder-decoder, or the user's own."""

from .base import Backbone
from .build import backbone_of
from .custom import LanguageModel

__all__ = ["Backbone", "LanguageModel", "backbone_of"]
