"""The identity rotation, handed out as tables that a layer multiplies by without touching memory.

A stock layer computes q * cos + rotate_half(q) * sin whatever the tables hold. With cos 1 and sin 0 that is q, at the
price of several passes over all queries and keys, which a linear attention feels on a long prompt. These tables know
what they hold: a product with ones is the other factor itself, a product with zeros is zeros again, a sum with those is
the other summand. Views keep that knowledge; any other operation sees ordinary tensors with the same numbers, and gives
an ordinary tensor.
"""

from __future__ import annotations

from typing import Any

import torch

# For fewer tokens the passes cost less than the bookkeeping.
_WORTHWHILE = 256
_VIEWS = frozenset({"unsqueeze", "__getitem__", "expand", "to", "repeat_interleave", "contiguous"})


def identity_rotation(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of ones and zeros in the shape [B, T, d] of `cos`."""
    plain = cos.shape[-2] < _WORTHWHILE or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if plain or type(cos) is not torch.Tensor:
        return torch.ones_like(cos), torch.zeros_like(cos)
    return cos.new_ones(()).expand_as(cos).as_subclass(_Ones), cos.new_zeros(()).expand_as(cos).as_subclass(_Zeros)


class _Constant(torch.Tensor):
    """A table of one number."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What an operation gives; see the module."""
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if not kwargs and len(args) == 2 and name in ("mul", "add"):
                known = cls._combine(name, *args)
                if known is not None:
                    return known
            found = func(
                *(_plain(entry) for entry in args), **{k: _plain(entry) for k, entry in (kwargs or {}).items()}
            )
            return found.as_subclass(cls) if name in _VIEWS and isinstance(args[0], cls) else found

    @classmethod
    def _combine(cls, name: str, first: Any, second: Any) -> torch.Tensor | None:
        """The product or sum of a tensor with this table where it needs no arithmetic; None where it does."""
        raise NotImplementedError


class _Ones(_Constant):
    @classmethod
    def _combine(cls, name: str, first: Any, second: Any) -> torch.Tensor | None:
        other = _covering(first, second, cls)
        return other if name == "mul" else None


class _Zeros(_Constant):
    @classmethod
    def _combine(cls, name: str, first: Any, second: Any) -> torch.Tensor | None:
        other = _covering(first, second, cls)
        if other is None or name == "add":
            return other
        return other.new_zeros(()).expand_as(other).as_subclass(cls)


def _covering(first: Any, second: Any, cls: type) -> torch.Tensor | None:
    """The operand that is no such table, where the result would have its shape and dtype; None otherwise."""
    table, other = (first, second) if isinstance(first, cls) else (second, first)
    if type(other) is not torch.Tensor or other.dtype != table.dtype or other.device != table.device:
        return None
    return other if torch.broadcast_shapes(table.shape, other.shape) == other.shape else None


def _plain(entry: Any) -> Any:
    return entry.as_subclass(torch.Tensor) if isinstance(entry, _Constant) else entry
