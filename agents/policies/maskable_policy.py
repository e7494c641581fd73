"""A transformer policy that sb3-contrib's MaskablePPO accepts."""

from __future__ import annotations

from .transformer_policy import TransformerPolicy


class MaskableTransformerPolicy(TransformerPolicy):
    """A `TransformerPolicy` that also passes for a `MaskableActorCriticPolicy`, which MaskablePPO insists on."""

    __module__ = "agents"
