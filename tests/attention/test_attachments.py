"""Choosing an attachment: parameters, refusals, what is written and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ctxforge
from ctxforge.attention import attachments, find_attachment, read_parameters
from ctxforge.attention.reference import Pattern, causal, dense_attention, distances
from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.recipe import parse_attachment
from tests.modeling.emitted import read_config, save_stock


def test_every_attachment_is_explained() -> None:
    for name, found in attachments().items():
        assert name == found.name
        assert found.cannot, name
        assert found.needs in ("nothing", "calibration", "training"), name
        assert found.system or found.plain or not found.exported, name
        assert all(parameter.explanation for parameter in found.parameters), name


def test_parameters_are_read_strictly() -> None:
    found = find_attachment("transformer-xl")
    assert read_parameters(found, {"memory": "2k"}) == {"memory": 2048}
    with pytest.raises(UsageError, match="memry"):
        read_parameters(found, {"memry": "5"})
    with pytest.raises(UsageError, match="whole number"):
        read_parameters(found, {"memory": "many"})
    with pytest.raises(UsageError, match="no attachment"):
        find_attachment("transformer-xxl")
    assert parse_attachment("transformer-xl:memory=5").parameters == {"memory": "5"}
    for wrong in ("", "a+b", "a:b"):
        with pytest.raises(UsageError):
            parse_attachment(wrong)


def test_transformer_xl_is_the_models_own_sliding_window(tmp_path: Path) -> None:
    source = save_stock("mistral", tmp_path / "source")
    plain = json.loads((source / "config.json").read_text())
    done = ctxforge.extend(source, attach="transformer-xl:memory=15", to=256, out=tmp_path / "out")
    config = json.loads((done.out / "config.json").read_text())
    assert config["sliding_window"] == 16
    assert config["model_type"] == plain["model_type"]
    record = json.loads((done.out / "ctxforge.json").read_text())
    assert record["plan"]["attachment"] == {"name": "transformer-xl", "parameters": {"memory": 15}, "plain": True}
    with pytest.raises(UnsupportedError, match="no config keys"):
        ctxforge.plan(save_stock("llama", tmp_path / "llama"), attach="transformer-xl", to=256)
    with pytest.raises(UsageError, match="memory of 64"):
        ctxforge.plan(source, attach="transformer-xl:memory=64", to=256)


def test_dense_attention_is_stock_attention_where_nothing_is_special() -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(2, h, 9, 16, dtype=torch.float64) for h in (4, 2))
    value = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    table = 10000.0 ** (-torch.arange(0, 6, dtype=torch.float64) / 6)
    for interleaved in (False, True):
        q, k = (rotated(states, table, interleaved) for states in (query, key))
        stock = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True, scale=0.3
        )
        ours = dense_attention(
            query, key, value, table, Pattern(causal(9), distances(9)), scaling=0.3, interleaved=interleaved
        )
        torch.testing.assert_close(ours, stock, atol=1e-12, rtol=0)


def rotated(states: torch.Tensor, table: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Each pair as a complex number, turned by its position."""
    pairs, last = len(table), 2 * len(table)
    turn = torch.polar(
        torch.ones(states.shape[2], pairs, dtype=table.dtype), torch.arange(states.shape[2])[:, None] * table
    )
    if interleaved:
        turned = torch.complex(states[..., 0:last:2], states[..., 1:last:2]) * turn
        parts = torch.stack((turned.real, turned.imag), -1).flatten(-2)
    else:
        turned = torch.complex(states[..., :pairs].clone(), states[..., pairs:last].clone()) * turn
        parts = torch.cat((turned.real, turned.imag), -1)
    return torch.cat((parts, states[..., last:]), -1)


def test_the_base_stands_where_older_readers_look(tmp_path: Path) -> None:
    """A source that transformers 5 wrote has its base in rope_parameters alone; transformers 4 would read 10000."""
    source = save_stock("llama", tmp_path / "source")
    config = read_config(source)
    base = config["rope_parameters"]["rope_theta"] = 50000.0
    config.pop("rope_theta", None)
    (source / "config.json").write_text(json.dumps(config))
    out = ctxforge.extend(source, attach="dual-chunk", to=256, out=tmp_path / "out").out
    assert read_config(out)["rope_theta"] == base
    assert read_config(out)["rope_parameters"]["rope_theta"] == base


def test_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    listed = cli("attachments", "--json")
    assert listed.code == 0
    assert {entry["name"] for entry in listed.document["attachments"]} == set(attachments())
    for name in attachments():
        assert cli("attachments", name).code == 0
    assert cli("attachments", "nothing").code == 2
    nothing = cli("extend", "bundled", "--to", "2x", "--out", tmp_path / "out")
    assert nothing.code == 2
    assert "neither" in nothing.err
