"""One forward over a whole window without a KV cache: the loss of every token in it.

Without a cache only one layer's activations live at a time, and one pass over L tokens gives the losses of every
shorter context as well, since a causal model's prediction at position p does not depend on what follows. That holds
while the model's rotary frequencies do not depend on the length of the input; `prefix_invariant` finds out.

Masks and positions are always given explicitly. transformers reads a jump in `position_ids` as a document boundary
when it is given no mask and no cache, and then isolates the parts without a word (`masking_utils.py`,
`find_packed_sequence_indices`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.verification.head import SlicedHead

Tick = Callable[[int, int], None]
HEAD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_PROBE_TOKENS = 64


class OnePass:
    """Token losses of a loaded model.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        head_slice: rows of hidden states per slice of the head.

    Attributes:
        head_kind: "sliced" when the head is applied to slices, "full" when this model's head could not be separated
            from its forward and whole logits are taken instead (correct, but [L, V] in memory).
        prefix_invariant: whether one long pass contains the losses of the shorter ones.
    """

    def __init__(self, model: Any, head_slice: int = 256, *, longest: int = 0) -> None:
        self.model = model
        self.head = SlicedHead(model, head_slice)
        self.device: torch.device = model.device
        self.head_kind = "sliced" if self._head_agrees() else "full"
        self.prefix_invariant = not length_dependent(model.config) and self._prefix_holds(longest)
        self.settle()

    def hidden(
        self, ids: Sequence[int], positions: Sequence[int] | None = None, tick: Tick | None = None
    ) -> tuple[torch.Tensor, type[Any]]:
        """Last hidden states [L, d] of `ids`, and the class of the decoder's output."""
        batch = self._batch(ids, positions)
        with torch.no_grad(), _layers_tick(self.head.decoder, tick):
            output = self.head.decoder(**batch)
        return output.last_hidden_state[0], type(output)

    def losses(self, ids: Sequence[int], tick: Tick | None = None) -> torch.Tensor:
        """Loss in nats of every token but the first, float32 [L - 1] on the CPU; entry i belongs to position i + 1."""
        labels = torch.tensor(ids[1:], device=self.device)
        with torch.no_grad():
            if self.head_kind == "full":
                logits = self.model(**self._batch(ids)).logits[0, :-1]
                return F.cross_entropy(logits.float(), labels, reduction="none").cpu()
            rows, output_class = self.hidden(ids, tick=tick)
            return self.head.losses(rows[:-1], labels, output_class)[0].cpu()

    def settle(self) -> None:
        """Bring a model with state back to its short-context state.

        transformers' dynamic NTK keeps the frequencies of the longest input so far until an input below the trained
        length comes by (`modeling_rope_utils.py`, `dynamic_frequency_update`).
        """
        self.hidden(self._probe(2))

    def _batch(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        tokens = torch.tensor([list(ids)], device=self.device)
        where = torch.arange(len(ids)) if positions is None else torch.tensor(list(positions))
        return {
            "input_ids": tokens,
            "position_ids": where.unsqueeze(0).to(self.device),
            "attention_mask": torch.ones_like(tokens),
            "use_cache": False,
            "return_dict": True,
        }

    def _probe(self, count: int) -> list[int]:
        # Any ids do. The stride spreads them over the vocabulary so that the logits differ from one another.
        size = self.model.get_input_embeddings().weight.shape[0]
        return [(7 + 7919 * i) % size for i in range(count)]

    def _head_agrees(self) -> bool:
        """Whether the sliced head gives the stock forward's losses on a few tokens."""
        if self.head.decoder is self.model:
            return False
        ids = self._probe(_PROBE_TOKENS)
        labels = torch.tensor(ids[1:], device=self.device)
        with torch.no_grad():
            stock = F.cross_entropy(self.model(**self._batch(ids)).logits[0, :-1].float(), labels, reduction="none")
            try:
                rows, output_class = self.hidden(ids)
                ours = self.head.losses(rows[:-1], labels, output_class)[0]
            # An architecture whose forward is built otherwise can fail in any way; whole logits remain correct.
            except (TypeError, AttributeError, ValueError, RuntimeError, KeyError, IndexError):
                return False
        limit = HEAD_TOLERANCE.get(self.model.dtype, 1e-4)
        return bool(ours.shape == stock.shape and (ours - stock).abs().max() <= limit)

    def _prefix_holds(self, longest: int) -> bool:
        """Whether a far last token leaves the losses before it alone: costs 130 tokens, whatever `longest` is."""
        ids = self._probe(_PROBE_TOKENS)
        if longest <= len(ids):
            return True
        # Of one shape, so that the same kernels run: in bfloat16 another tiling alone differs by more than the limit.
        near = self.hidden([*ids, ids[0]])[0][:-1]
        self.hidden(self._probe(2))
        try:
            far = self.hidden([*ids, ids[0]], [*range(len(ids)), longest - 1])[0][:-1]
        except NotImplementedError:  # a model that must see every position: not known, so each length gets its pass
            return False
        scale = near.float().abs().max().clamp_min(1e-6)
        limit = 1e-3 if self.model.dtype == torch.float32 else 2e-2
        return bool((near - far).float().abs().max() <= limit * scale)


def length_dependent(config: Any) -> bool:
    """Whether the config's RoPE depends on the length of the input: dynamic NTK, or LongRoPE with two factor lists."""
    found = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while found:
        entry = found.pop()
        if not isinstance(entry, dict):
            continue
        found.extend(entry.values())
        kind = entry.get("rope_type", entry.get("type"))
        if kind == "dynamic" or (kind == "longrope" and entry.get("short_factor") != entry.get("long_factor")):
            return True
    return False


@contextmanager
def _layers_tick(decoder: Any, tick: Tick | None) -> Iterator[None]:
    """Call `tick(layers done, layers)` as the decoder's layers finish, where they are found under their usual name."""
    layers = getattr(decoder, "layers", None)
    if tick is None or not isinstance(layers, torch.nn.ModuleList):
        yield
        return
    total = len(layers)

    def hook(number: int) -> Callable[..., None]:
        return lambda *_args: tick(number, total)

    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers, 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
