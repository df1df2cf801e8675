"""Recipes by name, from files and changed by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxforge.calibrate.recipes import (
    RECIPES,
    CalibrationRecipe,
    checked,
    find_recipe,
    make_plan,
    read_recipe,
)
from ctxforge.errors import CtxforgeError, ResourceError, UsageError

NAMES = ["quick", "full", "longlora", "pose", "abf", "mixed", "drope", "xpos", "giraffe"]


def said(error: pytest.ExceptionInfo[CtxforgeError]) -> str:
    """Cause and remedy."""
    return f"{error.value} {error.value.remedy}"


def at(recipe: CalibrationRecipe, path: str) -> Any:
    found: Any = recipe
    for part in path.split("."):
        found = getattr(found, part)
    return found


def test_the_names() -> None:
    assert list(RECIPES) == NAMES
    for name in NAMES:
        assert find_recipe(name) is RECIPES[name]
        assert read_recipe(name) == RECIPES[name]
        assert checked(dataclasses.asdict(RECIPES[name])) == RECIPES[name]
        assert RECIPES[name].about
        make_plan(RECIPES[name], trained_length=2048, target_length=8192, width=576)


@pytest.mark.parametrize(("given", "meant"), [("quik", "quick"), ("longlorra", "longlora"), ("girafe", "giraffe")])
def test_a_name_that_is_nearly_one(given: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"no recipe '{given}'.*") as error:
        find_recipe(given)
    assert f"did you mean {meant}?" in said(error)


def test_a_name_that_is_none() -> None:
    with pytest.raises(UsageError) as error:
        read_recipe("zzz")
    assert "did you mean" not in said(error)
    for name in NAMES:
        assert name in said(error)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("optimiser.clip=none", None),
        ("optimiser.clip=None", None),
        ("rows.group=null", None),
        ("optimiser.learning_rate=1e-3", 1e-3),
        (" optimiser.learning_rate = 0.5 ", 0.5),
        ("steps=12", 12),
        ("steps=1e2", 100),
        ("rows.length=8k", "8k"),
        ("rows.length=0.5x", "0.5x"),
        ("rows.length=512", 512),
        ("rows.placement=cream", "cream"),
        ("optimiser.betas=0.9,0.99", (0.9, 0.99)),
        ("optimiser.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("adapter.low_rank=attention,mlp", ("attention", "mlp")),
        ("adapter.low_rank=attention", ("attention",)),
        ("adapter.whole=norm", ("norm",)),
        ("adapter.whole=none", ()),
        ('adapter.whole=["norm","embedding"]', ("norm", "embedding")),
        ("adapter.rslora=true", True),
        ("about=a=b", "a=b"),
        ("scale_base=giraffe", "giraffe"),
        ("memory.offload=off", "off"),
    ],
)
def test_a_change(change: str, wanted: object) -> None:
    found = read_recipe("longlora", [change])
    key = change.partition("=")[0].strip()
    assert at(found, key) == wanted
    assert type(at(found, key)) is type(wanted)
    # Nothing else moved.
    section, _, last = key.rpartition(".")
    inner = dataclasses.replace(at(found, section) if section else found, **{last: at(RECIPES["longlora"], key)})
    assert (dataclasses.replace(found, **{section: inner}) if section else inner) == RECIPES["longlora"]


def test_changes_in_order_and_steps_at_last() -> None:
    found = read_recipe("quick", ["steps=7", "rows.count=2", "rows.count=3", "adapter=full"], steps=9)
    assert (found.steps, found.rows.count, found.adapter.kind) == (9, 3, "full")
    assert read_recipe("quick", ["adapter=lora+"]).adapter == RECIPES["longlora"].adapter
    changed = read_recipe("quick", ["adapter=lora+", "adapter.rank=4"]).adapter
    assert changed == dataclasses.replace(RECIPES["longlora"].adapter, rank=4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rows", "'rows' is not a change"),
        ("=5", "is not a change"),
        ("row.count=5", "did you mean rows?"),
        ("rows.cuont=5", "did you mean count?"),
        ("stepps=5", "did you mean steps?"),
        ("rows.count.more=5", "no section 'count'"),
        ("rows.count=2.5", "rows.count"),
        ("rows.count=many", "rows.count"),
        ("rows.count=true", "rows.count"),
        ("steps=true", "steps"),
        ("rows=5", "rows"),
        ("rows.placement=posee", "'pose', 'cream'"),
        ("optimiser.betas=0.9", "optimiser.betas"),
        ("optimiser.learning_rate=0.5,0.2", "optimiser.learning_rate"),
        ("memory.offload=true", "memory.offload"),
        ("adapter=nonsense", "no adapter 'nonsense'"),
        ("adapter.low_rank=norm", "cannot have a low-rank change"),
        ("adapter.rank=0", "rank of 0"),
        ("about=5", "about"),
    ],
)
def test_a_change_that_is_none(change: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        read_recipe("quick", [change])
    assert says in said(error)


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("steps", (0, -1), (1,)),
        ("rows.count", (0,), (1, "none")),
        ("rows.chunks", (0,), (1, 3)),
        ("rows.reach", (0.5, "NaN", "Infinity"), (1,)),
        ("rows.short_share", (-0.1, 1.1, "NaN"), (0, 1)),
        ("rows.first_share", (-0.1, 1), (0, 0.99)),
        ("rows.group", (1,), (2,)),
        ("optimiser.learning_rate", (0, 1, -1, "NaN"), (1e-9,)),
        ("optimiser.whole_learning_rate", (1, -1, "NaN"), (0,)),
        ("optimiser.warmup", (-1,), (0,)),
        ("optimiser.final", (-0.1, 1.1), (0, 1)),
        ("optimiser.betas", ("0.9,1", "-0.1,0.9", "NaN,0.9"), ("0,0",)),
        ("optimiser.weight_decay", (-0.1, 1, "NaN"), (0,)),
        ("optimiser.clip", (0, -1, "Infinity", "NaN"), (0.1,)),
        ("objective.context", (0, -5), (1,)),
        ("objective.refresh", (0, -1), (1,)),
        ("objective.ceiling", (0, "Infinity", "NaN"), (0.5,)),
        ("held_out.share", (-0.1, 1), (0, 0.5)),
        ("held_out.windows", (0,), (1,)),
        ("held_out.short_windows", (0,), (1,)),
        ("held_out.every", (0,), (1,)),
        ("held_out.allowed_short", (-0.1, "Infinity"), (0,)),
        ("held_out.patience", (0,), (1, "none")),
        ("memory.tokens_at_once", (0,), (1,)),
        ("anneal_share", (0, 1.1), (1,)),
    ],
)
def test_ranges(field: str, bad: tuple[Any, ...], good: tuple[Any, ...]) -> None:
    for value in bad:
        with pytest.raises(UsageError) as error:
            read_recipe("quick", [f"{field}={value}"])
        assert f"the recipe's {field} is out of range" in said(error), value
    for value in good:
        read_recipe("quick", [f"{field}={value}"])


def test_files(tmp_path: Path) -> None:
    written = tmp_path / "mine.toml"
    written.write_text(
        'base = "longlora"\nsteps = 3\n[rows]\ncount = 2\n[adapter]\nrank = 4\n[optimiser]\nbetas = [0.8, 0.9]\n'
    )
    found = read_recipe(str(written))
    base = RECIPES["longlora"]
    assert found == dataclasses.replace(
        base,
        name="mine",
        steps=3,
        rows=dataclasses.replace(base.rows, count=2),
        adapter=dataclasses.replace(base.adapter, rank=4),
        optimiser=dataclasses.replace(base.optimiser, betas=(0.8, 0.9)),
    )
    same = tmp_path / "mine.json"
    document = {"base": "longlora", "steps": 3, "rows": {"count": 2}, "adapter": {"rank": 4}}
    same.write_text(json.dumps({**document, "optimiser": {"betas": [0.8, 0.9]}}))
    assert read_recipe(str(same)) == found
    assert read_recipe(str(same), ["rows.count=5"], steps=1).rows.count == 5
    alone = tmp_path / "alone.toml"
    alone.write_text('name = "other"\nadapter = "full"\n')
    assert read_recipe(str(alone)) == CalibrationRecipe(name="other", adapter=RECIPES["pose"].adapter)


def test_a_recipe_as_it_is_recorded_is_a_file(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataclasses.asdict(RECIPES[name])))
        assert read_recipe(str(path)) == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "steps = ", "not valid TOML"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "holds no table"),
        ("a.toml", b"\xff\xfe", "not valid TOML"),
        ("a.toml", 'base = "quik"', "did you mean quick?"),
        ("a.toml", "[row]\ncount = 2", "did you mean rows?"),
        ("a.toml", "[rows]\ncuont = 2", "did you mean rows.count?"),
        ("a.toml", "[rows]\nreach = inf", "rows.reach is out of range"),
        ("a.toml", 'rows = "many"', "rows"),
        ("a.json", '{"steps": true}', "steps"),
    ],
)
def test_files_that_are_none(name: str, text: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as error:
        read_recipe(str(path))
    assert says in said(error)
    assert "Traceback" not in said(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ResourceError, match="can't be read"):
        read_recipe(str(tmp_path / "folder.json"))


def test_recipes_import_no_torch() -> None:
    code = (
        "import sys; from ctxforge.calibrate.recipes import read_recipe, make_plan;"
        "make_plan(read_recipe('quick', ['rows.count=3']), trained_length=64, target_length=256, width=64);"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
