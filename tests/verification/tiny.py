"""Tiny random models whose attention is sharp, a byte tokenizer, and a text: enough to check arithmetic against."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 300
# A wide initialisation: with the usual 0.02 a random model attends almost evenly, and wrong positions hardly show.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# transformers' dynamic NTK takes max_position_embeddings for the trained length: `tiny` sets it to 64.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 160,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
}


def tiny(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(seed)
    if kind == "gpt_neox":
        changes.pop("num_key_value_heads", None)
    if changes.get("rope_parameters", {}).get("rope_type") == "dynamic":
        changes["max_position_embeddings"] = 64
    config = CONFIG_MAPPING[kind](**{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def byte_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def prose(characters: int, seed: int = 0) -> str:
    """Sentences of made-up words, never the same twice."""
    import random

    rng = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < characters:
        words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 7))) for _ in range(rng.randint(4, 9))]
        sentence = " ".join(words).capitalize() + ". "
        parts.append(sentence)
        size += len(sentence)
    return "".join(parts)[:characters]


def token_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_losses(model: Any, ids: list[int]) -> torch.Tensor:
    """Losses the plain way: whole logits of a bare forward, log-softmax in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
