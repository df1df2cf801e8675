"""Each system against its dense reference: logits, gradients, and controls that must fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.modeling import reference
from tests.modeling.emitted import (
    ROTARY,
    SLOPES,
    TARGET,
    TRAINED,
    Case,
    chunked,
    difference,
    read_config,
    remote,
    stock,
    tokens,
    whole,
)

LENGTH = 150
Folders = Callable[[Any], Path]


def explicit_factor(parameters: dict[str, Any], trained: int, offset: int = 0) -> reference.Factor:
    """What the parameters in a converted config say; `offset` tokens too far for xPos."""
    if "scale_base" in parameters:
        return reference.xpos(parameters["scale_base"], offset=offset)
    if "ramp" in parameters:
        return reference.dynamic_yarn(trained, parameters["steps"], parameters["ramp"])
    if "tables" in parameters:
        return reference.clex(trained, parameters["tables"])
    return reference.dynamic_ntk(trained, parameters["steps"], parameters["factor"])


def explicit(case: Case, source: Path, converted: Path, **changes: Any) -> Any:
    """The dense reference of a RoPE case."""
    parameters = read_config(converted)["ctxforge"]["parameters"]
    options: dict[str, Any] = {"interleaved": case.kind == "glm", "block_length": parameters.get("block_length")}
    options = {"factor": explicit_factor(parameters, TRAINED), **options, **changes}
    model = stock(source)
    if case.method == "xpos-abf":
        rotary = model.model.rotary_emb
        rotary.inv_freq.copy_(case.parameters["base"] ** (-torch.arange(0, 16, 2).double() / 16))
    return reference.with_factor(model, **options)


@pytest.mark.parametrize("case", ROTARY, ids=str)
def test_rotary_systems_equal_the_dense_reference(case: Case, sources: Folders, converted: Folders) -> None:
    folder, ids = converted(case), tokens(2, LENGTH)
    wanted = whole(explicit(case, sources(case.kind), folder), ids)
    model = remote(folder)
    assert difference(whole(model, ids), wanted) < 1e-5
    assert difference(chunked(model, ids, 7), wanted) < 1e-5


@pytest.mark.parametrize(
    "case", [case for case in ROTARY if case.kind in ("llama", "glm") or case.method == "clex-dynamic"], ids=str
)
def test_the_reference_tells_wrong_systems_apart(case: Case, sources: Folders, converted: Folders) -> None:
    folder, ids, source = converted(case), tokens(1, LENGTH), sources(case.kind)
    found = whole(remote(folder), ids)
    assert difference(whole(explicit(case, source, folder, interleaved=case.kind != "glm"), ids), found) > 1e-3
    assert difference(whole(stock(source), ids), found) > 1e-3
    parameters = read_config(folder)["ctxforge"]["parameters"]
    late = explicit_factor(parameters, TRAINED + 1, offset=1)
    assert difference(whole(explicit(case, source, folder, factor=late), ids), found) > 1e-3
    if parameters.get("block_length"):
        assert difference(whole(explicit(case, source, folder, block_length=None), ids), found) > 1e-3


@pytest.mark.parametrize("case", [ROTARY[1], ROTARY[3], ROTARY[8], ROTARY[10], ROTARY[14]], ids=str)
def test_gradients_equal_the_dense_reference(case: Case, sources: Folders, converted: Folders) -> None:
    ids = tokens(2, 90)
    found, wanted = {}, {}
    for model, store in (
        (remote(converted(case), dtype=torch.float64), found),
        (explicit(case, sources(case.kind), converted(case)), wanted),
    ):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        store.update({name: parameter.grad for name, parameter in model.named_parameters()})
    assert found.keys() == wanted.keys()
    # Tables are float32 in the runtime, float64 in the reference; all else is float64.
    assert max(difference(found[name], wanted[name]) for name in wanted) < 1e-5


@pytest.mark.parametrize("case", SLOPES, ids=str)
def test_scaled_slopes_equal_the_dense_reference(
    case: Case, sources: Folders, converted: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, ids = case.kind.split("-")[0], tokens(2, LENGTH)
    given = {"attention_mask": torch.ones_like(ids)}
    options = {"attn_implementation": "sdpa"} if kind == "falcon" else {}
    model = remote(converted(case))
    found = whole(model, ids)

    def logits(factor: Callable[[int], float]) -> torch.Tensor:
        patched = reference.with_slopes(stock(sources(case.kind), **options), kind, factor, LENGTH, monkeypatch)
        return whole(patched, ids, **given)

    if case.parameters.get("dynamic"):
        assert difference(found, logits(lambda length: min(1.0, TRAINED / length))) < 1e-5
        assert difference(found, logits(lambda length: min(1.0, TRAINED / (length + 1)))) > 1e-5
    else:
        assert difference(found, logits(lambda _length: TRAINED / TARGET)) < 1e-5
    assert difference(found, logits(lambda _length: 1.0)) > 1e-3
    assert difference(found, whole(model, ids, **given)) < 1e-6


@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
def test_slopes_left_alone_are_the_stock_model(kind: str, sources: Folders, converted: Folders) -> None:
    """Falcon by its SDPA path: its eager one adds the bias twice in transformers 5.24."""
    ids = tokens(2, TRAINED)
    options = {"attn_implementation": "sdpa"} if kind == "falcon" else {}
    wanted = whole(stock(sources(kind), **options), ids)
    found = whole(remote(converted(Case(kind, "alibi-interpolation", {"dynamic": True}))), ids)
    assert difference(found, wanted) < 1e-5


@pytest.mark.parametrize("case", [case for case in ROTARY if "dynamic" in case.method], ids=str)
def test_a_dynamic_method_is_the_stock_model_up_to_the_trained_length(
    case: Case, sources: Folders, converted: Folders
) -> None:
    ids = tokens(2, TRAINED + 1)
    wanted, found = whole(stock(sources(case.kind)), ids), whole(remote(converted(case)), ids)
    assert difference(found[:, :TRAINED], wanted[:, :TRAINED]) < 1e-6
    assert difference(found[:, TRAINED:], wanted[:, TRAINED:]) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "glm"])
def test_an_unbounded_scale_base_is_rope(kind: str, sources: Folders, converted: Folders) -> None:
    ids = tokens(2, LENGTH)
    found = whole(remote(converted(Case(kind, "xpos", {"scale_base": 1e11}))), ids)
    assert difference(found, whole(stock(sources(kind)), ids)) < 1e-5


def test_a_strong_decay_over_a_long_text_neither_overflows_nor_changes(sources: Folders, converted: Folders) -> None:
    """n/B reaches 300: absolute exponents would overflow float32 at 71."""
    case = Case("llama", "xpos", {"scale_base": 2})
    ids = tokens(1, 600)
    found = whole(remote(converted(case)), ids)
    assert found.isfinite().all()
    assert difference(found, whole(explicit(case, sources("llama"), converted(case)), ids)) < 1e-5
