"""Lists of factors: every format that they come in, and every way that they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import UsageError
from ctxforge.recipe import MethodChoice, parse_method, validated
from ctxforge.rope import find_method, make_plan, understand
from ctxforge.rope.methods.factor_lists import read_numbers
from ctxforge.rope.types import Rotation
from tests.rope.test_methods import LLAMA2

# microsoft/LongRoPE:cube-new/longrope_scale/ft_la2_128k.csv, LLaMA2-7B to 128k, rounded to two places.
SEARCHED = (
    *[1.0] * 19,
    *(1.01, 1.06, 1.2, 1.4, 1.69, 1.94, 2.14, 2.5, 2.84, 3.06, 3.55, 3.78, 3.95, 5.18, 5.26, 6.38, 6.66, 7.42, 8.0),
    *(11.75, 17.29, 18.37, 25.72, 28.49, 29.16),
    *[32.0] * 20,
)


def plan(factors: Any, method: str = "longrope", **parameters: Any) -> Rotation:
    chosen = {"factors": factors, **parameters}
    return make_plan(understand(LLAMA2), find_method(method), 131072, parameters=chosen).groups[0].rotation


def test_a_published_list() -> None:
    assert len(SEARCHED) == 64
    rotation = plan(list(SEARCHED))
    assert rotation.divisors == SEARCHED
    assert rotation.temperature == pytest.approx(1.19024, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", json.dumps(SEARCHED)),
        ("dict.json", json.dumps({"long_factor": SEARCHED, "short_factor": [1.0] * 64})),
        (
            "rope.json",
            json.dumps({"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": SEARCHED}}),
        ),
        ("v5.json", json.dumps({"text_config": {"rope_parameters": {"long_factor": SEARCHED}}})),
        ("lines.csv", "\n".join(f"{x:.18e}" for x in SEARCHED) + "\n\n"),
        ("layers.csv", "\n".join(",".join(map(str, SEARCHED)) for _ in range(32))),
        ("row.csv", ",".join(map(str, SEARCHED))),
        ("bom.csv", "﻿" + "\r\n".join(map(str, SEARCHED))),
    ],
)
def test_every_format(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert plan(str(path)).divisors == SEARCHED
    assert read_numbers("longrope", "factors", path) == SEARCHED


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "can't be read: No such file"),
        ("", "is empty"),
        ("[1, 2", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ('{"short": [1]}', "holds no list"),
        ('{"long_factor": 3}', "holds no list"),
        ("[]", "empty list"),
        ("[1, null]", "number 1 is None"),
        ("[1, true]", "number 1 is True"),
        ("[1, NaN]", "number 1 is nan"),
        ("[1, 1e999]", "number 1 is inf"),
        ("1\ntwo\n", "number 0 is 'two'"),
        ("1,2\n1,3\n", "rows that differ"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "list"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=word) as caught:
        plan(str(path))
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_folders_and_binaries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        plan(str(tmp_path))
    binary = tmp_path / "weights.bin"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="not a text file"):
        plan(str(binary))
    with pytest.raises(UsageError, match="can't be read"):
        plan("nul\0byte")


@pytest.mark.parametrize(
    ("factors", "word"),
    [
        ([1.0] * 32, "holds 32 numbers and this model rotates 64 pairs"),
        ([*SEARCHED[:-1], 5.0], "decreases at pair 63, from 32 to 5"),
        ([0.0, *SEARCHED[1:]], "number 0 of factors is 0"),
        ([*SEARCHED[:-1], -3.0], "number 63 of factors is -3"),
        (5, "no list of numbers"),
        ({"a": 1}, "no list of numbers"),
        ([1.0, "x"], "number 1 is 'x'"),
    ],
)
def test_bad_lists(factors: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        plan(factors)


def test_order_can_be_waived_and_suspicious_lists_warn() -> None:
    mixed = [*SEARCHED[:-1], 5.0]
    assert plan(mixed, monotone=False).divisors[-1] == 5.0
    method = find_method("longrope")
    faster = make_plan(understand(LLAMA2), method, 2**20, parameters={"factors": [0.5, *SEARCHED[1:]]})
    assert any("below 1" in line for line in faster.warnings)
    assert any("no factor reaches s = 256" in line for line in faster.warnings)


def test_longrope2_names_both_lengths() -> None:
    with pytest.raises(UsageError, match="64 pairs, 23 from the critical pair 41"):
        plan([1.0] * 5, "longrope2")
    assert len(plan([32.0] * 23, "longrope2").divisors) == 64


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_file_is_a_list_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    path = tmp_path_factory.mktemp("lists") / "list"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    numbers, refusal = None, None
    try:
        numbers = read_numbers("longrope", "factors", str(path))
    except UsageError as error:
        refusal = error
    if refusal is None:
        assert numbers
        assert all(abs(number) < float("inf") for number in numbers)
    else:
        assert "\n" not in refusal.cause


def test_method_texts_parse() -> None:
    assert parse_method("yarn+resonance:beta_fast=64,truncate=false", ("critical_shift=5",), 1.1) == MethodChoice(
        name="yarn",
        parameters={"beta_fast": "64", "truncate": "false", "critical_shift": "5"},
        temperature=1.1,
        modifiers=("resonance",),
    )
    assert parse_method("longrope", ("factors=/a,b/c=d.json",)).parameters == {"factors": "/a,b/c=d.json"}
    for wrong in ("yarn+", "+resonance", "", ":beta_fast=1", "yarn++resonance"):
        with pytest.raises(UsageError, match="names no method"):
            parse_method(wrong)


def test_recipes_carry_lists_and_modifiers() -> None:
    method = {"name": "longrope", "parameters": {"factors": [1, 2.5]}, "modifiers": ["resonance"]}
    recipe = validated({"source": "x", "method": method})
    assert recipe.method.parameters["factors"] == [1, 2.5]
    assert recipe.method.modifiers == ("resonance",)
    with pytest.raises(UsageError, match="modifiers"):
        validated({"source": "x", "method": {"name": "yarn", "modifiers": [1]}})
