"""How large a KV cache gets: keys and values of every layer that attends, for one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge import positions
from ctxforge.errors import CtxforgeError
from ctxforge.rope import sizes
from ctxforge.rope.custom_code import base_model_type
from ctxforge.rope.geometry import find_architecture, text_config

_BYTES = {"float32": 4, "float64": 8}
# Keys of a cache that is laid out in another way: compressed, shared between layers, or of another size in some.
_OTHERWISE = (
    *("kv_lora_rank", "v_head_dim", "num_kv_shared_layers", "global_head_dim", "num_global_key_value_heads"),
    *("multi_query", "num_kv_heads", "multi_query_group_num", "attn_config", "kv_channels"),
)


@dataclass(frozen=True)
class CacheSize:
    """A full cache for one sequence.

    Attributes:
        bytes: keys and values together.
        layers: layers that keep every token.
        windowed: layers that keep a window of tokens only.
        heads: key and value heads of a layer.
        head_dim: dimensions of each.
        element: bytes of a number.
    """

    bytes: int
    layers: int
    windowed: int
    heads: int
    head_dim: int
    element: int


def cache_size(config: Mapping[str, Any], tokens: int) -> CacheSize | None:
    """The cache of `tokens` tokens in the checkpoint's own dtype; None where this model keeps another kind of cache.

    2 * layers * heads * head_dim * bytes of a number for each token; layers that attend to a window keep at most that
    many tokens, layers without attention none.
    """
    try:
        found = _attention(config)
    except CtxforgeError:
        return None
    if found is None:
        return None
    full, windowed, window, heads, dim, dtype = found
    element = _BYTES.get(dtype.removeprefix("torch."), 2)
    kept = full * tokens + windowed * min(tokens, window or tokens)
    return CacheSize(2 * heads * dim * element * kept, full, windowed, heads, dim, element)


def _attention(config: Mapping[str, Any]) -> tuple[int, int, int | None, int, int, str] | None:
    """Full layers, windowed ones, the window, heads of keys, dimensions of a head, dtype."""
    stock = {**config, "model_type": base_model_type(config)}
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    if positions.scheme(stock) != "rope":
        geometry = positions.understand(stock)
        width = next((stock[key] for key in ("hidden_size", "n_embd", "d_model") if _positive(stock.get(key))), None)
        if width is None or geometry.windowed_layers or any(stock.get(key) for key in _OTHERWISE):
            return None
        return geometry.layers, 0, None, geometry.heads, width // geometry.heads, dtype
    _name, inner = text_config(stock)
    _, architecture = find_architecture(stock)
    named = sizes.canonical(inner, architecture)
    if architecture.rotated_key is not None or any(named.get(key) for key in _OTHERWISE):
        return None
    dtype = str(inner.get("dtype") or inner.get("torch_dtype") or dtype)
    kinds = sizes.layer_kinds(named, architecture, sizes.layer_count(named, architecture))
    window = sizes.window_size(named, architecture)
    attending = [kind for kind in kinds if sizes.attends(kind)]
    windowed = sum(sizes.is_windowed(kind, window) for kind in attending)
    heads = named.get("num_key_value_heads") or sizes.query_heads(named, architecture)
    if not _positive(heads):
        return None
    return len(attending) - windowed, windowed, window, heads, sizes.full_head_dim(named, architecture), dtype


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
