"""Every causal-LM type of the installed transformers: what ctxforge says and writes against what the model does.

Each type is built tiny and random, and the rotation of each of its layers is measured; then it is converted with three
methods, loaded again and measured again. Nothing measured is read from a config.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from ctxforge import schemes
from ctxforge.errors import UnsupportedError
from ctxforge.positions.architectures import ALIBI, LEARNED
from ctxforge.rope import RopePlan, understand
from ctxforge.rope.architectures import ARCHITECTURES, REFUSED
from ctxforge.rope.types import UNROTATED
from tests.architectures import tiny
from tests.architectures.compare import against_geometry, against_plan
from tests.architectures.convert import Source, converted_disagreements, make_source
from tests.architectures.measure import Measured, measure, scheme

METHODS = ("yarn", "ntk", "mrrope-pro")
_LISTS = METHODS[2:]  # its divisors are no type's but a list's
_HOT = ("yarn", "mrrope-pro")  # they have a temperature
# Words of the reason, the methods that are refused, and for which tiny models.
REFUSALS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "the layers that see beyond the window have no RoPE",
        METHODS,
        (
            *("afmoe", "beam", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "kolibri1", "lara_mini"),
            *("llama4", "llama4_text", "llama4_text:llama3", "llama4_text:no-qk-norm"),
        ),
    ),
    (
        "reads expresses this plan",
        _HOT,
        (
            *("deepseek_v4", "gemma4", "gemma4_assistant", "gemma4_text"),
            *("gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text"),
        ),
    ),
    ("reads expresses this plan", _LISTS, ("dots3_note", "dots3_note_text")),
    ("queries are clamped", _LISTS, ("dbrx",)),
    ("a norm without weights follows the projection", _LISTS, ("dory",)),
    ("its query is a mixture of experts' outputs", _LISTS, ("jetmoe",)),
    ("a norm without weights follows the rotation", _HOT, ("nanochat",)),
    ("one attention block serves several layers", _LISTS, ("zamba2",)),
    ("convolutions and a norm without weights follow the projection", _LISTS, ("zaya",)),
)
EXPECTED_REFUSALS = {
    (name, method): words for words, methods, names in REFUSALS for method in methods for name in names
}
ROPE = [
    name
    for name in (*tiny.TYPES, *tiny.VARIANTS)
    if name.partition(":")[0] in ARCHITECTURES and name not in tiny.OTHER_POSITIONS
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_type_is_convertible_or_refused_with_a_reason() -> None:
    known = {*ARCHITECTURES, *LEARNED, *ALIBI}
    assert {name for name in tiny.TYPES if name not in known and name not in REFUSED} == set()
    assert known & set(REFUSED) == set()
    assert all(reason.strip() for reason in REFUSED.values())


@pytest.mark.parametrize("name", ROPE)
def test_each_layer_rotates_as_planned(name: str, tmp_path: Path) -> None:
    source = make_source(name, tmp_path / "source")
    assert scheme(source.model_type, source.measured) == "rope"
    assert against_geometry(source.measured, understand(source.config)) == []
    for method in METHODS:
        out = tmp_path / method
        refusal = EXPECTED_REFUSALS.get((name, method))
        if refusal is not None:
            with pytest.raises(UnsupportedError) as caught:
                converted_disagreements(source, method, out)
            assert refusal in caught.value.cause
            continue
        plan, measured, lines = converted_disagreements(source, method, out)
        assert lines == []
        assert plan.changed
        _one_wrong_divisor_shows(source, plan, measured)
        shutil.rmtree(out)


@pytest.mark.parametrize("model_type", [name for name in LEARNED if name in tiny.TYPES])
def test_learned_tables_are_where_they_are_said_to_be(model_type: str) -> None:
    model = tiny.build(model_type)
    measured = measure(model)
    assert scheme(model_type, measured) == "learned"
    ((name, rows, offset, _waves),) = measured.tables
    row = LEARNED[model_type]
    assert name in row.tensors
    assert offset == row.offset
    assert rows == tiny.TRAINED + row.offset


@pytest.mark.parametrize("model_type", [name for name in ALIBI if name in tiny.TYPES])
def test_alibi_is_called_where_it_is_said_to_be(model_type: str) -> None:
    name = next((name for name in tiny.OTHER_POSITIONS if name.startswith(f"{model_type}:")), model_type)
    measured = measure(tiny.build(name))
    assert scheme(model_type, measured) == "alibi"


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refused_type_says_why(model_type: str) -> None:
    config = tiny.tiny_config(model_type).to_dict() if model_type in tiny.TYPES else {"model_type": model_type}
    with pytest.raises(UnsupportedError) as caught:
        schemes.understand(config)
    assert REFUSED[model_type] in f"{caught.value.cause} {caught.value.remedy}"


def _one_wrong_divisor_shows(source: Source, plan: RopePlan, measured: Measured) -> None:
    """The comparison's own control: the plan with one divisor of one changed table moved by 1 %."""
    layout = understand(source.config).layout
    for i, group in enumerate(plan.groups):
        if not group.changed:
            continue
        divisors = list(group.rotation.divisors)
        turning = [pair for pair, divisor in enumerate(divisors) if divisor < UNROTATED]
        divisors[turning[-1]] *= 1.01
        wrong = dataclasses.replace(group.rotation, divisors=tuple(divisors))
        corrupted = [*plan.groups[:i], dataclasses.replace(group, rotation=wrong), *plan.groups[i + 1 :]]
        assert len(against_plan(measured, corrupted, layout)) >= len(group.layers)
