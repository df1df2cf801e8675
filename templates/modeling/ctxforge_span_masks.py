"""The masks of blocks of queries under a lambda-shaped mask."""

from __future__ import annotations

import torch

from .ctxforge_span import Span


class Masks:
    """The masks of blocks, the last one kept: in the middle of a text each block's is the same."""

    def __init__(self, span: Span, sinks: torch.Tensor | None) -> None:
        self.span, self.sinks = span, sinks
        call = span.call
        self.positions, self.keys = call.query_positions, call.key_positions
        if span.real is None and call.mask is None and self._uniform():
            self.positions, self.keys = self.positions[:1], self.keys[:1]
            self.sinks = None if sinks is None else sinks[:1]
        self._last: tuple[list[torch.Tensor], torch.Tensor] | None = None

    def of(self, queries: slice, keys: slice, past: int) -> torch.Tensor:
        """[B or 1, 1, t, n + s]: which sinks out of their window and which local keys these queries see.

        True where visible; or 0 there and very negative elsewhere, where a kernel takes that.
        """
        call, asked, near = self.span.call, self.positions[:, queries], self.keys[:, keys]
        ordinary = self.span.real is None and call.mask is None
        signs = [asked - asked[:, :1], near - asked[:, :1], asked[:, :1] >= self._settled()]
        if ordinary and self._last is not None and bool(signs[2].all()) and _same(signs, self._last[0]):
            return self._last[1]
        made = self._make(queries, keys, past)
        if call.softcap is None and call.sinks is None:  # a kernel would make this of it, for each block anew
            hidden = torch.finfo(call.value.dtype).min
            made = torch.zeros_like(made, dtype=call.value.dtype).masked_fill_(~made, hidden)
        self._last = (signs, made)
        return made

    def _make(self, queries: slice, keys: slice, past: int) -> torch.Tensor:
        span, device = self.span, self.keys.device
        asked, near, window = self.positions[:, queries], self.keys[:, keys], span.geometry.window
        rows = torch.arange(past + queries.start, past + queries.stop, device=device)[:, None]
        columns = torch.arange(keys.start, keys.stop, device=device)[None, :]
        seen = (asked[:, :, None] - near[:, None, :] < window) & (columns <= rows)
        real, explicit = span.real, span.call.mask
        if explicit is not None and explicit.shape[2] > 1:
            seen = seen & explicit[:, 0, queries, keys]
        elif real is not None:
            seen = seen & real[:, None, keys]
        seen = seen | (columns == rows)  # padding sees itself: a row that sees nothing has no softmax
        if self.sinks is None:
            return seen[:, None]
        positions = self.keys.gather(1, self.sinks)
        far = (asked[:, :, None] - positions[:, None, :] >= window) & (positions < span.geometry.sinks)[:, None]
        far = far & (self.sinks[:, None, :] <= rows)
        if explicit is not None and explicit.shape[2] > 1:
            index = self.sinks[:, None, :].expand(-1, asked.shape[1], -1)
            far = far & explicit[:, 0, queries].expand(index.shape[0], -1, -1).gather(2, index)
        elif real is not None:
            far = far & real.expand(self.sinks.shape[0], -1).gather(1, self.sinks)[:, None]
        return torch.cat((far, seen), dim=2)[:, None]

    def _settled(self) -> int:
        """From this position on every sink is out of the window."""
        return self.span.geometry.window + self.span.geometry.sinks

    def _uniform(self) -> bool:
        return all(bool((part == part[:1]).all()) for part in (self.positions, self.keys))


def _same(found: list[torch.Tensor], before: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, before, strict=True))
