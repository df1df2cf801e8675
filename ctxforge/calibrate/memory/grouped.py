"""Products of experts without values, in any dtype: torch's own meta kernel takes bfloat16 alone, as GPUs do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class GroupedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `torch.nn.functional.grouped_mm` of tensors on the meta device gives a tensor of the right size.

    A CPU multiplies experts in float32 too, so that a step which runs there must not fail where it is only
    rehearsed (pytorch/pytorch:torch/_meta_registrations.py `_meta_grouped_mm_common`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The size of a grouped product; everything else as it is."""
        given = kwargs or {}
        if func is not torch.ops.aten._grouped_mm.default or not args[0].is_meta:
            return func(*args, **given)
        offsets = args[2] if len(args) > 2 else given.get("offs")
        return args[0].new_empty(_shape(args[0].shape, args[1].shape, offsets), dtype=given.get("out_dtype"))


def _shape(first: torch.Size, second: torch.Size, offsets: torch.Tensor | None) -> tuple[int, ...]:
    """Of a product in which either side has its groups stacked [G, ., .] or laid end to end along one side."""
    if len(first) == 3 and len(second) == 3:
        return first[0], first[1], second[2]
    if len(first) == 3:
        return first[1], second[1]
    if len(second) == 3:
        return first[0], second[2]
    assert offsets is not None
    return offsets.shape[0], first[0], second[1]
