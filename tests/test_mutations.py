"""Ten thousand mutated configs and headers: inspect, plan and check answer or refuse, and never raise anything else."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxforge.errors import CtxforgeError, InternalError
from ctxforge.pipeline import inspect, plan
from ctxforge.recipe import ConversionRecipe, MethodChoice
from ctxforge.static_checks import check
from tests.llama_folder import CONFIG, safetensors_bytes, write_folder

MANY = settings(
    max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32.0},
    {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
]
TYPES = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gemma3", "gpt_neox"]
TYPES += ["stablelm", "olmo2", "smollm3", "gpt_oss", "mamba", "", None]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70000)
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([0, -1, 1e308, 2**62, "yarn", "4096", 10**30, 4096.0, 0.25])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*CONFIG, "rope_parameters", "sliding_window", "layer_types", "partial_rotary_factor", "no_rope_layers"]
KEYS += ["use_sliding_window", "max_window_layers", "original_max_position_embeddings", "rotary_pct", "text_config"]
INNER = ["rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "short_factor", "long_factor"]
INNER += ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor", "low_freq_factor"]
METHODS = ["yarn", "ntk", "ntk-by-parts", "pi", "abf", "llama3", "dynamic-ntk", "none"]


@st.composite
def configs(draw: st.DrawFn) -> str:
    config: dict[str, Any] = {**CONFIG, "model_type": draw(st.sampled_from(TYPES))}
    for place in ("rope_scaling", "rope_parameters"):
        if draw(st.booleans()):
            scaling = dict(draw(st.sampled_from(SCALINGS)))
            for _ in range(draw(st.integers(0, 2))):
                scaling[draw(st.sampled_from(INNER))] = draw(VALUES)
            config[place] = scaling
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(KEYS))
        if draw(st.booleans()):
            config[key] = draw(VALUES)
        else:
            config.pop(key, None)
    text = json.dumps(config)
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.text(max_size=3)) + text[cut + draw(st.integers(0, 3)) :]
    return text


@st.composite
def weights(draw: st.DrawFn) -> bytes:
    data = bytearray(safetensors_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    kind = draw(st.integers(0, 4))
    if kind == 0:
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, min(len(data), 8 + length) - 1))] = draw(st.integers(0, 255))
    elif kind == 1:
        del data[draw(st.integers(0, len(data))) :]
    elif kind == 2:
        data[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 2000)))
    elif kind == 3:
        header = json.loads(data[8 : 8 + length])
        name = draw(st.sampled_from(sorted(header)))
        entry = header[name]
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "format", "x"]))] = draw(VALUES)
        text = json.dumps(header).encode()
        data = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    else:
        data += draw(st.binary(max_size=8))
    return bytes(data)


FOLDER = write_folder(Path(tempfile.mkdtemp(prefix="ctxforge-mutations-")) / "source")


def refused(action: Callable[[], object]) -> CtxforgeError | None:
    try:
        action()
    except CtxforgeError as error:
        return error
    return None


def attempt(method: str) -> None:
    for action in (
        lambda: inspect(str(FOLDER)),
        lambda: plan(ConversionRecipe(source=str(FOLDER), method=MethodChoice(name=method), to="16k")),
        lambda: check(FOLDER),
    ):
        refusal = refused(action)
        if refusal is not None:
            assert not isinstance(refusal, InternalError), refusal.cause
            assert "\n" not in refusal.cause + refusal.remedy
            assert refusal.remedy


@MANY
@given(configs(), st.sampled_from(METHODS))
def test_mutated_configs(text: str, method: str) -> None:
    (FOLDER / "model.safetensors").write_bytes(safetensors_bytes())
    (FOLDER / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    attempt(method)


@MANY
@given(weights(), st.sampled_from(["yarn", "ntk-by-parts"]))
def test_mutated_headers(data: bytes, method: str) -> None:
    (FOLDER / "config.json").write_text(json.dumps(CONFIG))
    (FOLDER / "model.safetensors").write_bytes(data)
    attempt(method)
