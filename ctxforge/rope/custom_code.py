"""Rotations that no config key expresses: the modeling files that compute them, and the config that loads them.

The emitted folder gets a modeling file and the runtime it imports, copied verbatim from templates/modeling, and
a config.json that no stock loader takes for the stock model: its model type is `ctxforge_<type>`, which transformers,
vLLM, mlx-lm and the rest do not know, so they refuse it instead of computing something else; with
`trust_remote_code=True` transformers loads our classes. See docs/decisions/0006-own-model-type-for-custom-code.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ctxforge.errors import UnsupportedError
from ctxforge.rope.types import CustomCode, RopeGeometry
from ctxforge.templates_dir import modeling_file

KEY = "ctxforge"
PREFIX = "ctxforge_"
CLASS_PREFIX = "Ctxforge"
RUNTIME = (
    "ctxforge_runtime.py",
    "ctxforge_attention.py",
    "ctxforge_caches.py",
    "ctxforge_identity.py",
    "ctxforge_system.py",
)

# Model types whose attention the runtime takes over, with the prefix of their classes' names in transformers.
# Each is held to its stock model by tests/modeling/test_architectures.py.
SERVED: dict[str, str] = {
    "apertus": "Apertus",
    "apertus1p5_text": "Apertus1p5Text",
    "arcee": "Arcee",
    "aria_text": "AriaText",
    "bitnet": "BitNet",
    "cohere": "Cohere",
    "cwm": "Cwm",
    "diffllama": "DiffLlama",
    "doge": "Doge",
    "dots1": "Dots1",
    "ernie4_5": "Ernie4_5",
    "ernie4_5_moe": "Ernie4_5_Moe",
    "flex_olmo": "FlexOlmo",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "glm": "Glm",
    "glm4": "Glm4",
    "glm4_moe": "Glm4Moe",
    "gpt_neox": "GPTNeoX",
    "gpt_oss": "GptOss",
    "granite": "Granite",
    "granitemoe": "GraniteMoe",
    "granitemoeshared": "GraniteMoeShared",
    "helium": "Helium",
    "hy_v3": "HYV3",
    "hyperclovax": "HyperCLOVAX",
    "jais2": "Jais2",
    "jetmoe": "JetMoe",
    "lfm2": "Lfm2",
    "llama": "Llama",
    "minimax_m2": "MiniMaxM2",
    "ministral": "Ministral",
    "ministral3": "Ministral3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "nemotron": "Nemotron",
    "olmo": "Olmo",
    "olmo2": "Olmo2",
    "olmo_hybrid": "OlmoHybrid",
    "olmoe": "Olmoe",
    "persimmon": "Persimmon",
    "phi": "Phi",
    "phi3": "Phi3",
    "phimoe": "Phimoe",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2Moe",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "qwen3_next": "Qwen3Next",
    "seed_oss": "SeedOss",
    "smollm3": "SmolLM3",
    "solar_open": "SolarOpen",
    "stablelm": "StableLm",
    "starcoder2": "Starcoder2",
    "vaultgemma": "VaultGemma",
}


@dataclass(frozen=True)
class System:
    """A file of templates/modeling.

    Attributes:
        file: its name.
        attention: the attention implementation that it registers.
        kind: what it adds to a model: a rotation that no config expresses, or an attention system.
        needs: further files that it imports, besides the runtime.
    """

    file: str
    attention: str
    kind: Literal["rotation", "attachment"] = "rotation"
    needs: tuple[str, ...] = ()


_STORE = ("ctxforge_key_store.py",)
_STEPPED = ("ctxforge_stepped.py", *_STORE)

_REMAPPING = ("ctxforge_remapping.py", "ctxforge_score_sets.py", "ctxforge_key_store.py")
_PIECES = ("ctxforge_pieces.py", "ctxforge_kernels.py", "ctxforge_span.py")

SYSTEMS: dict[str, System] = {
    "xpos": System("modeling_xpos.py", "ctxforge_xpos", needs=_STORE),
    "dynamic_yarn": System("modeling_dynamic_yarn.py", "ctxforge_dynamic_yarn", needs=_STEPPED),
    "dynamic_ntk_exact": System("modeling_dynamic_ntk.py", "ctxforge_dynamic_ntk", needs=_STEPPED),
    "clex_dynamic": System("modeling_clex.py", "ctxforge_clex", needs=_STEPPED),
    "alibi": System("modeling_alibi.py", "ctxforge_alibi"),
    "blockwise_causal": System("modeling_blockwise_causal.py", "ctxforge_blockwise_causal", "attachment", _PIECES),
    "lambda_window": System(
        "modeling_lambda_window.py",
        "ctxforge_lambda_window",
        "attachment",
        (
            "ctxforge_bands.py",
            "ctxforge_kernels.py",
            "ctxforge_lambda.py",
            "ctxforge_span.py",
            "ctxforge_span_masks.py",
            "ctxforge_window_cache.py",
        ),
    ),
    "infllm": System(
        "modeling_infllm.py",
        "ctxforge_infllm",
        "attachment",
        (
            "ctxforge_block_attention.py",
            "ctxforge_block_cache.py",
            "ctxforge_block_memory.py",
            "ctxforge_block_near.py",
            "ctxforge_block_shares.py",
            "ctxforge_key_store.py",
            "ctxforge_score_sets.py",
            "ctxforge_span.py",
        ),
    ),
    "longnet": System("modeling_longnet.py", "ctxforge_longnet", "attachment", _PIECES),
    "self_extend": System("modeling_self_extend.py", "ctxforge_self_extend", "attachment", _REMAPPING),
    "rerope": System("modeling_rerope.py", "ctxforge_rerope", "attachment", _REMAPPING),
    "dual_chunk": System("modeling_dual_chunk.py", "ctxforge_dual_chunk", "attachment", _REMAPPING),
    "string": System("modeling_string_shift.py", "ctxforge_string", "attachment", _REMAPPING),
}


def attach(
    code: CustomCode, config: Mapping[str, Any], geometry: RopeGeometry
) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
    """The config, files and notes of a checkpoint that runs `code`.

    Args:
        code: the system and its parameters.
        config: the whole config.json, its rope keys already as the static part of the plan wants them.
        geometry: the source's.

    Raises:
        UnsupportedError: an architecture that the runtime can't take over, or one with several rotary tables.
    """
    if geometry.model_type not in SERVED or geometry.config_path:
        raise UnsupportedError(
            f"{code.name.replace('_', '-')} needs custom modeling code, which does not serve {geometry.model_type}",
            f"it serves: {', '.join(sorted(SERVED))}; or choose a static method (ctxforge methods)",
        )
    if len(geometry.groups) != 1:
        raise UnsupportedError(
            f"{code.name.replace('_', '-')} serves one rotary table, this model has {len(geometry.groups)}",
            "choose a static method (ctxforge methods)",
        )
    entry = {"layout": geometry.layout, "unrotated_layers": list(geometry.unrotated_layers)}
    return wrap(code, config, geometry.model_type, SERVED[geometry.model_type], entry)


def wrap(
    code: CustomCode, config: Mapping[str, Any], model_type: str, class_prefix: str, entry: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
    """`attach` for any model: the keys that make transformers load our classes, and the files.

    Args:
        code: the system and its parameters.
        config: the whole config.json.
        model_type: the stock type.
        class_prefix: of the stock classes' names.
        entry: what the modeling file must know besides the parameters.

    Raises:
        UnsupportedError: the checkpoint is not a causal language model's.
    """
    system = SYSTEMS[code.name]
    for name in config.get("architectures") or ():
        if not str(name).lower().endswith(("forcausallm", "lmheadmodel")):
            raise UnsupportedError(
                f"custom modeling code serves causal language models, this checkpoint holds a {name}",
                "convert the language model's own checkpoint",
            )
    module = system.file.removesuffix(".py")
    classes = {
        "AutoConfig": f"{module}.{CLASS_PREFIX}{class_prefix}Config",
        "AutoModel": f"{module}.{CLASS_PREFIX}{class_prefix}Model",
        "AutoModelForCausalLM": f"{module}.{CLASS_PREFIX}{class_prefix}ForCausalLM",
    }
    emitted = {
        **config,
        "model_type": PREFIX + model_type,
        "architectures": [f"{CLASS_PREFIX}{class_prefix}ForCausalLM"],
        "auto_map": classes,
        "attn_implementation": system.attention,
        KEY: {
            "system": code.name,
            "attention": system.attention,
            "base_model_type": model_type,
            **entry,
            "parameters": dict(code.parameters),
        },
    }
    files = {name: modeling_file(name) for name in (system.file, *system.needs, *RUNTIME)}
    notes = (
        f"custom code: {', '.join(files)}; transformers 5.12 or later loads it with trust_remote_code=True",
        f"model_type is {PREFIX}{model_type}, so that loaders without this code refuse the checkpoint instead of"
        f" running plain {model_type}: vLLM, SGLang, llama.cpp, TGI and mlx-lm do not serve it",
    )
    return emitted, files, notes


def detach(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of ours as the stock model's again, without the custom code; any other as it is."""
    entry = config.get(KEY)
    if not isinstance(entry, Mapping) or "system" not in entry:
        return dict(config)
    dropped = {KEY, "auto_map", "attn_implementation"}
    names = [str(name).removeprefix(CLASS_PREFIX) for name in config.get("architectures") or ()]
    stock = {"model_type": base_model_type(config), "architectures": names}
    return {key: stock.get(key, value) for key, value in config.items() if key not in dropped}


def base_model_type(config: Mapping[str, Any]) -> Any:
    """The stock model type of a config, whether or not custom code of ours stands in it."""
    found = config.get("model_type")
    return found.removeprefix(PREFIX) if isinstance(found, str) and isinstance(config.get(KEY), Mapping) else found


def find_code(config: Mapping[str, Any]) -> CustomCode | None:
    """The rotation code that a config.json of ours runs; None when it runs none."""
    return _find(config, "rotation")


def find_attachment(config: Mapping[str, Any]) -> CustomCode | None:
    """The attention system that a config.json of ours runs; None when it runs none."""
    return _find(config, "attachment")


def _find(config: Mapping[str, Any], kind: str) -> CustomCode | None:
    entry = config.get(KEY)
    if not isinstance(entry, Mapping) or entry.get("system") not in SYSTEMS:
        return None
    if SYSTEMS[str(entry["system"])].kind != kind:
        return None
    parameters = entry.get("parameters")
    return CustomCode(str(entry["system"]), dict(parameters) if isinstance(parameters, Mapping) else {})
