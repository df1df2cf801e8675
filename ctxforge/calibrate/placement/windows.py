"""How far the layers of a loaded model see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctxforge.calibrate.placement.batch import Batch

FULL, WINDOWED = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Sight:
    """The kinds of layers of a model, as transformers' config names them.

    Attributes:
        windows: for each kind, how many tokens a query sees, itself included; None for all before it.
        by_kind: whether the model takes a mask for each kind, in a dict, rather than one for all.
        other: kinds that are neither full nor windowed attention: chunked, linear, convolutions, states.
    """

    windows: dict[str, int | None]
    by_kind: bool
    other: tuple[str, ...]

    def narrows(self, batch: Batch) -> bool:
        """Whether a window hides another set of tokens when it counts positions than when it counts tokens.

        transformers counts tokens. Where positions jump, a windowed layer then sees across the jump, at distances that
        it never meets at use.
        """
        return any(
            _narrows(row.positions, row.documents, window)
            for window in self.windows.values()
            if window is not None
            for row in batch.rows
        )


def sight(model: Any) -> Sight:
    """What the config of a loaded transformers model, or of one wrapped by peft, says about its layers."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if not kinds:
        return Sight({FULL if window is None else WINDOWED: window}, by_kind=False, other=())
    known = {kind: window if kind == WINDOWED else None for kind in kinds if kind in (FULL, WINDOWED)}
    return Sight(known, by_kind=len(kinds) > 1, other=tuple(kind for kind in kinds if kind not in known))


def _narrows(positions: Any, documents: Any, window: int) -> bool:
    import numpy as np

    for document in range(int(documents[-1]) + 1):
        where = positions[documents == document]
        at = np.arange(len(where))
        oldest = np.searchsorted(where, where - window, side="right")
        if (oldest != np.maximum(at - window + 1, 0)).any():
            return True
    return False
