"""mlx-lm.

Read in the released 0.32.2: mlx_lm/models/rope_utils.py (initialize_rope) and the model files. Each model file has a
ModelArgs of its own and reads config.json by key, so what counts is which keys that file names: most know top-level
`rope_theta` and `rope_scaling` and nothing of `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ctxforge.engines import formulas
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import PROPORTIONAL, context_specs, type_of
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY

_YARN = YarnKeys(mscale="each")


@dataclass(frozen=True)
class ModelFile:
    """How one file under mlx_lm/models reads its rope keys.

    Attributes:
        scaling: `full`: hands rope_scaling to initialize_rope; `ignores`: a plain table whatever it says; `linear`:
            refuses another type than linear, and `linear-ignored`: then doesn't apply that either; `lists`: Phi-3's.
        base_key: its key for the base.
        default_base: what it takes without one; None where it refuses then.
        modern: it falls back to `rope_parameters`.
    """

    scaling: Literal["full", "ignores", "linear", "linear-ignored", "lists"] = "full"
    base_key: str = "rope_theta"
    default_base: float | None = 10000.0
    modern: bool = False


_NEEDED = ModelFile(default_base=None)
_PLAIN = ModelFile("ignores")
_PLAIN_NEEDED = ModelFile("ignores", default_base=None)
FILES: dict[str, ModelFile] = {
    "afmoe": ModelFile(),
    "apertus": _NEEDED,
    "bitnet": ModelFile(),
    "cohere": ModelFile("ignores", default_base=8_000_000.0),
    "cohere2": ModelFile("ignores", default_base=50_000.0),
    "dots1": _NEEDED,
    "ernie4_5": _PLAIN_NEEDED,
    "exaone4": _NEEDED,
    "gemma": _PLAIN,
    "gemma2": _PLAIN,
    "gemma3": ModelFile(default_base=1_000_000.0),
    "gemma3_text": ModelFile(default_base=1_000_000.0),
    "glm": _PLAIN,
    "glm4": _PLAIN_NEEDED,
    "glm4_moe": _PLAIN_NEEDED,
    "gpt_neox": ModelFile("ignores", "rotary_emb_base", None),
    "gpt_oss": ModelFile(default_base=150_000.0),
    "granite": _NEEDED,
    "granitemoe": _NEEDED,
    "helium": _PLAIN_NEEDED,
    "internlm3": ModelFile(),
    "llama": ModelFile(),
    "mimo": ModelFile(),
    "mistral": ModelFile(),
    "mixtral": ModelFile("ignores", default_base=1_000_000.0),
    "nemotron": ModelFile("linear"),
    "olmo": _PLAIN,
    "olmo2": ModelFile(),
    "olmo3": _NEEDED,
    "olmoe": ModelFile(),
    "phi": _PLAIN,
    "phi3": ModelFile("lists"),
    "qwen2": ModelFile(default_base=1_000_000.0),
    "qwen2_moe": ModelFile("linear-ignored", default_base=1_000_000.0),
    "qwen3": ModelFile(default_base=None, modern=True),
    "qwen3_moe": _PLAIN_NEEDED,
    "qwen3_next": _NEEDED,
    "seed_oss": ModelFile(),
    "smollm3": ModelFile(),
    "stablelm": _PLAIN_NEEDED,
    "starcoder2": ModelFile("ignores", default_base=100_000.0),
}
# Model files whose rope handling was not read, and those without RoPE.
OTHERS = (
    "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "exaone", "exaone_moe", "falcon_h1", "gemma3n", "gemma4",
    "gemma4_text", "glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gptj", "granitemoehybrid",
    "hunyuan_v1_dense", "jamba", "laguna", "lfm2", "lfm2_moe", "llama4", "llama4_text", "longcat_flash", "mamba",
    "mamba2", "mellum", "mimo_v2_flash", "minicpm", "minicpm3", "minimax", "minimax_m2", "ministral3", "mistral3",
    "nanochat", "nemotron_h", "olmo_hybrid", "phimoe", "qwen3_5", "qwen3_5_moe", "recurrent_gemma", "solar_open",
)  # fmt: skip


def read(context: Context) -> Reading:
    """0.32.2."""
    file = FILES.get(context.model_type)
    if file is None:
        if context.model_type in OTHERS:
            return Reading(doubt=f"how mlx_lm/models/{context.model_type}.py reads its rope keys was not looked up")
        return Reading(refusal=f"ValueError: model type {context.model_type} not supported")
    values, base, refusal = _keys(context, file)
    if refusal is not None or base is None:
        return Reading(refusal=refusal)
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in context_specs(context, "transformers 4").items():
        if layer_type == "sliding_attention":
            tables[layer_type] = formulas.plain(spec)
            continue
        spec = replace(spec, values=values, base=base, rope_type=_type(values), original=_original(spec, values))
        refusal = _refusal(spec, file)
        if refusal is not None:
            return Reading(refusal=refusal)
        tables[layer_type] = _table(context, spec, file)
        remarks += _remarks(context, spec, tables[layer_type], file)
    return Reading(tables, remarks=tuple(remarks))


def _keys(context: Context, file: ModelFile) -> tuple[Mapping[str, Any], float | None, str | None]:
    """The dict and the base that the model file finds."""
    inner = context.inner
    legacy, modern = fields.table(inner, "rope_scaling"), fields.table(inner, "rope_parameters")
    values = legacy if legacy is not None or not file.modern else modern
    default = file.default_base
    if file.modern and modern is not None and modern.get("rope_theta") is not None:
        default = fields.real(modern, "rope_theta", None)
    if inner.get(file.base_key) is None and default is None:
        return {}, None, f"its model file needs a top-level {file.base_key}"
    return values or {}, fields.real(inner, file.base_key, default), None


def _type(values: Mapping[str, Any]) -> str:
    """`type` before `rope_type`; "su" is not known as longrope here."""
    return str(values.get("type") or values.get("rope_type") or "default")


def _original(spec: Spec, values: Mapping[str, Any]) -> int:
    """rope_utils.py: 4096 for yarn and 8192 for llama3 where the dict names none."""
    default = {"yarn": 4096, "llama3": 8192}.get(type_of(values), spec.original)
    return fields.integer(values, ORIGINAL_KEY, default, high=2**40, low=2)


def _refusal(spec: Spec, file: ModelFile) -> str | None:
    known = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", PROPORTIONAL)
    if file.scaling in ("linear", "linear-ignored") and spec.values and spec.values.get("type") != "linear":
        return "ValueError: its model file takes rope_scaling with type linear only"
    if file.scaling == "lists" and spec.values and not {"type", "long_factor"} <= set(spec.values):
        return "ValueError: rope_scaling must contain type and long_factor"
    if file.scaling != "full":
        return None
    if spec.rope_type not in known:
        return f"ValueError: unsupported RoPE type {spec.rope_type}"
    if spec.rope_type == "longrope" and spec.values.get(ORIGINAL_KEY) is None:
        return f"KeyError: longrope needs {ORIGINAL_KEY} in the dict"
    return None


def _table(context: Context, spec: Spec, file: ModelFile) -> Rotary:
    if file.scaling == "lists" and spec.rope_type in ("longrope", "su"):
        original = fields.integer(context.inner, ORIGINAL_KEY, 4096, high=2**40, low=2)
        longest = fields.integer(context.inner, "max_position_embeddings", 131072, high=2**40)
        temperature = formulas.longrope_temperature(longest / original, original)
        return formulas.lists(spec, temperature, long=True)
    if spec.rope_type == "linear" and file.scaling in ("full", "linear", "lists"):
        return formulas.linear(spec)
    if file.scaling != "full":
        return formulas.plain(spec)
    if spec.rope_type == "llama3":
        return formulas.llama3(spec)
    if spec.rope_type == "dynamic":
        return formulas.dynamic(spec)
    if spec.rope_type == "yarn":
        return _YARN.table(spec)
    if spec.rope_type == "longrope":
        temperature = formulas.longrope_temperature(spec.longest / spec.original, spec.original)
        return formulas.lists(spec, temperature, long=True)
    if spec.rope_type == PROPORTIONAL:
        return formulas.proportional(spec)
    return formulas.plain(spec)


def _remarks(context: Context, spec: Spec, table: Rotary, file: ModelFile) -> tuple[str, ...]:
    found: list[str] = []
    modern = fields.table(context.inner, "rope_parameters")
    if modern is not None and not file.modern and not spec.values:
        found.append("its model file does not read rope_parameters")
    if spec.values and file.scaling in ("ignores", "linear-ignored"):
        found.append("its model file applies no scaling")
    elif spec.rope_type == "yarn":
        found += _YARN.remarks(spec)
    elif spec.rope_type in ("longrope", "su"):
        found += formulas.passed_over(spec, table.temperature, "attention_factor and the mscale keys ignored")
    return tuple(found)


def serve(_context: Context, folder: str, _length: int) -> str:
    """The server's command; it sets no limit on the length."""
    return f"mlx_lm.server --model {folder}"


ENGINES = (
    Engine(
        name="mlx-lm",
        versions="0.32.2",
        source="ml-explore/mlx-lm@v0.32.2:mlx_lm/models/rope_utils.py",
        read=read,
        serve=serve,
        code="ValueError: model type not supported",
        runs=("mlx-lm", "mlx-lm 0.32."),
    ),
)
