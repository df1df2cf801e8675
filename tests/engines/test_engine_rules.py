"""Each engine's reader, emulated, on what ctxforge emits and on the configs that people get wrong.

The tables follow research/position-methods.md 7.7 where the released sources agree with it, and the sources where they
don't: docs/decisions/0007-engine-rules.md says which and why.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.engines import EngineVerdict, report
from ctxforge.engines.classes import kind_of
from ctxforge.engines.registry import ENGINES
from ctxforge.errors import CheckpointError, CtxforgeError, UnsupportedError, UsageError
from ctxforge.rope import find_method, lower, make_plan, understand
from tests.rope.test_plan_and_lower import tensors

ROOT = Path(__file__).parents[2]
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
ROWS = (
    "transformers 5.x",
    "transformers 4.55 - 4.57",
    "transformers 4.51 - 4.54",
    "transformers 4.43 - 4.50",
    "vllm 0.30 and later",
    "vllm 0.24 - 0.29",
    "vllm 0.23 and earlier, with transformers 4",
    "sglang 0.5.23",
    "llama.cpp November 2026",
    "tgi 3.3",
    "mlx-lm 0.32.2",
    "exllamav3 1.6.5",
)
LETTERS = {
    "H": "honours",
    "F": "honours with flags",
    "S": "computes something else",
    "R": "refuses",
    "?": "unknown",
}
Config = dict[str, Any]


def emit(method: str, to: int = 65536, config: Config = LLAMA3, **options: Any) -> Config:
    """The config that ctxforge writes for a plan."""
    portability = options.pop("portability", "widest")
    geometry = understand(config)
    plan = make_plan(geometry, find_method(method), to, **options)
    return lower(plan, geometry, config, tensors(), portability).config


def changed(config: Config, **values: Any) -> Config:
    """A copy with keys of both rope dicts set, or removed where the value is None."""
    config = copy.deepcopy(config)
    for name in ("rope_parameters", "rope_scaling"):
        for key, value in values.items():
            if value is None:
                config[name].pop(key, None)
            else:
                config[name][key] = value
    return config


def without(config: Config, *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def verdicts(config: Config) -> dict[str, EngineVerdict]:
    return {f"{row.engine} {row.versions}": row for row in report(config).rows}


YARN = emit("yarn")
EXACT_LISTS = emit("mrrope-pro", portability="exact")
FORMS: dict[str, tuple[Config, str]] = {
    #                                                          t5 t457 t454 t450 v30 v29 v23 sgl cpp tgi mlx exl
    "theta only": (emit("ntk"), "HHHHHHHHHHHH"),
    "linear": (emit("pi"), "HHHHFFFFHSHH"),
    "yarn": (YARN, "HHHSHHHHHHHH"),
    "yarn + attention_factor": (changed(YARN, attention_factor=1.3), "HHHSHSSSSSSH"),
    "yarn + truncate false": (changed(YARN, truncate=False), "HHSSHHHHSSSH"),
    "yarn + mscale pair": (changed(YARN, mscale=1.0, mscale_all_dim=0.5), "HHHSHSSHSHHS"),
    "llama3": (emit("llama3"), "HHHHHHHHHHHH"),
    "longrope, equal lists": (emit("mrrope-pro"), "HHHHHHHHSRHH"),
    "longrope, no temperature key": (changed(emit("mrrope-pro"), attention_factor=None), "HSSSHHHHSRHH"),
    "longrope, exact": (EXACT_LISTS, "HHHHHHHHSRSS"),
    "longrope, attention_factor alone": (
        changed(EXACT_LISTS, short_mscale=None, long_mscale=None),
        "HHHHSSSSSRSS",
    ),
    "longrope, top-level length": (
        {**emit("mrrope-pro"), "original_max_position_embeddings": 8192},
        "HHHHFFFHSHHH",
    ),
    "dynamic": (emit("dynamic-ntk"), "HHHHSSSSSSHR"),
    "yarn, rope_parameters alone": (without(YARN, "rope_theta", "rope_scaling"), "HSSSHHSHHSSH"),
    "yarn, rope_scaling alone": (without(YARN, "rope_parameters"), "HHHSHHHHHHHH"),
    "theta, rope_parameters alone": (without(emit("ntk"), "rope_theta", "rope_scaling"), "HSSSHHSHHSSH"),
}


@pytest.mark.parametrize("form", FORMS)
def test_verdicts_of_a_llama(form: str) -> None:
    config, letters = FORMS[form]
    found = verdicts(config)
    assert {name: row.verdict for name, row in found.items()} == {
        name: LETTERS[letter] for name, letter in zip(ROWS, letters, strict=True)
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_row_cites_its_source_and_silent_ones_say_what(form: str) -> None:
    for row in report(FORMS[form][0]).rows:
        assert "/" in row.source
        assert ":" in row.source
        if row.verdict in ("computes something else", "refuses", "unknown"):
            assert row.detail
            assert "\n" not in row.detail
        assert bool(row.flags) == (row.verdict == "honours with flags")
        assert bool(row.serve_command) == (row.verdict != "refuses")


def test_the_lines_say_what_is_computed_instead() -> None:
    hot = verdicts(changed(YARN, attention_factor=1.3))
    assert hot["sglang 0.5.23"].detail == "temperature 1.2079 instead of 1.3; attention_factor ignored"
    lost = verdicts(without(YARN, "rope_theta", "rope_scaling"))
    assert lost["mlx-lm 0.32.2"].detail.startswith("theta 10000 and no scaling instead of theta 500000 and yarn")
    # Its scaling survives on transformers 4, its base doesn't.
    assert "theta 10000 and yarn" in lost["vllm 0.23 and earlier, with transformers 4"].detail
    assert "conversion loses the factor lists" in verdicts(emit("mrrope-pro"))["llama.cpp November 2026"].detail
    assert "accepted and not applied" in verdicts(emit("pi"))["tgi 3.3"].detail


def test_flags_hold_the_configs_length() -> None:
    found = verdicts(emit("pi"))
    assert found["vllm 0.30 and later"].flags == ("--max-model-len 65536",)
    assert "524288" in found["vllm 0.30 and later"].detail
    assert found["sglang 0.5.23"].flags == ("--context-length 65536",)
    assert found["vllm 0.30 and later"].serve_command == "vllm serve DIR --max-model-len 65536"


def test_an_unraised_maximum_takes_more_than_a_flag() -> None:
    card = {**LLAMA3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}}
    found = verdicts(card)
    assert found["vllm 0.30 and later"].flags == ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", "--max-model-len 32768")
    assert found["vllm 0.30 and later"].serve_command.startswith("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve")
    # 0.29 multiplied the original length itself; exllamav3 takes max/original = 1 for the factor.
    assert found["vllm 0.24 - 0.29"].verdict == "honours"
    assert found["exllamav3 1.6.5"].verdict == "computes something else"


def test_two_lists_are_one_list_in_most_engines() -> None:
    config = changed(emit("mrrope-pro"), short_factor=[1.0] * 64)
    found = verdicts(config)
    assert "the long list" in found["vllm 0.30 and later"].detail
    assert "the short list at every length" in found["transformers 4.55 - 4.57"].detail
    assert found["sglang 0.5.23"].verdict == "honours"


def test_unrotated_pairs_compare_as_still() -> None:
    found = verdicts(emit("drope", 8192))
    assert found["vllm 0.30 and later"].verdict == found["mlx-lm 0.32.2"].verdict == "honours"
    assert found["llama.cpp November 2026"].verdict == "computes something else"


PROPORTIONAL = {
    **LLAMA3,
    "rope_parameters": {"rope_type": "proportional", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
}


def test_proportional() -> None:
    found = {name: row.verdict for name, row in verdicts(PROPORTIONAL).items()}
    letters = "HRRRHHHSSRHH"
    assert found == {name: LETTERS[letter] for name, letter in zip(ROWS, letters, strict=True)}
    scaled = verdicts(changed(PROPORTIONAL, factor=2.0))
    assert "factor ignored" in scaled["vllm 0.30 and later"].detail
    assert scaled["mlx-lm 0.32.2"].verdict == "honours"


GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "head_dim": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}


def gemma3(method: str) -> Config:
    geometry = understand(GEMMA3)
    plan = make_plan(geometry, find_method(method), 131072)
    names = [f"model.layers.{i}.self_attn.q_norm.weight" for i in range(12)]
    from ctxforge.checkpoint import TensorInfo

    index = {name: TensorInfo(name, "BF16", (256,), "model.safetensors", 0, 0) for name in names}
    return lower(plan, geometry, GEMMA3, index).config


def test_nested_tables() -> None:
    found = verdicts(gemma3("yarn"))
    assert found["vllm 0.30 and later"].verdict == "honours"
    # The window's layers keep their base.
    assert found["llama.cpp November 2026"].verdict == "honours"
    assert found["sglang 0.5.23"].verdict == "honours"
    assert "AMX" in found["sglang 0.5.23"].detail
    linear = verdicts(gemma3("pi"))["tgi 3.3"]
    assert linear.detail.startswith("full_attention: theta 1000000 and no scaling instead of theta 1000000 and linear")
    assert found["mlx-lm 0.32.2"].verdict == "honours"
    modern = verdicts(without(gemma3("ntk"), "rope_theta", "rope_scaling", "rope_local_base_freq"))
    assert "full_attention" in modern["mlx-lm 0.32.2"].detail
    assert modern["vllm 0.30 and later"].verdict == "honours"
    assert modern["llama.cpp November 2026"].verdict == "honours"


SMALL = {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 2, "max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("model_type", "class_name", "engine", "verdict", "said"),
    [
        ("mixtral", "MixtralForCausalLM", "sglang 0.5.23", "computes something else", "theta 20221 and no scaling"),
        ("mixtral", "MixtralForCausalLM", "vllm 0.30 and later", "honours", ""),
        ("gemma2", "Gemma2ForCausalLM", "llama.cpp November 2026", "computes something else", "writes no rope keys"),
        ("gemma2", "Gemma2ForCausalLM", "sglang 0.5.23", "honours", ""),
        ("stablelm", "StableLmForCausalLM", "llama.cpp November 2026", "computes something else", "theta 10000"),
        ("olmo2", "Olmo2ForCausalLM", "exllamav3 1.6.5", "refuses", "it has no Olmo2ForCausalLM"),
        ("smollm3", "SmolLM3ForCausalLM", "sglang 0.5.23", "unknown", "transformers backend"),
        ("smollm3", "SmolLM3ForCausalLM", "transformers 4.43 - 4.50", "refuses", "it has no smollm3"),
        ("qwen3", "Qwen3ForCausalLM", "tgi 3.3", "honours", "falls back to transformers 4.51"),
    ],
)
def test_a_new_base_alone_is_lost_by_some_classes(
    model_type: str, class_name: str, engine: str, verdict: str, said: str
) -> None:
    config = {**SMALL, "model_type": model_type, "architectures": [class_name], "head_dim": 128}
    theta = 20221.26
    config |= {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    row = verdicts(config)[engine]
    assert row.verdict == verdict
    assert said in row.detail


def test_scaling_is_lost_by_classes_that_hand_on_none() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    base = {**SMALL, "head_dim": 128, "rope_theta": 10000.0, "rope_scaling": yarn}
    base["rope_parameters"] = {**yarn, "rope_theta": 10000.0}
    for model_type, class_name in (("gemma2", "Gemma2ForCausalLM"), ("mixtral", "MixtralForCausalLM")):
        found = verdicts({**base, "model_type": model_type, "architectures": [class_name]})
        assert found["mlx-lm 0.32.2"].verdict == "computes something else"
        assert found["sglang 0.5.23"].verdict == "computes something else"
        assert found["vllm 0.30 and later"].verdict == "honours"


def test_llama3_outside_the_llama_classes_of_llama_cpp() -> None:
    config = emit("llama3", config={**LLAMA3, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    row = verdicts(config)["llama.cpp November 2026"]
    assert (row.verdict, "only the Llama classes" in row.detail) == ("computes something else", True)
    smollm = {**config, "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}
    assert verdicts(smollm)["llama.cpp November 2026"].verdict == "unknown"


def test_qwen3_of_mlx_reads_the_new_keys() -> None:
    config = without(emit("ntk"), "rope_theta", "rope_scaling")
    qwen = {**config, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
    assert verdicts(qwen)["mlx-lm 0.32.2"].verdict == "honours"
    assert verdicts(config)["mlx-lm 0.32.2"].verdict == "computes something else"


def test_custom_code_runs_in_transformers_5_alone() -> None:
    found = report(emit("dynamic-yarn")).rows
    assert (found[0].verdict, found[0].flags) == ("honours with flags", ("trust_remote_code=True",))
    assert "trust_remote_code=True" in found[0].serve_command
    assert all(row.verdict == "refuses" and not row.serve_command for row in found[1:])


def test_learned_tables_and_alibi() -> None:
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 4096, "n_embd": 768}
    found = verdicts({**gpt2, "n_head": 12, "n_layer": 2, "max_position_embeddings": 4096})
    assert found["vllm 0.30 and later"].verdict == found["llama.cpp November 2026"].verdict == "honours"
    assert found["exllamav3 1.6.5"].verdict == "refuses"


def test_latent_attention_is_not_judged() -> None:
    config = {**LLAMA3, "qk_rope_head_dim": 64}
    rows = report(config, engines=("vllm",)).rows
    assert {row.verdict for row in rows} == {"unknown"}
    assert "softmax" in rows[0].detail


def test_a_run_that_contradicts_a_rule_is_told() -> None:
    from ctxforge.engines import measured

    row = {"engine": "vllm", "version": "vllm 0.32.0", "form": "yarn", "architecture": "llama", "status": "differs"}
    before = measured.rows
    measured.rows = lambda: ({**row, "date": "2026-11-24"},)  # type: ignore[assignment]
    try:
        told = report(YARN, engines=("vllm 0.30",)).rows[0]
    finally:
        measured.rows = before
    assert told.verdict == "unknown"
    assert "a run of vllm 0.32.0, 2026-11-24 differs" in told.detail


def test_rules_agree_with_every_run() -> None:
    """benchmarks/engine_cases.py on the bundled model: what engines computed, against what their rules say."""
    import ctxforge
    from benchmarks.engine_cases import CASES
    from ctxforge.engines.measured import rows

    names = {row["form"] for row in rows() if row["model"] == "bundled"}
    checked = 0
    for case in CASES:
        if case.form not in names:
            continue
        config = copy.deepcopy(ctxforge.plan("bundled", method=case.method, to=2048, **case.options).lowered.config)
        if case.edit is not None:
            case.edit(config)
        for row in report(config).rows:
            assert "a run of" not in row.detail, (case.form, row)
            checked += row.evidence == "measured"
    assert not names or checked > len(names)


def test_engine_names_may_be_short() -> None:
    assert {row.engine for row in report(YARN, engines=("MLX",)).rows} == {"mlx-lm"}
    assert [row.versions for row in report(YARN, engines=("transformers-4.55",)).rows] == ["4.55 - 4.57"]
    assert len(report(YARN, engines=("vllm", "exllama")).rows) == 4
    with pytest.raises(UsageError, match="unknown engine 'tensorrt'"):
        report(YARN, engines=("tensorrt",))
    with pytest.raises(UsageError):
        report(YARN, engines=("",))


def test_bad_configs_are_errors_with_a_cause() -> None:
    with pytest.raises(CheckpointError, match="no model_type"):
        report({})
    with pytest.raises(UnsupportedError):
        report({"model_type": "nothing_of_the_kind"})
    with pytest.raises(UnsupportedError):
        report({**LLAMA3, "rope_scaling": {"rope_type": "spiral"}})
    with pytest.raises(CheckpointError):
        report({**LLAMA3, "rope_scaling": {"rope_type": "yarn", "factor": "four"}})


def test_a_report_costs_milliseconds() -> None:
    report(YARN)
    for config in (YARN, EXACT_LISTS):
        fastest = math.inf
        for _ in range(5):
            start = time.perf_counter()
            report(config)
            fastest = min(fastest, time.perf_counter() - start)
        assert fastest < 0.02


def test_the_package_imports_nothing_heavy() -> None:
    script = (
        "import json, sys; from ctxforge.engines import report;"
        f" report(json.loads({json.dumps(json.dumps(YARN))}));"
        " print([m for m in ('torch', 'numpy', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_class_lists_hold_what_engines_register() -> None:
    assert kind_of("vllm", "LlamaForCausalLM") == kind_of("sglang", "Qwen2ForCausalLM") == "reads"
    assert kind_of("vllm", "CtxforgeLlamaForCausalLM") is None
    assert kind_of("llama.cpp", "GPTNeoXForCausalLM") == "none"
    assert len({f"{engine.name} {engine.versions}" for engine in ENGINES}) == len(ENGINES) == len(ROWS)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(), st.text(max_size=5), st.lists(st.floats())
)
types = st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional", "su", "spiral"])
keys = st.sampled_from(
    [
        *("factor", "original_max_position_embeddings", "attention_factor", "truncate", "beta_fast", "mscale"),
        *("mscale_all_dim", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "long_mscale"),
        *("partial_rotary_factor", "type"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, values), types, st.booleans())
def test_any_dict_is_a_report_or_a_told_error(entries: dict[str, Any], rope_type: str, modern: bool) -> None:
    rope = {"rope_type": rope_type, **entries}
    config = {**LLAMA3, ("rope_parameters" if modern else "rope_scaling"): rope}
    try:
        rows = report(config).rows
    except CtxforgeError:
        return
    assert rows[0].verdict == "honours"
    assert all(row.verdict in LETTERS.values() for row in rows)


@settings(max_examples=50, deadline=None)
@given(st.floats(100.0, 1e8), st.sampled_from([64, 80, 128]), st.sampled_from([2048, 8192, 131072]))
def test_both_key_styles_of_a_plain_base_are_read_by_all(base: float, head: int, longest: int) -> None:
    config = {**LLAMA3, "head_dim": head, "max_position_embeddings": longest, "rope_theta": base}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    assert {row.verdict for row in report(config).rows} == {"honours"}
