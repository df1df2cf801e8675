"""Folding a temperature into the query: the weight edits that multiply q.k by a constant on the rotated dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ctxforge.checkpoint import ScaleRows, TensorInfo
from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope.architectures import ARCHITECTURES, Architecture, QueryTensor
from ctxforge.rope.fields import flag, integer
from ctxforge.rope.types import RopeGeometry

_SCALABLE = ("F64", "F32", "F16", "BF16")
Rows = tuple[tuple[int, int], ...]


def fold_temperature(
    geometry: RopeGeometry,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    layers: tuple[int, ...],
    rotated_dims: int,
    factor: float,
) -> tuple[ScaleRows, ...]:
    """Edits that multiply q by `factor` on the rotated dimensions of `layers`, exactly as cos and sin would be.

    The projection's rows and bias are scaled; where a norm stands between projection and rotation, the norm's weight
    is scaled instead, because it cancels any scale before it. Unrotated dimensions of partial RoPE are left alone, so
    that the edit equals a temperature on cos and sin.

    Raises:
        CheckpointError: a query tensor is missing.
        UnsupportedError: its dtype can't be scaled (quantised weights).
    """
    architecture = ARCHITECTURES[geometry.model_type]
    _refuse_unfoldable(architecture, config)
    norm = architecture.query_norm
    use_norm = norm is not None and (norm.when is None or flag(config, norm.when, norm.when_default))
    query = norm if use_norm and norm is not None else architecture.query
    edits = []
    for layer in layers:
        prefix, names = _place(architecture.layer_prefixes, layer, geometry.layers, query, tensors)
        heads = geometry.heads if geometry.layer_heads is None else geometry.layer_heads[layer]
        for name in names:
            for head in range(heads) if "{head}" in name else (0,):
                full_name = prefix + name.format(head=head)
                info = tensors.get(full_name)
                if info is None:
                    if name == names[0]:
                        raise _missing(full_name, tensors)
                    continue
                if info.dtype not in _SCALABLE:
                    raise _quantised(full_name, info.dtype)
                rows = _rows(query, geometry, config, layer, heads, rotated_dims, len(info.shape))
                if rows and rows[-1][1] > info.shape[0]:
                    raise CheckpointError(
                        f"tensor {full_name} has {info.shape[0]} rows, the config implies at least {rows[-1][1]}",
                        "config.json and the weights don't belong together; take both from one source",
                    )
                # A bias beside Gemma's (1 + w) would not be offset; none of its norms has one.
                edits.append(ScaleRows(full_name, factor, rows, query.offset))
    return tuple(edits)


def _refuse_unfoldable(architecture: Architecture, config: Mapping[str, Any]) -> None:
    reason = architecture.no_fold
    found: Any = config
    for key in architecture.clip_path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if architecture.clip_path and found is not None:
        reason = f"queries are clamped ({'.'.join(architecture.clip_path)}) between the projection and the rotation"
    if reason is not None:
        raise UnsupportedError(
            f"the temperature must be folded into the query, but no weight of this model can carry it: {reason}",
            "pass --temperature 1, or --portability transformers to leave it to transformers' own keys",
        )


def _place(
    prefixes: tuple[str, ...], layer: int, layers: int, query: QueryTensor, tensors: Mapping[str, TensorInfo]
) -> tuple[str, tuple[str, ...]]:
    """The prefix and the names under which a layer's query tensors are in the state dict."""
    candidates = [prefix.format(layer=layer, half=layer - layers // 2) for prefix in prefixes]
    for names in (query.names, query.instead):
        for prefix in candidates if names else ():
            if prefix + names[0].format(head=0) in tensors:
                return prefix, names
    for prefix in candidates:
        for name in query.names:
            if prefix + name.format(head=0) in tensors:
                return prefix, tuple(sorted(query.names, key=lambda other: other != name))
    return candidates[0], query.names


def _rows(
    query: QueryTensor,
    geometry: RopeGeometry,
    config: Mapping[str, Any],
    layer: int,
    heads: int,
    rotated_dims: int,
    rank: int,
) -> Rows:
    """Row ranges of the rotated query dimensions; adjoining ranges are joined."""
    group = next(group for group in geometry.groups if layer in group.layers)
    dims = group.head_dim or geometry.head_dim
    first = group.first_rotated
    if query.arrangement == "shared":
        return ((first, first + rotated_dims),)
    if query.arrangement == "matrix":
        assert rotated_dims == dims
        assert rank == 2
        return ((0, heads),)
    starts = _ORDERS[query.arrangement](config, heads, dims)
    ranges: list[tuple[int, int]] = []
    for start in starts:
        begin, end = start + first, start + first + rotated_dims
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((begin, end))
    return tuple(ranges)


def _falcon(config: Mapping[str, Any], heads: int, dims: int) -> list[int]:
    """Falcon's fused rows: groups of query heads each with their k and v; or all q, one k, one v; or q, k, v a head."""
    if flag(config, "new_decoder_architecture", False):
        groups = integer(config, "num_kv_heads", heads, high=heads)
        each = heads // groups
        return [(head // each * (each + 2) + head % each) * dims for head in range(heads)]
    if flag(config, "multi_query", True):
        return [head * dims for head in range(heads)]
    return [3 * head * dims for head in range(heads)]


def _gated(config: Mapping[str, Any], heads: int, dims: int) -> list[int]:
    """Each head's query rows are followed by the rows of its output gate."""
    gate = integer(config, "v_head_dim", 64, high=2**16)
    return [head * (dims + gate) for head in range(heads)]


_ORDERS: Mapping[str, Callable[[Mapping[str, Any], int, int], list[int]]] = {
    "heads": lambda _config, heads, dims: [head * dims for head in range(heads)],
    "interleaved-qkv": lambda _config, heads, dims: [3 * head * dims for head in range(heads)],
    "after-gate": lambda _config, heads, dims: [(heads + head) * dims for head in range(heads)],
    "falcon": _falcon,
    "gated": _gated,
}


def _missing(name: str, tensors: Mapping[str, TensorInfo]) -> CheckpointError | UnsupportedError:
    stem = name.rsplit(".", 1)[0]
    packed = [other for other in tensors if other.startswith(stem + ".")]
    if packed:
        return _quantised(packed[0], tensors[packed[0]].dtype)
    return CheckpointError(
        f"the weights hold no tensor {name}, which the temperature must be folded into",
        "check that config.json and the weights belong together",
    )


def _quantised(name: str, dtype: str) -> UnsupportedError:
    return UnsupportedError(
        f"the temperature must be folded into the query, but {name} is quantised ({dtype})",
        "convert the unquantised checkpoint, or use --portability exact, which leaves weights alone",
    )
