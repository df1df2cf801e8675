"""mlx-lm (CPU or Metal): float32 weights, one full forward pass."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from protocol import Answer, Request, serve


def work(request: Request) -> Answer:
    """Log-probabilities of every token but the first."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    model, _config = load_model(Path(request["folder"]))
    model.update(tree_map(lambda value: value.astype(mx.float32), model.parameters()))
    ids = request["ids"]
    logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(ids[1:])[:, None], axis=-1)[:, 0]
    logprobs = chosen - mx.logsumexp(logits, axis=-1)
    mx.eval(logprobs)
    return {
        "version": f"mlx-lm {importlib.metadata.version('mlx-lm')}",
        "positions": list(range(1, len(ids))),
        "logprobs": [float(value) for value in logprobs.tolist()],
        "facts": {},
    }


if __name__ == "__main__":
    serve(work)
