"""One schema: the format's dataclasses, the objects that conversions take, and the command line don't drift apart."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest

from ctxforge.batch import specs
from ctxforge.batch.objects import calibration_options, conversion_recipe, verify_arguments, verify_choices
from ctxforge.batch.reading import read_text
from ctxforge.batch.schema import described_fields, json_schema
from ctxforge.recipe import ConversionRecipe, OutputOptions
from tests.conftest import Ran

SAID = {"as_json", "quiet"}  # of how a command speaks


def options(command: str) -> dict[str, click.Parameter]:
    module: Any = importlib.import_module(f"ctxforge.cli.{command}")
    return {str(option.name): option for option in module.command.params}


def fields(kind: Any) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(kind)}


def test_a_job_has_the_entries_of_a_recipe_and_of_an_output() -> None:
    job, hints = fields(specs.JobSpec), get_type_hints(specs.JobSpec)
    recipe = get_type_hints(ConversionRecipe)
    for name, field in fields(ConversionRecipe).items():
        assert hints[name] == recipe[name]
        if name != "method":  # which may be left out beside an attachment
            assert job[name].default == field.default
    for name, field in fields(OutputOptions).items():
        if name != "out":
            assert hints[name] == get_type_hints(OutputOptions)[name]
            assert job[name].default == field.default
    spec = specs.JobSpec(source="s", to=8, portability="exact", link=True)
    assert dataclasses.asdict(conversion_recipe(spec)).items() <= dataclasses.asdict(spec).items()


def test_extend_and_a_job_take_the_same() -> None:
    job = set(fields(specs.JobSpec))
    inside = {"parameters": "method", "temperature": "method", "calibrate_recipe": "calibrate"}
    inside |= {"verify_result": "verify", "text_path": "verify"}
    inside |= {"push_to": "push", "commit_message": "push"}
    sections = set(fields(specs.CalibrateSpec)) | set(fields(specs.PushSpec))
    for name in set(options("extend")) - SAID - {"yes"}:  # which is typed, never written in a file
        known = name in job or name in sections or inside.get(name) in job
        assert known, f"extend takes {name}, and a job doesn't"


def test_calibrate_and_a_calibration_take_the_same() -> None:
    # Of a folder that is there already, of several processes, or of the job itself.
    apart = {"folder", "out", "source", "to", "trained_length", "plan_only", "link", "overwrite", "fresh"}
    apart |= {"shard", "context", "context_backend"}
    assert {name.replace("recipe_name", "recipe") for name in set(options("calibrate")) - SAID - apart} == set(
        fields(specs.CalibrateSpec)
    )
    built = importlib.import_module("ctxforge.cli.calibrate").build_options(
        data=("a",), seed=3, work=Path("w"), save_every=2, dtype="float32", device="cpu", trust_remote_code=True
    )
    spec = specs.CalibrateSpec(
        data=("a",), seed=3, work="w", save_every=2, dtype="float32", device="cpu", trust_remote_code=True
    )
    assert calibration_options(spec) == built
    defaults = importlib.import_module("ctxforge.cli.calibrate").build_options()
    assert calibration_options(specs.CalibrateSpec()) == defaults


def test_verify_and_a_verification_take_the_same() -> None:
    renamed = {"gates_path": "gates"}
    apart = {"folder", "fresh", "figures", "exit_zero"}
    assert {renamed.get(name, name) for name in set(options("verify")) - SAID - apart} == set(fields(specs.VerifySpec))
    typed = {
        "windows": 3, "needles": 2, "retrieval": False, "tasks": "qa,mc", "protocols": "sliding", "lengths": "512,2k",
        "task_data": (), "chat": True, "dtype": "bfloat16", "device": "cpu", "attention": "auto", "seeds": None,
        "trust_remote_code": False,
    }  # fmt: skip
    spec = specs.VerifySpec(
        windows=3, needles=2, retrieval=False, tasks=("qa", "mc"), protocols=("sliding",), lengths=(512, "2k"),
        chat=True, dtype="bfloat16", device="cpu",
    )  # fmt: skip
    assert verify_choices(spec) == importlib.import_module("ctxforge.cli.verify")._choices(typed)
    settings = set(fields(importlib.import_module("ctxforge.verification.settings").VerifySettings))
    assert set(verify_choices(spec)) <= settings
    pipeline = importlib.import_module("ctxforge.pipeline").verify.__annotations__
    assert set(verify_arguments(spec)) <= set(pipeline)


def test_push_and_a_publication_take_the_same() -> None:
    publish = pytest.importorskip("ctxforge.publish.options")
    taken = get_type_hints(publish.PushOptions)
    taken.pop("yes")  # is typed, never written in a file
    hints = {name: hint for name, hint in get_type_hints(specs.PushSpec).items() if name in fields(specs.PushSpec)}
    assert hints == taken


def test_every_entry_is_explained() -> None:
    for kind in (specs.CalibrateSpec, specs.VerifySpec, specs.PushSpec, specs.ResourceSpec, specs.JobSpec):
        told = dict(described_fields(kind))
        own = set(fields(kind)) - (set(fields(ConversionRecipe)) - {"method"} if kind is specs.JobSpec else set())
        assert own <= set(told), f"{kind.__name__} doesn't explain {own - set(told)}"
        assert all(told.values())


def test_the_schema_is_printed_and_says_what_the_reader_does(cli: Callable[..., Ran]) -> None:
    printed = cli("schema").document
    assert printed == json_schema()
    job = printed["$defs"]["JobSpec"]
    assert set(job["properties"]) == set(fields(specs.JobSpec))
    assert job["additionalProperties"] is False
    assert "required" not in job
    assert printed["required"] == ["version"]
    assert printed["properties"]["version"]["const"] == 1
    assert job["properties"]["to"]["description"].startswith("target length")
    references = set()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            references.update([part["$ref"]] if "$ref" in part else [])
            for inner in part.values():
                walk(inner)
        elif isinstance(part, list):
            for inner in part:
                walk(inner)

    walk(printed)
    assert references <= {f"#/$defs/{name}" for name in printed["$defs"]}
    json.dumps(printed)


@pytest.mark.executor
def test_examples_agree_with_the_schema_as_others_read_it() -> None:
    """By the reference implementation of JSON Schema, which Ray brings."""
    jsonschema = pytest.importorskip("jsonschema")
    root = Path(__file__).parents[2]
    texts = re.findall(r"```yaml\n(.*?)```", (root / "docs" / "batch.md").read_text(), re.DOTALL)
    texts += [path.read_text() for path in (root / "templates" / "recipes").glob("*.yaml")]
    checker = jsonschema.Draft202012Validator(json_schema())
    for text in texts:
        checker.validate(read_text(text, "x").plain)
        with pytest.raises(jsonschema.ValidationError):
            checker.validate({**read_text(text, "x").plain, "jobs": [{"metod": "yarn"}]})
        with pytest.raises(jsonschema.ValidationError):
            checker.validate({**read_text(text, "x").plain, "version": 2})
