"""The arguments under which a stock transformers model computes exactly what rows say.

transformers 5 reads any jump in `position_ids` as the start of another text when it is given no mask and no cache,
which is training (`masking_utils.py`, `find_packed_sequence_indices`): PoSE's chunks then do not see each other. With a
mask [B, T] of ones it does not look, and then packed texts do see each other. So rows of one text get a mask of ones,
and rows of several get explicit masks, or the ends of texts where a backend takes those.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxforge.calibrate.placement.backends import Backend, backend_of
from ctxforge.calibrate.placement.batch import PADDING, Batch, collate
from ctxforge.calibrate.placement.layout import Layout
from ctxforge.calibrate.placement.lengths import refuse_mixed_lengths
from ctxforge.calibrate.placement.windows import Sight, sight
from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

MASK_LIMIT = 2**31


def model_inputs(
    rows: Batch | Layout | Sequence[Layout],
    model: Any,
    backend: str | None = None,
    *,
    explicit: bool = False,
    mask_limit: int = MASK_LIMIT,
) -> dict[str, Any]:
    """Keyword arguments for `model(**arguments)`, on the model's device. Labels are not among them: see `next_tokens`.

    What each backend gets:

    - eager, sdpa, flex_attention: a mask [B, T] of ones where each row is one text and no window counts positions other
      than tokens, which lets sdpa run its fast kernel. Else explicit masks [B, 1, T, T], by kind of layer where the
      model has several.
    - flash_attention_2 and its kin: `cu_seq_lens` over the rows laid end to end, and a mask of ones. Windowed layers
      cannot count positions there: rows whose positions jump are refused where that matters.
    - ctxforge's own attention systems and S2-Attn: the padding mask [B, T], or for packed rows none, so that their
      positions' restarts are read.

    Padding is seen by no token before it and has no loss, so it needs no mask.

    Args:
        rows: a batch, or rows to collate with padding id 0.
        model: a causal LM of transformers as it will be called, or one wrapped by peft. Unwrap DDP and FSDP.
        backend: the attention implementation, checked against the model's own; None takes the model's.
        explicit: give explicit masks even where none is needed, if the backend takes them.
        mask_limit: bytes that explicit masks may take.

    Raises:
        UsageError: see `backend_of`.
        UnsupportedError: the model or the backend cannot compute what the rows say.
        ResourceError: the masks would be larger than `mask_limit`.
    """
    import torch

    batch = rows if isinstance(rows, Batch) else collate([rows] if isinstance(rows, Layout) else rows)
    kind, seen = backend_of(model, backend), sight(model)
    _refuse(batch, model, kind, seen)
    refuse_mixed_lengths(batch, model.config)
    device = model.device
    positions = torch.tensor(batch.positions, device=device)
    if positions.is_floating_point():
        positions = positions.float()
    found: dict[str, Any] = {
        "input_ids": torch.tensor(batch.ids, device=device),
        "position_ids": positions,
        "attention_mask": torch.ones(batch.ids.shape, dtype=torch.long, device=device),
        "use_cache": False,
    }
    if kind.explicit and (explicit or batch.isolated or seen.narrows(batch)):
        found["attention_mask"] = _masks(batch, model, kind, seen, mask_limit, explicit=explicit)
    elif kind is Backend.FLASH and not (batch.contiguous and not batch.isolated):
        found |= _ends(batch, device)
    elif kind is Backend.RESTARTS:
        tokens = torch.tensor(batch.documents != PADDING, dtype=torch.long, device=device)
        found["attention_mask"] = None if batch.isolated else tokens
    return found


def _masks(batch: Batch, model: Any, kind: Backend, seen: Sight, limit: int, *, explicit: bool) -> Any:
    """One explicit mask, or one for each kind of layer."""
    import torch

    from ctxforge.calibrate.placement.masks import additive, block_mask, check_size, visible

    dtype = model.get_input_embeddings().weight.dtype
    rows, length = batch.ids.shape
    if kind is not Backend.FLEX:
        entry = 1 if kind is Backend.SDPA else 1 + torch.finfo(dtype).bits // 8
        check_size(rows, length, len(seen.windows), entry, limit)
    documents = torch.tensor(batch.documents, device=model.device)
    positions = torch.tensor(batch.positions, device=model.device)

    def mask(window: int | None) -> Any:
        if window is None and kind is Backend.SDPA and seen.by_kind and not batch.isolated and not explicit:
            return None  # plainly causal: the fast kernel
        if kind is Backend.FLEX:
            return block_mask(documents, positions, window)
        who = visible(documents, positions, window)
        return who if kind is Backend.SDPA else additive(who, dtype)

    masks = {name: mask(window) for name, window in seen.windows.items()}
    return masks if seen.by_kind else next(iter(masks.values()))


def _ends(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Where texts end when the rows are laid end to end, as variable-length flash attention takes it."""
    import torch

    starts = np.ones(batch.documents.shape, dtype=bool)
    starts[:, 1:] = np.diff(batch.documents, axis=1) != 0
    ends = np.append(np.flatnonzero(starts.ravel()), starts.size)
    cumulative = torch.tensor(ends, dtype=torch.int32, device=device)
    longest = int(np.diff(ends).max())
    return {
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _refuse(batch: Batch, model: Any, kind: Backend, seen: Sight) -> None:
    name = type(model).__name__
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        raise UnsupportedError(f"{name} takes no position_ids", "train it on whole texts at their own positions")
    if seen.other and batch.isolated:
        raise UnsupportedError(
            f"{name} has layers of kind {', '.join(seen.other)}, which carry one packed text into the next",
            "give one document a row",
        )
    if "chunked_attention" in seen.other and not batch.contiguous:
        raise UnsupportedError(f"{name} attends in chunks of tokens, whatever their positions", "train it full length")
    if kind in (Backend.FLASH, Backend.RESTARTS) and seen.narrows(batch):
        raise UnsupportedError(
            f"{name} has layers with a window, which {kind.value} attention counts in tokens and not in positions",
            "use sdpa or eager attention for rows with skips, or train full length",
        )
    if kind.explicit and seen.other and seen.narrows(batch):
        raise UnsupportedError(
            f"{name} mixes windows with layers of kind {', '.join(seen.other)}", "train it full length"
        )
    if kind is Backend.RESTARTS and batch.isolated and not batch.contiguous:
        raise UnsupportedError(
            "packed texts with skips: these attention systems take every jump for a new text", "give one text a row"
        )
    if kind is Backend.RESTARTS and batch.positions.dtype.kind == "f":
        raise UnsupportedError("ctxforge's attention systems take whole positions", "use PoSE, or train full length")
