"""vLLM (any build): float32, eager, prompt log-probabilities of one request.

The served length is the one that vLLM derives from the config by itself, as `vllm serve DIR` would, and is reported;
only where a cache of that length would not fit `cache_gib` is a shorter one asked for.
"""

from __future__ import annotations

import os

from protocol import Answer, Request, serve


def work(request: Request) -> Answer:
    """Log-probabilities of every token but the first."""
    gib = float(request.get("cache_gib") or 2)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(gib))))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import vllm
    from vllm import LLM, SamplingParams

    ids = request["ids"]
    options = {
        "model": request["folder"],
        "dtype": "float32",
        "enforce_eager": True,
        "trust_remote_code": False,
        "skip_tokenizer_init": True,
        "seed": 0,
        "max_model_len": request.get("max_model_len"),
    }
    facts = {}
    try:
        llm = LLM(**options)
    except ValueError as error:
        if "KV cache" not in str(error):
            raise
        options["max_model_len"] = len(ids) + 16
        facts["length"] = f"run with --max-model-len {len(ids) + 16}: the whole length's cache does not fit {gib:g} GiB"
        llm = LLM(**options)
    facts["max_model_len"] = llm.llm_engine.model_config.max_model_len
    parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    answer = llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)[0]
    logprobs = [answer.prompt_logprobs[k][ids[k]].logprob for k in range(1, len(ids))]
    return {
        "version": f"vllm {vllm.__version__}",
        "positions": list(range(1, len(ids))),
        "logprobs": [float(value) for value in logprobs],
        "facts": facts,
    }


if __name__ == "__main__":
    serve(work)
