"""Everything that users do to a loaded checkpoint: it computes what it should, or says why not and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, Cache, DynamicCache, StaticCache, pipeline
from transformers.cache_utils import QuantizedLayer

import ctxforge
from tests.attention.battery import ROWS, attach, attachment_of, every_system
from tests.modeling.emitted import difference, remote, stock, tokens, whole

Folders = Callable[..., Path]
OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
# Systems whose cache drops keys or moves them away.
OWN_CACHE = frozenset({"lm-infinite", "streaming-llm", "infllm", "infllm offloading"})
# One of each way to attend: they share the runtime, and what is slow is tried on these.
FAMILIES = ("lm-infinite", "infllm", "self-extend", "longnet", "blockwise-causal")
family = pytest.mark.parametrize("name", FAMILIES)


def generate(model: Any, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    """Greedy unless told otherwise."""
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **{**OPTIONS, **options})
    rows: list[list[int]] = found.tolist()
    return rows


class Exact(QuantizedLayer):
    """A quantised cache's layer whose quantiser loses nothing, so that numbers can be held to those of a plain one."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        del axis
        return tensor.clone()

    def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
        return q_tensor


@every_system
def test_caches_of_a_fixed_length_are_refused(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 40)
    said = "dynamic cache only.*leave cache_implementation out"
    for implementation in ("static", "offloaded_static", "sliding_window"):
        with pytest.raises(NotImplementedError, match=said):
            generate(model, ids, cache_implementation=implementation)
    model.generation_config.cache_implementation = "static"
    with pytest.raises(NotImplementedError, match=said):
        generate(model, ids)
    model.generation_config.cache_implementation = None
    static = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(NotImplementedError, match=said):
        model(input_ids=ids, use_cache=True, cache=static)
    assert generate(model, ids) == generate(model, ids, use_cache=False)  # nothing is left of the attempts


@every_system
def test_other_caches_are_refused(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 40)
    offloaded = DynamicCache(config=model.config)
    offloaded.offloading = True  # as cache_implementation="offloaded" makes it, which asks for a GPU
    two = transformers.EncoderDecoderCache(DynamicCache(), DynamicCache())
    legacy = ((torch.zeros(2, 2, 5, 16),) * 2,) * 3
    for cache, said in ((offloaded, "an offloaded one"), (two, "EncoderDecoderCache"), (legacy, "a tuple")):
        with pytest.raises(NotImplementedError, match=f"dynamic cache only, not with.* {said}.*new DynamicCache"):
            model(input_ids=ids, use_cache=True, cache=cache)


@every_system
def test_quantised_caches(name: str, emitted: Folders) -> None:
    """Beside a quantiser's own error the numbers are those of a plain cache, or the cache is refused."""
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    cache = Cache(layers=[Exact(residual_length=16) for _ in range(3)])
    if name in OWN_CACHE:
        with pytest.raises(NotImplementedError, match="dynamic cache only"):
            generate(model, ids, cache=cache)
        return
    assert generate(model, ids, cache=cache) == generate(model, ids, use_cache=False)
    assert cache.layers[0]._quantized_keys.shape[2] > 60


@every_system
def test_caches_that_users_bring(name: str, emitted: Folders, stock_folder: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    wanted = generate(model, ids, use_cache=False)
    assert generate(model, ids, cache=DynamicCache()) == wanted
    assert generate(model, ids, cache=DynamicCache(config=model.config)) == wanted
    with torch.no_grad():
        plain = stock(stock_folder("llama"))(input_ids=ids, use_cache=True).cache
    with pytest.raises(RuntimeError, match="filled itself, or an empty DynamicCache"):
        generate(model, torch.cat((ids, ids), dim=1), cache=plain)
    other = "rerope" if name != "rerope" else "self-extend"
    with torch.no_grad():
        foreign = remote(emitted(other, "llama"))(input_ids=ids, use_cache=True).cache
    with pytest.raises(RuntimeError, match="filled itself, or an empty DynamicCache"):
        generate(model, torch.cat((ids, ids), dim=1), cache=foreign)


@every_system
def test_a_conversation_goes_on_from_the_returned_cache(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    first = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **OPTIONS)
    longer = torch.cat((first.sequences, tokens(2, 30, 9)), dim=1)
    found = generate(model, longer, cache=first.cache)
    assert found == generate(model, longer, use_cache=False)


@every_system
def test_several_samples_and_prefill_in_chunks(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(generate(model, ids, do_sample=True, num_return_sequences=3, use_cache=use_cache))
    assert found[0] == found[1]
    assert len({tuple(row) for row in found[0]}) == 6
    assert generate(model, ids, prefill_chunk_size=17) == generate(model, ids, use_cache=False)


@every_system
def test_assisted_decoding(name: str, emitted: Folders, stock_folder: Folders) -> None:
    """With a cache that can take tokens back it gives the greedy text; with one that cannot it is refused."""
    model, assistant, ids = remote(emitted(name, "llama")), stock(stock_folder("llama")), tokens(1, 60)
    text = torch.cat((ids, ids), dim=1)  # lookup finds its drafts in it
    ways: tuple[dict[str, Any], ...] = ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant})
    for way in ways:
        if name in OWN_CACHE:
            with pytest.raises((NotImplementedError, ValueError), match=r"crop|take tokens back|evict=false"):
                generate(model, text, **way)
        else:
            assert generate(model, text, **way) == generate(model, text, use_cache=False)
    if name in OWN_CACHE:
        with pytest.raises((NotImplementedError, ValueError), match=r"crop|take tokens back|evict=false"):
            generate(assistant, text, assistant_model=model)
    else:
        assert generate(assistant, text, assistant_model=model) == generate(assistant, text)


@every_system
def test_attention_weights_are_refused(name: str, emitted: Folders) -> None:
    folder = emitted(name, "llama")
    model, ids = remote(folder), tokens(2, 8)
    said = "returns no attention weights: load the checkpoint it was made from with attn_implementation='eager'"
    with pytest.raises(NotImplementedError, match=said):
        model(input_ids=ids, output_attentions=True)
    with pytest.raises(NotImplementedError, match=said):
        generate(model, ids, output_attentions=True, return_dict_in_generate=True)
    with pytest.raises(NotImplementedError, match=said):
        model.config.output_attentions = True
    with pytest.raises(NotImplementedError, match=said):
        remote(folder, output_attentions=True)(input_ids=ids)
    model.config.output_attentions = False
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == 4


@every_system
def test_other_attention_implementations_are_refused(name: str, emitted: Folders) -> None:
    """Those of transformers that the battery does not try, and ways to set one behind the model's back."""
    folder, ids = emitted(name, "llama"), tokens(1, 8)
    model = remote(folder)
    ours = model.config._attn_implementation
    for other in ("flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa", "org/kernel", {"": "sdpa"}):
        with pytest.raises(
            RuntimeError, match=f"would replace this checkpoint's attention.*leave it out, or give '{ours}'"
        ):
            remote(folder, attn_implementation=other)
        with pytest.raises(RuntimeError, match="would replace"):
            model.set_attn_implementation(other)
    assert remote(folder, attn_implementation=ours)(input_ids=ids).logits.isfinite().all()
    model.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="would replace"):
        model(input_ids=ids)
    model = remote(folder)
    with pytest.raises((NotImplementedError, ValueError), match="continuous batching"):
        model.generate_batch([ids[0].tolist()], generation_config=transformers.GenerationConfig(max_new_tokens=2))


@every_system
def test_other_inputs(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    wanted = whole(model, ids)
    with torch.no_grad():
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits
    assert difference(embedded, wanted) < 1e-5
    with pytest.raises(NotImplementedError, match="text positions"):
        model(input_ids=ids, position_ids=torch.arange(60).expand(3, 2, 60))
    with pytest.raises(NotImplementedError, match="causal"):
        model(input_ids=ids, is_causal=False)
    right = torch.ones_like(ids)
    right[1, 40:] = 0
    padded = whole(model, ids, attention_mask=right)
    assert difference(padded[1, :40], whole(model, ids[1:, :40])[0]) < 1e-5


@every_system
def test_auto_classes(name: str, emitted: Folders) -> None:
    folder, ids = emitted(name, "llama"), tokens(2, 60)
    model = remote(folder)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model.get_output_embeddings()(base(input_ids=ids).last_hidden_state)
    assert difference(logits, whole(model, ids)) < 1e-5
    for auto in (transformers.AutoModelForSequenceClassification, transformers.AutoModelForTokenClassification):
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            auto.from_pretrained(folder, trust_remote_code=True)
    mapped = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, device_map="auto", dtype=torch.float32
    )
    assert difference(whole(mapped.eval(), ids), whole(model, ids)) == 0


@every_system
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_is_the_model_loaded_so(name: str, dtype: torch.dtype, emitted: Folders) -> None:
    """Casting rounds the stock rotary table too; positions and tables stay exact all the same."""
    folder, ids = emitted(name, "llama"), tokens(2, 90)
    cast = remote(folder).to(dtype)
    assert difference(whole(cast, ids), whole(remote(folder, dtype=dtype), ids)) == 0
    assert next(value for key, value in cast.named_buffers() if key.endswith("inv_freq")).dtype == dtype


@pytest.mark.parametrize("name", ["lm-infinite", "self-extend"])
def test_compiled_models(name: str, emitted: Folders) -> None:
    """Attention is a break in the graph, so `fullgraph` is torch's to refuse."""
    folder, ids = emitted(name, "llama"), tokens(2, 40)
    wanted = generate(remote(folder), ids, max_new_tokens=5)
    torch._dynamo.reset()
    model = remote(folder)
    model.forward = torch.compile(model.forward, dynamic=True)
    assert generate(model, ids, max_new_tokens=5) == wanted
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(remote(folder), fullgraph=True, backend="eager")(input_ids=ids, use_cache=False)
    torch._dynamo.reset()


@family
@pytest.mark.parametrize("method", ["fp8", "bitnet"])
def test_quantised_sources(name: str, method: str, stock_folder: Folders, tmp_path: Path) -> None:
    """No weight is touched, so the result is the quantised model: held to it where the system changes nothing."""
    source = Path(shutil.copytree(stock_folder("llama"), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    if method == "bitnet":
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        }
    else:
        scheme = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
        config["quantization_config"] = {**scheme, "dequantize": True}  # a CPU has no kernel for it
        weights: dict[str, torch.Tensor] = {}
        for key, weight in load_file(source / "model.safetensors").items():
            weights[key] = weight
            if key.endswith("proj.weight"):
                scale = weight.abs().max() / 448
                weights[key] = (weight / scale).to(torch.float8_e4m3fn)
                weights[f"{key}_scale_inv"] = scale.reshape(1, 1)
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps(config))
    ids = tokens(2, 40)
    quantised = whole(stock(source).double(), ids)  # in float32 noise would flip what is rounded on the way
    assert difference(quantised, whole(stock(stock_folder("llama")).double(), ids)) > 1e-2
    out = attach(source, name, ROWS[name].degenerate, tmp_path / "out")
    assert difference(whole(remote(out).double(), ids), quantised) < 1e-5


@every_system
def test_code_of_two_checkpoints_side_by_side(name: str, emitted: Folders, tmp_path: Path) -> None:
    """Another version of the same code, loaded later, answers for its own models alone."""
    model, ids = remote(emitted(name, "llama")), tokens(2, 60)
    wanted = whole(model, ids)
    other = Path(shutil.copytree(emitted(name, "llama"), tmp_path / "other"))
    runtime = other / "ctxforge_system.py"
    changed = runtime.read_text().replace("return self.attend(module, call)", "return -self.attend(module, call)")
    assert changed != runtime.read_text()
    runtime.write_text(changed)
    assert difference(whole(remote(other), ids), wanted) > 1e-3
    assert difference(whole(model, ids), wanted) == 0
    assert difference(whole(remote(emitted(name, "llama")), ids), wanted) == 0


def test_pipelines(tmp_path: Path) -> None:
    """On the bundled model, whose tokenizer is real: one text and a batch that is padded."""
    folder = ctxforge.extend("bundled", attach="lm-infinite:window=60,sinks=4", to="2x", out=tmp_path / "out").out
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    made = pipeline("text-generation", model=str(folder), trust_remote_code=True, dtype=torch.float32)
    texts = ["Emma Woodhouse, handsome, clever, and rich, " * 3, "She was the youngest of the two daughters"]
    alone = [made(text, **options)[0]["generated_text"] for text in texts]
    together = [found[0]["generated_text"] for found in made(texts, batch_size=2, **options)]
    assert together == alone
    model = remote(folder)
    for text, found in zip(texts, alone, strict=True):
        ids = made.tokenizer(text, return_tensors="pt")["input_ids"]
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert made.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True) == found


def test_every_row_of_the_battery_is_sorted() -> None:
    """A new system is either in `OWN_CACHE` or has a plain cache, and each way to attend is in `FAMILIES`."""
    assert set(ROWS) >= OWN_CACHE
    assert {attachment_of(row) for row in FAMILIES} <= set(map(attachment_of, ROWS))
