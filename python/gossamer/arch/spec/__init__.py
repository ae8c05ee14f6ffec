"""A transformer described by its parts: a residual stream, and branches that read it and add to it.

Flags multiply; parts add. What a model needs follows from the description and is written nowhere else: the names and
shapes of its weights, which of them read the same inputs, which outputs join the stream. It is data: packed folders
hold it, the native engine is built from it (`csrc/engine/spec/` mirrors it field for field), and what it does not
know is refused by name.
"""

from __future__ import annotations

from .attention import Attention, QkNorm, attention_scale
from .embedding import TABLES, Embedding, Learned, Mel, Sinusoids
from .experts import Experts, Routing
from .linear import Linear
from .mixer import Group, Mixer
from .mlp import Mlp
from .norm import Norm
from .positions import Alibi, QueryScale, RelativeBias, Rope
from .stack import MOST_LAYERS, Block, Branch, Stack
from .transformer import Head, Transformer

__all__ = [
    "MOST_LAYERS",
    "TABLES",
    "Alibi",
    "Attention",
    "Block",
    "Branch",
    "Embedding",
    "Experts",
    "Group",
    "Head",
    "Learned",
    "Linear",
    "Mel",
    "Mixer",
    "Mlp",
    "Norm",
    "QkNorm",
    "QueryScale",
    "RelativeBias",
    "Rope",
    "Routing",
    "Sinusoids",
    "Stack",
    "Transformer",
    "attention_scale",
]
