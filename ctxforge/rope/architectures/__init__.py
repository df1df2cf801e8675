"""The RoPE of every causal-LM type, as data.

A row tells where a config keeps its base, rotated fraction, windows and unrotated layers, and where the query that a
folded temperature must scale lives among the weights; `REFUSED` tells why a type has no row. Sources: transformers
5.24 `configuration_*.py` and `modeling_*.py` of each type, and 4.57 for the legacy keys. Nothing else in ctxforge
branches on a model type. Types with learned positions or ALiBi are `ctxforge.positions`'s.
"""

from __future__ import annotations

from ctxforge.rope.architectures.gemma import GEMMA
from ctxforge.rope.architectures.hybrid import HYBRID
from ctxforge.rope.architectures.lengths import MISSTATED_LENGTHS
from ctxforge.rope.architectures.llama_like import LLAMA_LIKE
from ctxforge.rope.architectures.mla import MLA
from ctxforge.rope.architectures.partial import PARTIAL
from ctxforge.rope.architectures.refused import REFUSED
from ctxforge.rope.architectures.types import Architecture, Layers, MisstatedLength, QueryTensor, TableRow
from ctxforge.rope.architectures.windowed import WINDOWED
from ctxforge.rope.architectures.wrappers import WRAPPERS

ARCHITECTURES: dict[str, Architecture] = LLAMA_LIKE | PARTIAL | WINDOWED | MLA | GEMMA | HYBRID | WRAPPERS

__all__ = [
    "ARCHITECTURES",
    "MISSTATED_LENGTHS",
    "REFUSED",
    "Architecture",
    "Layers",
    "MisstatedLength",
    "QueryTensor",
    "TableRow",
]
