"""Text Generation Inference, in maintenance since 2025.

Read at 3.3.6-dev (db931fc): server/text_generation_server/layers/rotary.py (PositionRotaryEmbedding.static, which every
RoPE model class calls), the model classes, and launcher/src/main.rs. It pins transformers 4.51.3, whose config classes
know `rope_scaling` and `rope_theta` only.
"""

from __future__ import annotations

from dataclasses import replace

from ctxforge.engines import formulas
from ctxforge.engines.classes import kind_of
from ctxforge.engines.readers import transformers4
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import context_specs
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY, legacy_refusal

_YARN = YarnKeys(mscale="each", betas=False)
_FOLLOWS = "keeps the NTK table of the longest request so far for every later one"


def read(context: Context) -> Reading:
    """3.3."""
    if kind_of("tgi", context.model_type) is None:
        if kind_of("transformers 4.51", context.model_type) is None:
            return Reading(refusal=f"neither it nor transformers 4.51 has {context.model_type}")
        found = transformers4.read_middle(context)
        return replace(found, notes=("falls back to transformers 4.51's own model code",))
    refused = legacy_refusal(context.inner, context.model_type)
    if refused is not None:
        return Reading(refusal=f"transformers 4.51 does not admit the rope type {refused} for {context.model_type}")
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in context_specs(context, "transformers 4").items():
        if layer_type == "sliding_attention":
            tables[layer_type] = formulas.plain(spec)
            continue
        refusal = _refusal(context, spec)
        if refusal is not None:
            return Reading(refusal=refusal)
        tables[layer_type] = _table(context, spec)
        remarks += _remarks(spec, tables[layer_type])
    return Reading(tables, remarks=tuple(remarks))


def _refusal(context: Context, spec: Spec) -> str | None:
    if spec.rope_type not in ("default", "linear", "dynamic", "yarn", "llama3", "longrope"):
        return f"NotImplementedError: rope scaling type {spec.rope_type}"
    if spec.rope_type == "longrope" and _top_level(context) is None:
        return f"AttributeError: longrope needs a top-level {ORIGINAL_KEY}"
    if spec.rope_type == "yarn" and spec.values.get(ORIGINAL_KEY) is None:
        return f"KeyError: yarn needs {ORIGINAL_KEY}"
    return None


def _top_level(context: Context) -> int | None:
    assert context.architecture is not None
    if context.inner.get(ORIGINAL_KEY) is None:
        return context.architecture.default_original_length
    return fields.integer(context.inner, ORIGINAL_KEY, None, high=2**40, low=2)


def _table(context: Context, spec: Spec) -> Rotary:
    if spec.rope_type == "llama3":
        return formulas.llama3(spec)
    if spec.rope_type == "yarn":
        return _YARN.table(spec)
    if spec.rope_type == "dynamic":
        return replace(formulas.dynamic(spec), follows=_FOLLOWS)
    if spec.rope_type == "longrope":
        return _longrope(spec, _top_level(context) or spec.original)
    return formulas.plain(spec)


def _longrope(spec: Spec, original: int) -> Rotary:
    """The short list for positions below the original length, the long list from there on, in one table.

    With both mscale keys the *angles* are multiplied by them, instead of cos and sin.
    """
    short, long = spec.values.get("short_mscale"), spec.values.get("long_mscale")
    if short is None or long is None:
        temperature = formulas.longrope_temperature(spec.longest / original, original)
        table = formulas.lists(spec, temperature, long=True, switches=True)
        follows = "the short list below the original length and the long list from there on" if table.follows else ""
        return replace(table, follows=follows)
    table = formulas.lists(spec, 1.0, long=True)
    turned = tuple(found * fields.real(spec.values, "long_mscale", None) for found in table.frequencies)
    return replace(table, frequencies=turned)


def _remarks(spec: Spec, table: Rotary) -> tuple[str, ...]:
    if spec.rope_type == "yarn":
        return _YARN.remarks(spec)
    if spec.rope_type == "linear":
        return ("linear is accepted and not applied",)
    if spec.rope_type == "longrope":
        if spec.values.get("short_mscale") is not None and spec.values.get("long_mscale") is not None:
            return ("short_mscale and long_mscale multiply the angles",)
        return formulas.passed_over(spec, table.temperature, "attention_factor ignored")
    return ()


def serve(_context: Context, folder: str, length: int) -> str:
    """The container; the last token of the length is the first that it generates."""
    return (
        f"docker run --gpus all --shm-size 1g -p 8080:80 -v $(realpath {folder}):/model"
        f" ghcr.io/huggingface/text-generation-inference:3.3.5 --model-id /model"
        f" --max-total-tokens {length} --max-input-tokens {length - 1}"
    )


ENGINES = (
    Engine(
        name="tgi",
        versions="3.3",
        source="huggingface/text-generation-inference@db931fc:server/text_generation_server/layers/rotary.py",
        read=read,
        serve=serve,
        classes="tgi",
        by_model_type=True,
        fallback="transformers",
        code="the code in the checkpoint needs transformers 5.12, and it pins 4.51",
    ),
)
