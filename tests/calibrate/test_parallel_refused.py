"""What processes refuse: before anything is loaded, by trying a model, and in every process where one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctxforge.calibrate.parallel import ParallelOptions
from ctxforge.calibrate.parallel.options import check_launch, check_machine
from ctxforge.errors import CtxforgeError, UnsupportedError, UsageError
from tests.calibrate.parallel_child import Job
from tests.calibrate.parallel_runs import Found, difference, found_in, made_once, train
from tests.tiny_models import save_tiny, tiny_config

RING, ULYSSES = {"context": 2}, {"context": 2, "context_backend": "ulysses"}
# Of each refused job the error, and a part of what it says.
SAID = {
    "three": ("UsageError", "2 processes can't be divided into groups of 3"),
    "eager": ("UnsupportedError", "this model attends with eager"),
    "mixing": ("UnsupportedError", "its losses then differ by"),
    "mixing-u": ("UnsupportedError", "its losses then differ by"),
    "packed": ("UnsupportedError", "can't cut attention_mask"),
    "unpadded": ("UsageError", "their length must be a multiple of 4"),
    "occupied": ("UsageError", "exists and is not an adapter"),
    "windowed": ("UnsupportedError", "its attention has sliding_window"),
}


def run_all(folder: Path) -> None:
    base = str(save_tiny("llama", folder / "llama"))
    windowed = str(save_tiny("gemma3_text", folder / "gemma3"))
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.tex").write_text("")
    two = [
        Job("three", base, options={"context": 3}),
        Job("eager", base, attention="eager", options=RING),
        Job("mixing", base, mixing=True, options=RING),
        Job("mixing-u", base, mixing=True, options=ULYSSES),
        Job("packed", base, packed=True, options=RING),
        Job("unpadded", base, padded=False, options=RING),
        Job("windowed", windowed, options=RING),
        Job("occupied", base, save=str(folder / "occupied")),
    ]
    train(two, folder / "two", 2)
    plain = [Job("lora", base), Job("plus", base, "lora+", weighted=True)]
    train(plain, folder / "one", 1)
    four = [
        Job("lora ring", base, options=RING),
        Job("lora ulysses", base, options={"context": 4, "context_backend": "ulysses"}),
        Job("plus ring", base, "lora+", weighted=True, options={"context": 4, "shard": True}),
        Job("plus ulysses", base, "lora+", weighted=True, options={**ULYSSES, "shard": True}),
    ]
    train(four, folder / "four", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "parallel-refused", run_all)


@pytest.fixture(scope="module")
def two(folder: Path) -> Found:
    return found_in(folder / "two")


@pytest.mark.parametrize("name", list(SAID))
def test_every_process_refuses(name: str, two: Found) -> None:
    kind, part = SAID[name]
    for one in two[name]:
        said = one.get("error", "nothing")
        assert said.startswith(f"{kind}: "), said
        assert part in said
    assert two[name][0] == two[name][1]


@pytest.mark.parametrize("name", ["lora", "plus"])
@pytest.mark.parametrize("way", ["ring", "ulysses"])
def test_four_processes_in_groups_do_what_one_does(name: str, way: str, folder: Path) -> None:
    (one,) = found_in(folder / "one")[name]
    for other in found_in(folder / "four")[f"{name} {way}"]:
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert [other["before"], other["after"]] == pytest.approx([one["before"], one["after"]], rel=1e-6)
        assert other["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert difference(one["gradients"], other["gradients"]) < 1e-5


def refused(options: ParallelOptions, world: int = 2, config: Any = None) -> CtxforgeError:
    with pytest.raises(CtxforgeError) as caught:
        check_launch(options, world, config)
    return caught.value


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_a_launcher_that_wraps_the_model_itself(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(ParallelOptions(), 2)
    monkeypatch.setenv(variable, "true")
    error = refused(ParallelOptions())
    assert isinstance(error, UsageError)
    assert "wrap the model a second time" in error.cause


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma3_text", {}, "sliding_attention"),
        ("mistral", {"sliding_window": 32}, "see 32 tokens"),
        ("llama", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ("gemma2", {"layer_types": ["full_attention"] * 3, "attn_logit_softcapping": 50.0}, "caps scores"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
@pytest.mark.parametrize("way", ["ring", "ulysses"])
def test_configs_that_a_shared_sequence_would_change(kind: str, changes: dict[str, Any], reason: str, way: Any) -> None:
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    error = refused(ParallelOptions(context=2, context_backend=way), config=config)
    assert isinstance(error, UnsupportedError)
    assert reason in error.cause
    check_launch(ParallelOptions(shard=True), 2, config)  # sharding alone changes nothing across tokens


def test_heads_that_cannot_be_divided() -> None:
    config = tiny_config("llama")
    check_launch(ParallelOptions(context=3), 3, config)
    error = refused(ParallelOptions(context=3, context_backend="ulysses"), 3, config)
    assert "4 heads can't be divided by 3" in error.cause


@pytest.mark.parametrize("context", [0, -2])
def test_groups_of_nobody(context: int) -> None:
    assert isinstance(refused(ParallelOptions(context=context)), UsageError)


def test_a_tracker_that_is_not_installed() -> None:
    check_machine(ParallelOptions(cpu=True), 2)
    with pytest.raises(UsageError) as caught:
        check_machine(ParallelOptions(cpu=True, tracker="aim"), 1)
    assert caught.value.remedy == "install it: pip install aim"
