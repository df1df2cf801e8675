"""Two rotations in one batch, token by token: LongRoPE2's mixed windows (2502.20082, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ctxforge.verification.swap import TableValues

Choose = Callable[["NDArray[Any] | None"], None]


@contextmanager
def two_rotations(model: Any, original: Sequence[TableValues]) -> Iterator[Choose]:
    """Inside, `model` rotates tokens with its own (the target's) table or with `original`, as it is told before a pass.

        with two_rotations(model, source_tables) as choose:
            choose(batch.extended)
            loss = ...  # forward and backward

    The choice holds until the next one; None is the model's own table for all. cos and sin [B, T, d] are computed once
    a pass, above the layers, so recomputing layers in the backward pass keeps them.

    Args:
        model: a model of transformers with the target's rotation in its rotary modules, or one wrapped by peft.
        original: the source's own tables, all of them: frequencies and temperatures.

    Raises:
        UnsupportedError: no rotary module that holds these tables, a rotation that depends on the length, or a pass
            whose rotary module is not given hidden states of the chosen shape.
    """
    import torch

    from ctxforge.verification.onepass import length_dependent
    from ctxforge.verification.swap import swapped

    if length_dependent(model.config):
        raise UnsupportedError(
            "this model's rotation depends on the length of a batch, so it cannot differ by text",
            "convert it with one list of factors",
        )
    rotaries = [module for module in model.modules() if _is_rotary(module)]
    if not rotaries:
        raise UnsupportedError(f"{type(model).__name__} has no rotary module", "train with one rotation")
    chosen: list[torch.Tensor | None] = [None]

    def select(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        extended = chosen[0]
        if extended is None or bool(extended.all()):
            return output
        with swapped(module, original):
            plain = module.forward(*args, **kwargs)
        if output[0].shape[:2] != extended.shape:
            raise UnsupportedError(
                f"rotations chosen for {tuple(extended.shape)} tokens, {tuple(output[0].shape[:2])} came",
                "call choose(batch.extended) before each pass",
            )
        mark = extended.to(output[0].device)[:, :, None]
        return tuple(torch.where(mark, ours, theirs) for ours, theirs in zip(output, plain, strict=True))

    def choose(extended: NDArray[Any] | None) -> None:
        chosen[0] = None if extended is None else torch.tensor(extended, dtype=torch.bool)

    handles = []
    try:
        for rotary in rotaries:
            with swapped(rotary, original):
                pass  # finds out now whether the tables fit
            handles.append(rotary.register_forward_hook(select, with_kwargs=True))
        yield choose
    finally:
        for handle in handles:
            handle.remove()


def _is_rotary(module: Any) -> bool:
    import torch

    return any(
        name.endswith("inv_freq") and isinstance(value, torch.Tensor)
        for name, value in module.named_buffers(recurse=False)
    )
