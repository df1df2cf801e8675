"""The commands in a card make the same conversion again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ctxforge.calibrate.data.spec import parse_source
from ctxforge.publish.card.record import read_record
from ctxforge.publish.card.reproduce import commands, data_names
from tests.publish.card.builders import REVISION, SOURCE, card, given, part

CALLS = {
    "modifier": ["--method", "yarn+resonance", "--to", "4x", "--param", "beta_fast=64"],
    "temperature": ["--method", "ntk", "--to", "2k", "--temperature", "1.1", "--portability", "exact"],
    "list": ["--method", "longrope", "--to", "4x", "--param", "factors={factors}"],
    "attached": ["--method", "yarn", "--to", "4x", "--attach", "lm-infinite:window=700,sinks=12,evict=false"],
    "lengths": ["--method", "pi", "--to", "4x", "--original-length", "256"],
}


@pytest.mark.parametrize("name", CALLS)
def test_the_command_converts_to_the_same_bytes(name: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    factors = tmp_path / "factors.json"
    factors.write_text(json.dumps([1.0] * 16 + [4.0] * 16))
    call = [word.format(factors=factors) if "{" in word else word for word in CALLS[name]]
    first = tmp_path / "first"
    assert cli("extend", "bundled", *call, "--out", first, "--link").code == 0
    record = json.loads((first / "ctxforge.json").read_text())
    (line,) = commands(read_record(record), source="bundled", revision=None, out="again")
    words = shlex.split(line)
    assert words[:3] == ["ctxforge", "extend", "bundled"]
    assert words[-2:] == ["--out", "again"]
    assert str(tmp_path) not in line
    # The file of a list is named without its folders: who repeats it has it somewhere else.
    words = [word.replace("factors.json", str(factors)) for word in words]
    assert cli(*words[1:-1], tmp_path / "second", "--link").code == 0
    assert (tmp_path / "second" / "config.json").read_bytes() == (first / "config.json").read_bytes()
    again = json.loads((tmp_path / "second" / "ctxforge.json").read_text())
    assert again["plan"] == record["plan"]


def test_source_and_revision() -> None:
    text = part(card().text, "Making it again")
    assert f"\nctxforge extend {SOURCE} --revision {REVISION} --method yarn --to 4x --out bytes-2k\n" in text
    local = part(card(source_id=None).text, "Making it again")
    assert "\nctxforge extend bundled --method yarn --to 4x --out bytes-2k\n" in local


def test_conversions_of_folders_are_told_from_the_first_source_on() -> None:
    """The hub's model, converted here, then converted again: both commands, in order."""
    first = {**given("yarn").provenance, "calibrations": [{"recipe": "quick"}]}
    second = {**given("pi", source_id=None).provenance, "previous": first}
    second["source"] = {**second["source"], "name": "/home/somebody/longer", "revision": None}
    expected = (
        f"ctxforge extend {SOURCE} --revision {REVISION} --method yarn --to 4x --out x-before-1-step-0",
        f"ctxforge calibrate x-before-1-step-0 --recipe quick --source {SOURCE} --out x-before-1",
        "ctxforge extend x-before-1 --method pi --to 4x --out x",
    )
    record = read_record(second)
    assert commands(record, source=SOURCE, revision=REVISION, out="x") == expected
    made = card("pi", provenance=second).text
    assert f"a local checkpoint, `longer`, made from [{SOURCE}]" in made
    assert "\nctxforge extend bytes-2k-before-1 --method pi --to 4x --out bytes-2k\n" in part(made, "Making it again")
    # A source on the Hub stands for itself, whatever it was made from.
    third = {**given("pi").provenance, "previous": first}
    assert len(commands(read_record(third), source=SOURCE, revision=REVISION, out="x")) == 1


def test_steps_of_several_calibrations() -> None:
    record = read_record(
        {
            "recipe": {"method": {"name": "pi"}, "to": "2x"},
            "calibrations": [
                {"recipe": "quick", "seed": 3, "data": [{"source": asdict(parse_source("hf://org/books:en:test"))}]},
                {"recipe": "deep", "data": [{"source": {"kind": "file", "location": "a b.jsonl"}}]},
            ],
        }
    )
    assert commands(record, source="o/m", revision="main", out="x") == (
        "ctxforge extend o/m --revision main --method pi --to 2x --out x-step-0",
        "ctxforge calibrate x-step-0 --recipe quick --data hf://org/books:en:test --seed 3 --source o/m --out x-step-1",
        "ctxforge calibrate x-step-1 --recipe deep --data 'a b.jsonl' --source o/m --out x",
    )
    assert commands(read_record({}), source="s", revision=None, out="x") == ()


@pytest.mark.parametrize(
    "spec",
    [
        *("hf://books", "hf://org/books:test", "hf://org/books:en", "hf://org/books:en:part@v1#body::0.5"),
        *("hf://org/books::part", "hf://o/b@abc", "hf://o/b:validation#text"),
    ],
)
def test_data_of_the_hub_is_named_so_that_it_is_read_the_same(spec: str) -> None:
    source = parse_source(spec)
    (named,) = data_names({"data": [{"source": asdict(source)}]})
    assert parse_source(named) == source


def test_data_in_files(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "y.txt").write_text("y")
    for spec, named in (("x.jsonl#body::2", "x.jsonl#body::2"), ("code#repositories", "code#repositories")):
        source = parse_source(f"{tmp_path}/{spec}")
        assert data_names({"data": [{"source": asdict(source)}]}) == [named]
    assert data_names({"data": [{}, 3]}) == ["DATA"]
    assert data_names({"data": "x"}) == []
