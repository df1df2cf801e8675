"""transformers, 4 or 5: float32, SDPA, one full forward pass. Also tokenises, and computes the reference readings.

A reading is a set of rotary tables {layer type or "": [frequencies in radians per token, temperature]} that replaces
what the model computed from its config; `readings` in the request maps names to such sets.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from protocol import Answer, Request, serve


def work(request: Request) -> Answer:
    """Log-probabilities under the config as transformers reads it, and under each reading asked for."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    facts: dict[str, Any] = {}
    ids = request.get("ids")
    if ids is None:
        ids = _tokenize(request, facts)
    major = int(transformers.__version__.split(".")[0])
    model = AutoModelForCausalLM.from_pretrained(
        request["folder"],
        local_files_only=True,
        trust_remote_code=False,
        **{"dtype" if major >= 5 else "torch_dtype": torch.float32},
    ).eval()
    tokens = torch.tensor([ids])
    readings = {}
    for name, tables in (request.get("readings") or {}).items():
        with _set_tables(model, tables) as found:
            if found:
                readings[name] = _logprobs(model, tokens)
    return {
        "version": f"transformers {transformers.__version__}",
        "ids": ids,
        "positions": list(range(1, len(ids))),
        "logprobs": _logprobs(model, tokens),
        "readings": readings,
        "facts": facts,
    }


def _tokenize(request: Request, facts: dict[str, Any]) -> list[int]:
    from transformers import AutoConfig, AutoTokenizer

    folder, text, count = request["folder"], request["text"], request["tokens"]
    size = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size
    ids: list[int] = []
    with contextlib.suppress(Exception):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        ids = [int(i) for i in tokenizer(text[: 24 * count + 1000], verbose=False)["input_ids"]]
    # Some classes make a tokenizer without a vocabulary where its files are missing.
    if len(ids) < 2 or max(ids) >= size:
        facts["tokens"] = "no usable tokenizer: the text's bytes, modulo the vocabulary's size, stand for tokens"
        ids = [byte % size for byte in text.encode()]
    return ids[:count]


def _logprobs(model: Any, tokens: Any) -> list[float]:
    """Natural logarithms, float32; the softmax runs over 256 rows at a time, to keep memory down."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False, output_hidden_states=False).logits[0]
        parts = [
            rows.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
            for rows, labels in zip(logits[:-1].split(256), tokens[0, 1:].split(256), strict=True)
        ]
    return [float(value) for value in itertools.chain.from_iterable(parts)]


@contextlib.contextmanager
def _set_tables(model: Any, tables: dict[str, Any]) -> Any:
    """Replace every rotary table for the time of the block; yields how many were replaced (0: none that we know)."""
    import torch

    undo = []
    for module in list(model.modules()):
        for layer_type, (frequencies, temperature) in tables.items():
            prefix = f"{layer_type}_" if layer_type else ""
            buffer = getattr(module, f"{prefix}inv_freq", None)
            if buffer is None or len(buffer) != len(frequencies) or not hasattr(module, f"{prefix}attention_scaling"):
                continue
            before = (buffer.clone(), getattr(module, f"{prefix}attention_scaling"), getattr(module, "rope_type", None))
            undo.append((module, prefix, *before))
            buffer.copy_(torch.tensor(frequencies, dtype=torch.float64))
            setattr(module, f"{prefix}attention_scaling", temperature)
            # Otherwise longrope and dynamic recompute their table at every forward.
            if isinstance(module.rope_type, dict):
                module.rope_type = {**module.rope_type, layer_type: "default"}
            else:
                module.rope_type = "default"
    try:
        yield len(undo)
    finally:
        for module, prefix, buffer, scaling, rope_type in reversed(undo):
            getattr(module, f"{prefix}inv_freq").copy_(buffer)
            setattr(module, f"{prefix}attention_scaling", scaling)
            module.rope_type = rope_type


if __name__ == "__main__":
    serve(work)
