"""LongCE: a token counts as much as far context helps to predict it (arXiv 2410.23771, section 4).

weight = min(exp(loss with a short context - loss with the full one), ceiling), and 1 for tokens that have no more than
a short context before them. As in the authors' code (PKU-ML/LongPPL 1decd2a, finetune/finetune.py `loss_weight`) the
loss is divided by the number of tokens, not by the sum of weights; weights are constants to the gradient; a short
window restarts at position 0; its first scored token has `context` tokens before it and its last
`context + refresh - 1`.

The full losses come from the training pass itself (`LongCEWeigher`), or both from the base model, once, kept on disk
(`WeightCache`). Either way the short windows cost (context + refresh) / refresh tokens of forward pass for each token:
5 at the published settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.calibrate.objectives.cross_entropy import IGNORE
from ctxforge.errors import ResourceError, UsageError

# Token ids [B, T] at positions 0 .. T - 1 to the losses of tokens 1 .. T - 1, [B, T - 1].
LossesOf = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LongCESettings:
    """Defaults are the authors'.

    Attributes:
        context: fewest tokens of short context.
        refresh: tokens that share a short context.
        ceiling: largest weight.
        windows: short windows that go through the model at once.
    """

    context: int = 4096
    refresh: int = 1024
    ceiling: float = 5.0
    windows: int = 1

    def __post_init__(self) -> None:
        if min(self.context, self.refresh, self.windows) < 1 or not self.ceiling > 0:
            raise UsageError(
                f"LongCE can't work with context {self.context}, refresh {self.refresh}, ceiling {self.ceiling} and "
                f"{self.windows} windows",
                "give positive numbers",
            )


def short_losses(
    losses_of: LossesOf, ids: torch.Tensor, settings: LongCESettings, documents: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Loss of each token of a text with a short context, float32 [L]; nan for tokens that have no more than that.

    Args:
        losses_of: a model's losses; no gradient is kept.
        ids: [L].
        settings: see there.
        documents: first token and one past the last of each document in `ids`; a context never reaches into another
            document. None for one.
    """
    found = torch.full((ids.shape[0],), torch.nan, device=ids.device)
    by_length: dict[int, list[tuple[int, int]]] = {}
    for start, end in documents or [(0, ids.shape[0])]:
        for first in range(start + settings.context, end, settings.refresh):
            last = min(first + settings.refresh, end)
            by_length.setdefault(last - first, []).append((first, last))
    with torch.no_grad():
        for size, places in by_length.items():
            for at in range(0, len(places), settings.windows):
                group = places[at : at + settings.windows]
                batch = torch.stack([ids[first - settings.context : last] for first, last in group])
                for (first, last), row in zip(group, losses_of(batch), strict=True):
                    found[first:last] = row[-size:].float()
    return found


def long_ce_weights(short: torch.Tensor, full: torch.Tensor, ceiling: float) -> torch.Tensor:
    """min(exp(short - full), ceiling), and 1 where `short` is nan."""
    return torch.where(short.isnan(), 1.0, (short - full).exp().clamp(max=ceiling))


class LongCEWeigher:
    """Weights from the losses of the training pass: `weights` of `LossModel` and `sliced_cross_entropy`.

    Args:
        short: loss of each token with a short context, [B, L], as `short_losses` gives them, nan for none.
        ceiling: largest weight.
    """

    def __init__(self, short: torch.Tensor, ceiling: float = LongCESettings.ceiling) -> None:
        # Row t predicts token t + 1.
        shifted = F.pad(short[:, 1:], (0, 1), value=torch.nan)
        self.short, self.ceiling = shifted.reshape(-1), ceiling

    def __call__(self, index: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Weights of the rows `index` of the flattened batch, whose losses with the full context are `losses`."""
        return long_ce_weights(self.short[index].to(losses), losses, self.ceiling)


def losses_of(loss_model: Any) -> LossesOf:
    """A `LossModel` as `short_losses` wants it: contiguous positions from 0, every token seen."""

    def compute(batch: torch.Tensor) -> torch.Tensor:
        targets = torch.full_like(batch, IGNORE)
        targets[:, :-1] = batch[:, 1:]
        where = torch.arange(batch.shape[1], device=batch.device).expand_as(batch)
        inputs = {"position_ids": where, "attention_mask": torch.ones_like(batch)}
        found: torch.Tensor = loss_model(batch, targets, 1.0, **inputs).losses[:, :-1]
        return found

    return compute


class WeightCache:
    """Weights of texts under one model and settings, a file each, so that they are computed once.

    Args:
        folder: where the files lie; made when the first is written.
        model: what identifies the model that weighs: a hash of its checkpoint.
        settings: see there.
    """

    def __init__(self, folder: Path, model: str, settings: LongCESettings) -> None:
        self.folder = folder
        self.settings = settings
        chosen = {key: value for key, value in asdict(settings).items() if key != "windows"}
        self._key = json.dumps([model, chosen], sort_keys=True).encode()

    def weights(
        self, ids: torch.Tensor, losses_of: LossesOf, documents: Sequence[tuple[int, int]] | None = None
    ) -> torch.Tensor:
        """Weight of each token of a text, float32 [L] on the CPU: from disk, or computed and written.

        Args:
            ids: [L].
            losses_of: the weighing model's losses.
            documents: as in `short_losses`; each document's full context is the document.

        Raises:
            ResourceError: the weights can't be written.
        """
        parts = list(documents or [(0, ids.shape[0])])
        path = self.folder / f"{self._name(ids, parts)}.npy"
        known = self._read(path, ids.shape[0])
        if known is not None:
            return known
        short = short_losses(losses_of, ids, self.settings, parts)
        full = torch.full_like(short, torch.nan)
        for start, end in parts:
            if end - start > self.settings.context:
                with torch.no_grad():
                    full[start + 1 : end] = losses_of(ids[None, start:end])[0].float()
        found = long_ce_weights(short, full, self.settings.ceiling).cpu()
        self._write(path, found)
        return found

    def _name(self, ids: torch.Tensor, documents: Sequence[tuple[int, int]]) -> str:
        import numpy as np

        digest = hashlib.sha256(self._key)
        digest.update(np.array(documents, dtype="<i8").tobytes())
        digest.update(ids.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def _read(self, path: Path, length: int) -> torch.Tensor | None:
        """The weights in a file; None where there is none, or where it is damaged and must be computed anew."""
        import numpy as np

        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return torch.from_numpy(found) if found.shape == (length,) and found.dtype == np.float32 else None

    def _write(self, path: Path, found: torch.Tensor) -> None:
        import os

        import numpy as np

        # Written aside and renamed, so that a killed run leaves no half file under the name.
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                np.save(file, found.numpy(), allow_pickle=False)
            aside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise ResourceError(
                f"the LongCE weights can't be written to {self.folder}: {error.strerror}",
                "make room there, or give another folder",
            ) from None
