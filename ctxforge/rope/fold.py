"""Folding a temperature into the query: the weight edits that multiply q.k by a constant on the rotated dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.checkpoint import ScaleRows, TensorInfo
from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope.architectures import ARCHITECTURES, QueryTensor
from ctxforge.rope.fields import flag
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
    norm = architecture.query_norm
    use_norm = norm is not None and (norm.when is None or flag(config, norm.when, False))
    query = norm if use_norm and norm is not None else architecture.query
    edits = []
    for layer in layers:
        prefix = _prefix(architecture.layer_prefixes, layer, query, tensors)
        for name in query.names:
            heads = range(geometry.heads) if "{head}" in name else (0,)
            for head in heads:
                full_name = prefix + name.format(head=head)
                info = tensors.get(full_name)
                if info is None:
                    if name == query.names[0]:
                        raise _missing(full_name, tensors)
                    continue
                if info.dtype not in _SCALABLE:
                    raise _quantised(full_name, info.dtype)
                rows = _rows(query, geometry, rotated_dims)
                if rows and rows[-1][1] > info.shape[0]:
                    raise CheckpointError(
                        f"tensor {full_name} has {info.shape[0]} rows, the config implies at least {rows[-1][1]}",
                        "config.json and the weights don't belong together; take both from one source",
                    )
                edits.append(ScaleRows(full_name, factor, rows, query.offset))
    return tuple(edits)


def _prefix(prefixes: tuple[str, ...], layer: int, query: QueryTensor, tensors: Mapping[str, TensorInfo]) -> str:
    candidates = [prefix.format(layer=layer) for prefix in prefixes]
    first = query.names[0].format(head=0)
    return next((prefix for prefix in candidates if prefix + first in tensors), candidates[0])


def _rows(query: QueryTensor, geometry: RopeGeometry, rotated_dims: int) -> Rows:
    """Row ranges of the rotated query dimensions; adjoining ranges are joined."""
    head_dim = geometry.head_dim
    if query.arrangement == "shared":
        return ((0, rotated_dims),)
    stride = 3 * head_dim if query.arrangement == "interleaved-qkv" else head_dim
    if stride == rotated_dims:
        return ((0, geometry.heads * head_dim),)
    return tuple((head * stride, head * stride + rotated_dims) for head in range(geometry.heads))


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
