"""Weights that are looked up by row, and heads, which are their transposes: Adam's, not Muon's.

A step sees a few rows of an embedding, and a few hundred logits of a head: there is nothing to make orthogonal in the
others. Names tell; a shape does not, since (49408, 768) may as well be a factor. Without names a small embedding is
taken for a matrix: its rows then step as a matrix of the live ones alone would. A large one is beyond `muon.largest`.
"""

import re

from hina_kohya.parameters.role_table import Kind
from hina_kohya.parameters.roles import Member

# The last part of a module's name, flattened (kohya) or not; `time_embedding.linear_1` and `x_embedder` are layers.
_MODULE = re.compile(r"(?:^|[._])(?:embed(?:ding)?s?|emb|embed_tokens|tok_embeddings|wte|wpe|lm_head)$")


def is_looked_up(member: Member) -> bool:
    if member.role.kind is Kind.EMBEDDING:
        return True
    whole = member.role.kind in (Kind.DENSE, Kind.REGULAR)
    module = (member.name or "").removesuffix(".weight").removesuffix("_weight")
    return whole and _MODULE.search(module) is not None
