"""The output head on a few rows of hidden states at a time, so that no [L, V] matrix ever exists.

The logits of a window of L tokens weigh L · V · 4 bytes in float32 (1.6 GB for 8192 tokens and a vocabulary of 49 152),
and the usual loss makes two more copies. Only the negative log-likelihood of each token is wanted: 4 bytes a token.

The head is the model's *own* forward with its decoder replaced, for the duration of a call, by a function that hands
back the given rows. So whatever the model does between hidden states and logits (Gemma 2's soft cap, Cohere's and
Granite's scaling, and what the next architecture will think of) is done by its own code and not re-implemented here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F


class SlicedHead:
    """Logits and token losses of hidden states, `slice_rows` rows at a time.

    Args:
        model: a causal LM of transformers.
        slice_rows: rows in one slice; memory is a few times slice_rows · V · 4 bytes.
    """

    def __init__(self, model: Any, slice_rows: int = 256) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        self.slice_rows = slice_rows

    def logits(self, rows: torch.Tensor, output_class: type[Any]) -> torch.Tensor:
        """The model's logits [n, V] for hidden states [n, d].

        Args:
            rows: last hidden states, after the decoder's final norm.
            output_class: the class of output that this model's decoder returns.
        """
        batch = rows.unsqueeze(0)
        ids = torch.zeros(batch.shape[:2], dtype=torch.long, device=rows.device)
        with _decoder_returns(self.decoder, output_class(last_hidden_state=batch)):
            output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, return_dict=True)
        logits: torch.Tensor = output.logits[0]
        return logits

    def losses(
        self, rows: torch.Tensor, labels: torch.Tensor, output_class: type[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of `labels` [n] given rows [n, d] in nats, float32 [n], and whether each label is the argmax, bool [n].

        The log-softmax is taken in float32 whatever the model's dtype.
        """
        losses, hits = [], []
        for start in range(0, rows.shape[0], self.slice_rows):
            part = slice(start, start + self.slice_rows)
            logits = self.logits(rows[part], output_class).float()
            losses.append(F.cross_entropy(logits, labels[part], reduction="none"))
            hits.append(logits.argmax(-1) == labels[part])
        return torch.cat(losses), torch.cat(hits)


@contextmanager
def _decoder_returns(decoder: torch.nn.Module, output: Any) -> Iterator[None]:
    """For the time of the block, `decoder(...)` returns `output` without computing anything."""
    # On the instance: a hook installed there by accelerate is put back afterwards.
    previous = decoder.__dict__.get("forward")
    decoder.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if previous is None:
            del decoder.forward
        else:
            decoder.forward = previous
